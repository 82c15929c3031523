"""PiSSA and OLoRA on a dense float32 base: PEFT's residual, its logits, and its answer to our files."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from perturbed import perturb_

from dorakit import Recipe, save_adapter
from dorakit.adapters.attach import adapter_layers
from dorakit.adapters.converted import write_on_original
from dorakit.adapters.starts.pissa import pissa
from dorakit.build import build_model
from dorakit.model.linear import dense_weight
from dorakit.model.load import load_base

IDS = torch.arange(24).reshape(2, 12) * 7 % 250 + 3


def base():
    return load_base("tiny:llama", dtype="float32", attention="eager").model


def ours(start, mode="lora", **adapter):
    return build_model(
        Recipe(
            version=1,
            model={"base": "tiny:llama", "dtype": "float32", "attention": "eager"},
            adapter={"mode": mode, "start": start, "rank": 4, "alpha": 8, **adapter},
            data={"train": [{"path": "rows.jsonl", "format": "text"}]},
            optimizer={"learning_rate": 1e-4},
        )
    ).model


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("mode", ["lora", "dora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_residual_and_logits_are_pefts(start, mode, rslora):
    """At the start, and once moved. Planted bugs caught: s left out of PiSSA's factors, or put into OLoRA's."""
    targets = ["q_proj", "down_proj"]
    mine = ours(start, mode, target_modules=targets, rslora=rslora)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=targets,
        init_lora_weights=start,
        use_rslora=rslora,
        use_dora=mode == "dora",
        task_type="CAUSAL_LM",
    )
    theirs = get_peft_model(base(), config)
    for name, layer in adapter_layers(mine):
        their = theirs.base_model.model.get_submodule(name)
        torch.testing.assert_close(dense_weight(layer.base), their.base_layer.weight, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.lora_A, their.lora_A["default"].weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.lora_B, their.lora_B["default"].weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine(IDS).logits, theirs(IDS).logits, rtol=1e-4, atol=1e-5)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, layer in adapter_layers(mine):
            their = theirs.base_model.model.get_submodule(name)
            pairs = [(layer.lora_A, their.lora_A["default"].weight), (layer.lora_B, their.lora_B["default"].weight)]
            if mode == "dora":
                pairs.append((layer.lora_magnitude_vector, their.lora_magnitude_vector["default"].weight))
            for own, other in pairs:
                noise = torch.randn_like(own) * 0.05
                own.add_(noise)
                other.add_(noise)
    torch.testing.assert_close(mine(IDS).logits, theirs(IDS).logits, rtol=1e-4, atol=1e-4)


def test_the_randomised_decomposition_is_pefts(monkeypatch):
    """From the same draw. Planted bug caught: the number of iterations not handed on."""

    def seeded(*arguments, **settings):
        torch.manual_seed(0)
        return torch.svd_lowrank(*arguments, **settings)

    monkeypatch.setattr("peft.tuners.lora.layer.svd_lowrank", seeded)
    torch.manual_seed(3)
    linear = torch.nn.Linear(64, 48, bias=False)
    weight = linear.weight.detach().clone()
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights="pissa_niter_3")
    theirs = get_peft_model(torch.nn.Sequential(linear), config).base_model.model[0]
    a_RI, b_OR = pissa(weight, 4, 2.0, torch.Generator().manual_seed(0), iterations=3)
    product = theirs.lora_B["default"].weight @ theirs.lora_A["default"].weight
    torch.testing.assert_close(b_OR @ a_RI, product, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("mode", ["lora", "dora"])
def test_peft_refuses_it_on_the_original_base(tmp_path, start, mode):
    model = ours(start, mode)
    save_adapter(model, tmp_path, base_name_or_path="x")
    with pytest.raises(Exception, match="DORAKIT"):
        PeftModel.from_pretrained(base(), tmp_path)


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("mode", ["lora", "dora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_peft_loads_the_conversion_on_the_original_base(tmp_path, start, mode, rslora):
    """Planted bugs caught: alpha not doubled, or doubled with rslora; m dropped; B0 added instead of subtracted."""
    own = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 6.0}, "rslora": rslora}
    model = ours(start, mode, **own)
    perturb_(model)
    directory, output = tmp_path / "adapter", tmp_path / "peft"
    directory.mkdir()
    output.mkdir()
    save_adapter(model, directory, base_name_or_path="x")
    write_on_original(directory, output)
    theirs = PeftModel.from_pretrained(base(), output)
    torch.testing.assert_close(theirs(IDS).logits, model(IDS).logits, rtol=1e-3, atol=1e-4)
