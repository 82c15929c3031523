"""VeRA, MiSS, HiRA and Bat: our directory gives PEFT the same logits, and PEFT's gives them to us."""

import json

import pytest
import torch
from peft import HiraConfig, MissConfig, PeftConfig, PeftModel, VeraConfig, get_peft_model
from perturbed import perturb_
from safetensors.torch import load_file, save_file

from dorakit import attach_, load_adapter, save_adapter
from dorakit.adapters.continued import continue_adapter_
from dorakit.errors import ModelError
from dorakit.model.load import load_base

IDS = torch.arange(24).reshape(2, 12) * 7 % 250 + 3
CASES = {
    "vera": (
        {"update": "vera", "settings": {"d_initial": 0.3, "seed": 7}},
        VeraConfig,
        {"d_initial": 0.3, "projection_prng_key": 7},
    ),
    "miss": ({"update": "miss"}, MissConfig, {}),
    "mini": (
        {"update": "miss", "settings": {"mini_rank": 4}},
        MissConfig,
        {"init_weights": "mini", "mini_r": 4},
    ),
    "hira": ({"update": "hira"}, HiraConfig, {}),
    "bat": ({"update": "bat"}, MissConfig, {"init_weights": "bat"}),
}
FROZEN = [name for name in CASES if name != "hira"]  # whose A is drawn anew, by another generator
every = pytest.mark.parametrize(("ours", "config", "theirs"), CASES.values(), ids=CASES)


def base():
    return load_base("tiny:llama", dtype="float32", attention="eager").model


@every
def test_ours_in_peft(tmp_path, ours, config, theirs):
    """Planted bugs caught: B drawn before A; D transposed; another gain."""
    model = base()
    attach_(model, method="lora", rank=8, **ours)
    perturb_(model)
    save_adapter(model, tmp_path, base_name_or_path="x")
    peft_model = PeftModel.from_pretrained(base(), tmp_path)
    torch.testing.assert_close(peft_model(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)


@every
@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], r".*\.0\..*(k|v)_proj"])
def test_peft_in_ours(tmp_path, ours, config, theirs, targets):
    model = get_peft_model(base(), config(r=8, target_modules=targets, task_type="CAUSAL_LM", **theirs))
    perturb_(model)
    model.save_pretrained(tmp_path)
    mine = base()
    load_adapter(mine, tmp_path)
    torch.testing.assert_close(mine(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("ours", "config", "theirs"), [CASES[name] for name in FROZEN], ids=FROZEN)
def test_they_start_from_the_same(tmp_path, ours, config, theirs):
    """The frozen matrices are PEFT's bit for bit. Planted bug caught: the seed not used."""
    model, peft_model = base(), base()
    attach_(model, method="lora", rank=8, target_modules=["q_proj", "down_proj"], **ours)
    peft_model = get_peft_model(
        peft_model, config(r=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **theirs)
    )
    for one in (model, peft_model):
        torch.manual_seed(3)
        with torch.no_grad():
            trained = ((name, p) for name, p in one.named_parameters() if p.requires_grad)
            for name, parameter in trained:
                name = name.removeprefix("base_model.model.").removesuffix(".default")
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    torch.testing.assert_close(model(IDS).logits, peft_model(IDS).logits, rtol=1e-4, atol=1e-5)


def test_vera_of_peft_without_its_matrices(tmp_path):
    model = get_peft_model(
        base(), VeraConfig(r=6, target_modules=["q_proj"], save_projection=False, task_type="CAUSAL_LM")
    )
    perturb_(model)
    model.save_pretrained(tmp_path)
    mine = base()
    load_adapter(mine, tmp_path)
    torch.testing.assert_close(mine(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("update", "method"), [("vera", "dora"), ("miss", "dora"), ("hira", "dora"), ("bat", "dora"), ("mora", "lora")]
)
def test_peft_refuses_what_it_has_no_name_for(tmp_path, update, method):
    """Under a magnitude, and MoRA. Planted bug caught: peft_type VERA, which PEFT loads without its magnitude in silence."""
    model = base()
    attach_(model, method=method, update=update, rank=8)
    save_adapter(model, tmp_path, base_name_or_path="x")
    with pytest.raises((KeyError, ValueError), match="DORAKIT"):
        PeftConfig.from_pretrained(tmp_path)


def test_a_form_of_miss_that_is_not_known_is_refused(tmp_path):
    model = base()
    attach_(model, method="lora", update="miss", rank=8)
    save_adapter(model, tmp_path, base_name_or_path="x")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "init_weights": "spread"}))
    with pytest.raises(ModelError, match="init_weights = 'spread' is not supported"):
        load_adapter(base(), tmp_path)


def test_bat_needs_a_rank_that_divides_every_side():
    words = r"q_proj: update bat .* rank 6 does not divide its sides 64 x 64\n.*targets: 1, 2, 4, 8, 16, 32$"
    with pytest.raises(ModelError, match=words):
        attach_(base(), method="lora", update="bat", rank=6)


def test_an_update_that_is_not_known(tmp_path):
    model = base()
    attach_(model, method="dora", update="vera", rank=6)
    save_adapter(model, tmp_path, base_name_or_path="x")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "dorakit": {"update": "nova"}}))
    with pytest.raises(ModelError, match="'update': 'nova'}, expected an object with an update of lora, vera"):
        load_adapter(base(), tmp_path)


def test_other_matrices_than_the_seeds_are_refused(tmp_path):
    """`--from` an adapter whose frozen matrices the seed does not draw. Planted bug caught: b and d put around other ones."""
    model, again = base(), base()
    attach_(model, method="lora", update="vera", rank=6, settings={"seed": 1})
    attach_(again, method="lora", update="vera", rank=6, settings={"seed": 2})
    save_adapter(model, tmp_path, base_name_or_path="x")
    with pytest.raises(ModelError, match="vera_A is another one than the model has"):
        continue_adapter_(again, tmp_path)


def test_matrices_of_another_size_are_refused(tmp_path):
    model = base()
    attach_(model, method="lora", update="vera", rank=6)
    save_adapter(model, tmp_path, base_name_or_path="x")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors["base_model.vera_A"] = tensors["base_model.vera_A"][:, :8].contiguous()
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"vera_A and vera_B are \(6, 8\)"):
        load_adapter(base(), tmp_path)
