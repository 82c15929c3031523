"""Families that are not plain decoders of text."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3TextConfig, SiglipVisionConfig

from dorakit import attach_, train
from dorakit.errors import ModelError
from dorakit.model.load import load_base
from dorakit.model.tiny import tiny_tokenizer
from dorakit.training.objectives.supervised import SupervisedLoss


@pytest.fixture
def gemma3(tmp_path: Path) -> str:
    """A directory with a tiny Gemma 3: a text decoder beside a vision tower."""
    tokenizer = tiny_tokenizer()
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = Gemma3TextConfig(vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=16, pad_token_id=0, **small)
    vision = SiglipVisionConfig(image_size=28, patch_size=14, **small)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, eos_token_id=2)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "gemma3")
    tokenizer.save_pretrained(tmp_path / "gemma3")
    return str(tmp_path / "gemma3")


def test_all_linear_is_what_text_passes_through(make_recipe, gemma3):
    """Planted bug caught: adapters on the vision tower, whose magnitudes cannot move, so that nothing is written."""
    run = train(make_recipe(f"model.base={gemma3}"), quiet=True)
    names = load_file(run.adapter / "adapter_model.safetensors")
    assert not [name for name in names if "vision" in name]
    assert len([name for name in names if "lora_A" in name]) == 14
    assert not [note for note in run.read("run.json")["notes"] if "no gradient" in note]


def test_adapters_without_a_gradient_are_told(make_recipe, gemma3):
    """Asked for by name they stay as they were. Planted bug caught: taken for magnitudes that were rounded away."""
    run = train(make_recipe(f"model.base={gemma3}", "adapter.target_modules=[q_proj]"), quiet=True)
    (note,) = [note for note in run.read("run.json")["notes"] if "no gradient" in note]
    assert note.startswith("2 adapted layers") and "vision_tower" in note


def test_weight_decay_leaves_alone_what_has_no_gradient(make_recipe, gemma3):
    """Planted bug caught: mode full decays the vision tower, whose gradient is always zero."""
    overrides = ["adapter.mode=full", "optimizer.weight_decay=0.5"]
    run = train(make_recipe(f"model.base={gemma3}", *overrides), quiet=True)
    before, after = (load_file(Path(d) / "model.safetensors") for d in (gemma3, run.model))
    for name in before:
        assert torch.equal(before[name], after[name]) == ("vision" in name or "projector" in name), name
    assert any("outside the text decoder" in note for note in json.loads((run.path / "run.json").read_text())["notes"])


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_fused_experts_are_refused_by_name(architecture):
    """Planted bug caught: an adapter on the attention alone, where all-linear was asked for."""
    with pytest.raises(ModelError, match=r"fused expert weights \(.*experts\)"):
        attach_(load_base(f"tiny:{architecture}", dtype="float32", attention="auto").model, method="lora")


@pytest.mark.parametrize("architecture", ["opt", "bloom", "mpt", "mamba", "falcon_h1"])
def test_packing_is_refused_where_documents_would_see_each_other(make_recipe, architecture):
    """Planted bug caught: taking it for granted that every family reads borders off restarting positions."""
    recipe = make_recipe(
        f"model.base=tiny:{architecture}", "model.attention=eager", "data.packing=true", "adapter.mode=full"
    )
    with pytest.raises(ModelError, match=r"data\.packing does not work with .*see each other"):
        train(recipe, quiet=True)
    assert not (Path(recipe.origin.path).parent / "runs").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "phi3", "gpt2", "gpt_neox"])
def test_packing_is_not_refused_for_rounding(architecture, dtype):
    """Planted bug caught: logits of rows of different widths compared to the bit."""
    model = load_base(f"tiny:{architecture}", dtype=dtype, attention="auto").model
    assert SupervisedLoss(model).keeps_documents_apart()


def test_a_kernel_is_no_expert():
    """Planted bug caught: the convolution of Falcon-H1, a 3-D parameter, taken for experts."""
    model = load_base("tiny:falcon_h1", dtype="float32", attention="auto").model
    assert any(name.endswith("in_proj") for name in attach_(model, method="lora"))
