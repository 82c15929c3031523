"""The tensors of an adapter file have the names and shapes that PEFT gives them, not only such as it happens to accept."""

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from dorakit import attach_, save_adapter
from dorakit.model.load import load_base


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_names_and_shapes_are_pefts(tmp_path, method):
    """Planted bug caught: `.weight` after lora_magnitude_vector, which this PEFT reads and does not write."""
    targets = ["q_proj", "down_proj"]
    ours = load_base("tiny:llama", dtype="float32").model
    attach_(ours, method=method, rank=4, alpha=8, target_modules=targets)
    save_adapter(ours, tmp_path, base_name_or_path="x")
    settings = {"r": 4, "lora_alpha": 8, "target_modules": targets, "use_dora": method == "dora"}
    theirs = get_peft_model(load_base("tiny:llama", dtype="float32").model, LoraConfig(**settings))
    theirs.save_pretrained(tmp_path / "peft")
    found, known = (
        {name: tuple(tensor.shape) for name, tensor in load_file(place / "adapter_model.safetensors").items()}
        for place in (tmp_path, tmp_path / "peft")
    )
    assert found == known
