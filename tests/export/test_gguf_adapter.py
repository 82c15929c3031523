"""adapter.gguf: what llama.cpp reads out of it, row by row."""

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tiny_run

from dorakit import attach_
from dorakit.adapters.attach import adapter_layers
from dorakit.errors import ModelError
from dorakit.export.gguf_adapter import write_gguf_adapter
from dorakit.export.plain_lora import export_plain_lora
from dorakit.model.load import load_base


def with_adapter(architecture):
    model = load_base(f"tiny:{architecture}", dtype="float32").model
    attach_(model, method="lora", rank=4, alpha=4, target_modules="all-linear")
    with torch.no_grad():
        for _, layer in adapter_layers(model):
            layer.lora_B.copy_(torch.randn_like(layer.lora_B))
    return model


def read(file):
    reader = gguf.GGUFReader(file)
    facts = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return facts, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


@pytest.mark.parametrize(
    ("architecture", "graph", "is_interleaved"),
    [("llama", "llama", True), ("mistral", "llama", True), ("qwen2", "qwen2", False), ("qwen3", "qwen3", False)],
)
def test_rows_are_where_llama_cpp_looks_for_them(tmp_path, architecture, graph, is_interleaved):
    """Planted bugs caught: q and k in transformers' order of rows, or v too; k's rows divided among the query heads; Qwen's rows
    moved; A and B exchanged; alpha left as a whole number.
    """
    model = with_adapter(architecture)
    write_gguf_adapter(model, tmp_path / "adapter.gguf")
    facts, tensors = read(tmp_path / "adapter.gguf")
    assert facts == {
        "general.architecture": graph,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 4.0,
    }
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    names |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    layers = dict(adapter_layers(model))
    assert len(tensors) == 2 * len(layers) == 28
    for name, layer in layers.items():
        number, last = name.split(".")[2], name.rsplit(".", 1)[1]
        a, b = (tensors[f"blk.{number}.{names[last]}.weight.lora_{part}"] for part in "ab")
        assert np.array_equal(a, layer.lora_A.numpy(force=True))
        expected = layer.lora_B.numpy(force=True)
        if is_interleaved and last in ("q_proj", "k_proj"):
            # Heads of 16 rows; row i of a head's first half, then row i of its second.
            order = [head + i + half for head in range(0, len(expected), 16) for i in range(8) for half in (0, 8)]
            expected = expected[order]
        assert np.array_equal(b, expected), name


def test_it_lies_beside_the_adapter_where_llama_cpp_can_use_it(tmp_path, trained):
    """Planted bugs caught: an adapter for weights that llama.cpp cannot load; a family written whose rows nobody knows."""
    content = export_plain_lora(
        trained("dora"), output=tmp_path / "out", onto="trained", max_lost=1.0, max_rank=8, quiet=True
    )
    assert set(content["bytes"]) == set(content["sha256"]) == {"adapter_model.safetensors", "adapter.gguf"}
    facts, tensors = read(tmp_path / "out" / "adapter.gguf")
    assert facts["adapter.lora.alpha"] == 8.0
    theirs = load_file(tmp_path / "out" / "adapter_model.safetensors")
    down = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    assert np.array_equal(tensors["blk.1.ffn_down.weight.lora_b"], theirs[down].numpy())
    export_plain_lora(trained("qdora"), output=tmp_path / "nf4", onto="trained", max_lost=1.0, max_rank=8, quiet=True)
    assert not (tmp_path / "nf4" / "adapter.gguf").exists()
    other = tiny_run(tmp_path / "run", "lora", base="tiny:gemma2")
    content = export_plain_lora(other, output=tmp_path / "gemma", onto="trained", max_lost=1.0, max_rank=8, quiet=True)
    assert not (tmp_path / "gemma" / "adapter.gguf").exists()
    assert any("no adapter.gguf: known are llama, mistral" in line for line in content["notes"])
    with pytest.raises(ModelError, match="gemma2"):
        write_gguf_adapter(with_adapter("gemma2"), tmp_path / "adapter.gguf")
    assert not (tmp_path / "adapter.gguf").exists()
