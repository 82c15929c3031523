"""Our adapter directory gives PEFT the same logits, and PEFT's gives them to us."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from dorakit import attach_, load_adapter, merge_, save_adapter
from dorakit.adapters.attach import base_only
from dorakit.adapters.peft_format import base_storage
from dorakit.adapters.whole import TrainedCopy
from dorakit.errors import ModelError
from dorakit.model.load import load_base
from dorakit.model.nf4 import NF4Format

IDS = torch.arange(24).reshape(2, 12) * 7 % 250 + 3


def perturb_(model):
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def base(architecture="llama"):
    return load_base(f"tiny:{architecture}", dtype="float32", attention="eager").model


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_ours_in_peft(tmp_path, method, architecture):
    """Planted bugs that die here: the magnitude not written; rank_pattern or alpha_pattern not written; rsLoRA not written."""
    model = base(architecture)
    before = model(IDS).logits
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 20}}
    attach_(model, method=method, rank=4, alpha=8, rslora=True, **patterns, target_modules="all-linear")
    torch.testing.assert_close(model(IDS).logits, before, rtol=0, atol=1e-6)
    perturb_(model)
    live = model(IDS).logits
    save_adapter(model, tmp_path, base_name_or_path="x")
    theirs = PeftModel.from_pretrained(base(architecture), tmp_path)
    torch.testing.assert_close(theirs(IDS).logits, live, rtol=1e-4, atol=1e-5)
    with base_only(model):
        assert torch.equal(model(IDS).logits, before)
    merge_(model)
    torch.testing.assert_close(model(IDS).logits, live, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"], r".*\.0\..*(k|v)_proj"])
@pytest.mark.parametrize("use_dora", [False, True])
def test_peft_in_ours(tmp_path, use_dora, targets):
    """Planted bug that dies here: alpha taken as scaling."""
    model = get_peft_model(
        base(),
        LoraConfig(
            r=4,
            lora_alpha=12,
            target_modules=targets,
            use_dora=use_dora,
            task_type="CAUSAL_LM",
            rank_pattern={"q_proj": 8},
            alpha_pattern={"q_proj": 20},
        ),
    )
    perturb_(model)
    model.save_pretrained(tmp_path)
    ours = base()
    load_adapter(ours, tmp_path)
    torch.testing.assert_close(ours(IDS).logits, model.eval()(IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"], ids=["untied", "tied"])
@pytest.mark.parametrize("modules", [["embed_tokens"], ["lm_head"], ["norm"]])
def test_modules_to_save(tmp_path, architecture, modules):
    """Planted bugs that die here: an embedding trained apart from the head that is tied to it; a trained copy that answers
    for the base; a copy's weight that is the base's.
    """
    model = base(architecture)
    before = model(IDS).logits
    is_tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert is_tied == (architecture == "gemma2")
    attach_(model, method="dora", rank=4, target_modules=["q_proj"], modules_to_save=modules)
    perturb_(model)
    live = model(IDS).logits
    copies = [module for module in model.modules() if isinstance(module, TrainedCopy)]
    assert copies and all(module.weight is module.copy.weight for module in copies)
    with base_only(model):
        assert torch.equal(model(IDS).logits, before)
        assert all(module.weight is module.base.weight for module in copies)
    save_adapter(model, tmp_path, base_name_or_path="x")
    again = base(architecture)
    load_adapter(again, tmp_path)
    torch.testing.assert_close(again(IDS).logits, live)
    theirs = PeftModel.from_pretrained(base(architecture), tmp_path)
    torch.testing.assert_close(theirs(IDS).logits, live, rtol=1e-4, atol=1e-5)
    merge_(model)
    torch.testing.assert_close(model(IDS).logits, live, rtol=1e-4, atol=1e-5)
    tied_after = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied_after == is_tied


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_of_a_changed_base_is_refused_until_converted(tmp_path, start):
    """Planted bug caught: PiSSA's adapter, whose base lost what A and B start with, put onto the whole base."""
    model = get_peft_model(base(), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=start))
    model.peft_config["default"].init_lora_weights = True  # PEFT's own advice: or it would start anew when loading
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = start
    perturb_(model)
    model.save_pretrained(tmp_path / "trained")
    with pytest.raises(ModelError, match=rf"init_lora_weights = '{start}'.*\n.*weight_conversion"):
        load_adapter(base(), tmp_path / "trained")
    live = model(IDS).logits
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    ours = base()
    load_adapter(ours, tmp_path / "converted")
    torch.testing.assert_close(ours(IDS).logits, live, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("whole", [[], ["mlp"], ["lm_head"]])
def test_the_storage_of_the_base_is_written(tmp_path, whole):
    """Planted bugs that die here: names with the wrappers in them; the file for a dense base left out."""
    model = base()
    attach_(model, method="lora", rank=2)
    save_adapter(model, tmp_path, base_name_or_path="x")
    assert base_storage(tmp_path) == "unquantized"
    form = NF4Format(128, False, ("lm_head", *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))))
    model = load_base("tiny:llama", dtype="float32", nf4=form).model
    attach_(model, method="lora", rank=2, target_modules=["q_proj", "k_proj"], modules_to_save=whole)
    save_adapter(model, tmp_path, base_name_or_path="x")
    found = base_storage(tmp_path)
    layers = [f"model.layers.{i}.mlp.{name}_proj" for i in range(2) for name in ("down", "gate", "up")]
    assert found == NF4Format(128, False, ("lm_head", *layers))
    again = load_base("tiny:llama", dtype="float32", nf4=found).model
    load_adapter(again, tmp_path)
    assert torch.equal(again(IDS).logits, model.eval()(IDS).logits)
    theirs = PeftModel.from_pretrained(base(), tmp_path)
    assert theirs.peft_config["default"].r == 2


def test_a_dora_adapter_without_its_magnitude_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model = base()
    attach_(model, method="dora", rank=4)
    save_adapter(model, tmp_path, base_name_or_path="x")
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if "magnitude" not in name}, file)
    with pytest.raises(ModelError, match=r"lacks .*lora_magnitude_vector"):
        load_adapter(base(), tmp_path)
