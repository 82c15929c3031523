"""Our adapter directory gives PEFT the same logits, and PEFT's gives them to us."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from perturbed import perturb_
from transformers import AutoModelForCausalLM, GgufConfig

from dorakit import attach_, load_adapter, merge, merge_, save_adapter
from dorakit.adapters import peft_format
from dorakit.adapters.attach import base_only, whole_modules
from dorakit.adapters.storage import base_storage
from dorakit.adapters.whole import TrainedCopy
from dorakit.errors import GateError, ModelError
from dorakit.export.to_gguf import export_gguf
from dorakit.model.arrival import Arrival
from dorakit.model.load import load_base
from dorakit.model.nf4 import NF4Format

IDS = torch.arange(24).reshape(2, 12) * 7 % 250 + 3


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
    model = load_base("tiny:llama", dtype="float32", arrival=Arrival(form)).model
    attach_(model, method="lora", rank=2, target_modules=["q_proj", "k_proj"], modules_to_save=whole)
    save_adapter(model, tmp_path, base_name_or_path="x")
    found = base_storage(tmp_path)
    layers = [f"model.layers.{i}.mlp.{name}_proj" for i in range(2) for name in ("down", "gate", "up")]
    assert found == NF4Format(128, False, ("lm_head", *layers))
    again = load_base("tiny:llama", dtype="float32", arrival=Arrival(found)).model
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


VARIANTS = {
    "embedding": {"modules_to_save": ["embed_tokens"]},
    "head": {"modules_to_save": ["lm_head"]},
    "both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding, tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "head, tied": {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
}


@pytest.fixture(scope="module", params=VARIANTS)
def on_a_tied_base(request, tmp_path_factory):
    """Place of an adapter that PEFT made on a base with tied embeddings; its variant; what PEFT computes."""
    place, variant = tmp_path_factory.mktemp("tied"), VARIANTS[request.param]
    tied = load_base("tiny:llama", dtype="float32")
    tied.model.config.tie_word_embeddings = True
    tied.model.tie_weights()
    tied.model.save_pretrained(place / "base")
    tied.tokenizer.save_pretrained(place / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of the ties
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM", **variant)
        theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(place / "base"), config)
        perturb_(theirs)
        theirs.save_pretrained(place / "adapter")
    return place, variant, logits(theirs)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_own_ends_on_a_tied_base_are_those_of_peft(on_a_tied_base, tmp_path):
    """Planted bugs caught: the pair read as one weight; a merge in memory whose config still ties it."""
    place, variant, expected = on_a_tied_base
    live = load_base(str(place / "base"), dtype="float32").model
    assert (expected - logits(live)).abs().max() > 0.1
    load_adapter(live, place / "adapter")
    torch.testing.assert_close(logits(live), expected, rtol=1e-4, atol=1e-5)
    merged = merge(place / "adapter", output=tmp_path / "merged", dtype="float32", quiet=True)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(merged)), expected, rtol=1e-4, atol=1e-5)
    is_tied = variant.get("ensure_weight_tying", False)
    assert json.loads((merged / "config.json").read_text())["tie_word_embeddings"] is is_tied
    assert json.loads((merged / "merge.json").read_text())["as_peft_reads_it"] == (3 if is_tied else 4)
    merge_(live)
    assert live.config.tie_word_embeddings is is_tied
    live.save_pretrained(tmp_path / "in memory")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "in memory")
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("on_a_tied_base", ["embedding"], indirect=True)
def test_a_gguf_file_has_the_head_that_was_untied(on_a_tied_base, tmp_path):
    place, _, expected = on_a_tied_base
    made = export_gguf(place / "adapter", output=tmp_path / "gguf", quiet=True)
    dense = GgufConfig(dequantize=True)
    read = AutoModelForCausalLM.from_pretrained(
        made.directory, gguf_file="model-f16.gguf", quantization_config=dense, dtype=torch.float32
    )
    torch.testing.assert_close(logits(read), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("on_a_tied_base", ["embedding", "head", "both"], indirect=True)
def test_a_merge_of_another_reading_is_refused(on_a_tied_base, tmp_path, monkeypatch):
    """The live model and the merge agree in what they misread, so only PEFT's rule can tell.

    Planted bug caught: the tie, or one of the two weights, not looked at.
    """
    place, _, _ = on_a_tied_base
    monkeypatch.setattr("dorakit.adapters.peft_format.keeps_ties", lambda config, tensors: True)
    monkeypatch.setattr("dorakit.adapters.peft_format.matched_parameters", lenient)
    with pytest.raises(GateError, match="PEFT"):
        merge(place / "adapter", output=tmp_path / "merged", dtype="float32", quiet=True)


def lenient(model, tensors, path, known=peft_format.matched_parameters):
    """As it was once: one of a tied pair is enough."""
    ends = {name: f"{name}.weight" for name, _ in whole_modules(model)}
    filled = {
        key: tensors[next(k for k in ends.values() if k in tensors)] for key in ends.values() if key not in tensors
    }
    return {key: p for key, p in known(model, {**tensors, **filled}, path).items() if key in tensors}


@pytest.mark.parametrize("changes", [{"use_rslora": True}, {"alpha_pattern": {"q_proj": 9}}, {"lora_alpha": 9}])
def test_a_scale_that_is_misread_is_refused(tmp_path, monkeypatch, changes):
    """Planted bug caught: linear layers not held against PEFT's formula."""
    attached = base("llama")
    attach_(attached, method="dora", rank=4, alpha=8, target_modules=["q_proj"])
    perturb_(attached)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_adapter(attached, adapter, base_name_or_path="tiny:llama")
    assert merge(adapter, output=tmp_path / "right", dtype="float32", quiet=True)
    real = peft_format.read_config
    monkeypatch.setattr("dorakit.adapters.peft_format.read_config", lambda directory: {**real(directory), **changes})
    with pytest.raises(GateError, match="is not what PEFT makes of"):
        merge(adapter, output=tmp_path / "wrong", dtype="float32", quiet=True)
