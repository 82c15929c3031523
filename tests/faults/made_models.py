"""Model directories, adapters and GGUF files that tests damage: real ones, small, and the tools to break them."""

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file


def header_of(path: Path) -> dict:
    """The header of a safetensors file."""
    with open(path, "rb") as file:
        return json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))


def with_header(path: Path, header: dict | str, *, length: int | None = None, pairs: str = "") -> None:
    """Put another header in front of the same tensors; `length` lies about its size, `pairs` is text put into it."""
    content = path.read_bytes()
    data = content[8 + struct.unpack("<Q", content[:8])[0] :]
    text = header if isinstance(header, str) else json.dumps(header)
    if pairs:
        text = text[:-1] + "," + pairs + "}"
    encoded = text.encode()
    path.write_bytes(struct.pack("<Q", len(encoded) if length is None else length) + encoded + data)


def change_json(path: Path, **values: object) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(path: Path, change) -> None:
    """Rewrite a safetensors file as `change` leaves its dictionary of tensors."""
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors = change(tensors) or tensors
    save_file(tensors, path, metadata={"format": "pt"})


def shard(model: Path) -> dict[str, str]:
    """Split model.safetensors into two files and an index; returns its weight_map."""
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    weight_map = {}
    names = sorted(tensors)
    for number, part in enumerate((names[:8], names[8:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, model / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    write_index(model, weight_map)
    return weight_map


def write_index(model: Path, weight_map: object) -> None:
    """Write the index of a model in several files."""
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (model / "model.safetensors.index.json").write_text(json.dumps(content))


def write_gguf(path: Path) -> Path:
    """A llama of one layer with a vocabulary of a few dozen tokens."""
    writer = gguf.GGUFWriter(path, "llama")
    hidden, inner, vocabulary = 32, 64, 40
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(
        ["<s>", "</s>", *(chr(97 + n) for n in range(26)), *(f"t{n}" for n in range(vocabulary - 30)), "ab", "cd"]
    )
    writer.add_token_types([3, 3, *[1] * (vocabulary - 2)])
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    generator = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (vocabulary, hidden), "output.weight": (vocabulary, hidden), "output_norm.weight": (hidden,),
        "blk.0.attn_norm.weight": (hidden,), "blk.0.ffn_norm.weight": (hidden,),
        **{f"blk.0.attn_{part}.weight": (hidden, hidden) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_gate.weight": (inner, hidden), "blk.0.ffn_up.weight": (inner, hidden),
        "blk.0.ffn_down.weight": (hidden, inner),
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(name, generator.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def set_first(value: float):
    """A change for `change_tensors`: one element of the first matrix of a layer becomes `value`."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in sorted(tensors) if tensors[name].dim() == 2 and "proj" in name)
        tensors[name][0, 0] = value

    return change
