"""A plain model directory as one GGUF file, for the families that llama.cpp computes as it does Llama.

What a file says of a model: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The gguf package packs bytes and
quantizes; names, shapes and which tensor gets which type are decided here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType as _Type
from gguf.quants import quant_shape_to_byte_shape, quantize
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from dorakit.errors import ModelError, shown
from dorakit.export.destination import check_space
from dorakit.export.gguf_rope import add_rope, head_dim
from dorakit.export.gguf_vocabulary import NotWritable, add_vocabulary
from dorakit.memory import return_freed_memory

# model_type of config.json, and the architecture whose graph llama.cpp runs for it.
FAMILIES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
TYPES = {
    "f16": (_Type.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (_Type.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (_Type.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (_Type.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
_FREQUENCIES = "rope_freqs.weight"


@dataclass(frozen=True)
class PackedTensor:
    """A tensor as it was written: its name in the model directory, and the digest of its bytes in the file."""

    source: str
    sha256: str


@dataclass
class Written:
    """Content of a GGUF file: the number of tensors of each type, lines to print and to record, and the tensors of the model."""

    tensor_types: dict[str, int]
    notes: list[str] = field(default_factory=list)
    packed: dict[str, PackedTensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file: its name there and in the directory, its shape in rows and columns, its type."""

    name: str
    source: str
    shape: tuple[int, ...]
    kind: _Type

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return tuple(quant_shape_to_byte_shape(self.shape, self.kind))

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.stored_shape))


def check_family(model_type: str) -> None:
    """Refuse what cannot be written.

    Raises:
        NotWritable: The family is not one of FAMILIES.
    """
    if model_type not in FAMILIES:
        raise NotWritable(
            f"models of type {shown(model_type)!r} cannot be written as GGUF here; known are {', '.join(FAMILIES)}"
        )


def write_gguf(
    directory: Path, file: Path, outtype: str, *, name: str, stops: Sequence[int] = (), origin: Path | None = None
) -> Written:
    """Write a model directory as GGUF: weights, sizes, tokenizer, chat template. One tensor is in memory at a time.

    Args:
        directory: A plain model, as `merge` writes it.
        file: The file to make.
        outtype: One of TYPES. Norms and biases stay float32; a row that does not fill the blocks of a quantized type is
            f16; with q4_0 embedding and head are q8_0, since an error there meets every token.
        name: What the file says that the model is called.
        stops: Tokens that end an answer.
        origin: The GGUF file that the base came from; its tokenizer is copied.

    Raises:
        ModelError: The family, its positions or its tokenizer cannot be written, or a weight is beyond float16.
        ResourceError: The disk has no room for it.
    """
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    check_family(config.model_type)
    architecture = FAMILIES[config.model_type]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    notes = _add_sizes(writer, config, name, outtype)
    frequencies, rope_notes = add_rope(writer, config)
    notes += rope_notes
    notes += add_vocabulary(writer, directory, config.vocab_size, stops=stops, origin=origin)
    tensors = list(_tensors(directory, config, TYPES[outtype][0]))
    check_space(file, sum(tensor.num_bytes for tensor in tensors))
    types = Counter(tensor.kind.name for tensor in tensors)
    if frequencies is not None:
        writer.add_tensor_info(_FREQUENCIES, frequencies.shape, frequencies.dtype, frequencies.nbytes)
        types[_Type.F32.name] += 1
    for tensor in tensors:
        # Named uint8, the shape is in bytes, of any type.
        writer.add_tensor_info(tensor.name, tensor.stored_shape, np.dtype(np.uint8), tensor.num_bytes, tensor.kind)
    if kept := [tensor.name for tensor in tensors if outtype.startswith("q") and _is_unblocked(tensor.shape)]:
        notes.append(
            f"rows of {len(kept)} tensors fill no whole blocks, f16 instead of {outtype}; the first is {kept[0]}"
        )
    if outtype == "q4_0":
        notes.append("embedding and output head are q8_0, the other matrices q4_0")
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if frequencies is not None:
            writer.write_tensor_data(frequencies)
        digests = {}
        for tensor, values in zip(tensors, _packed(directory, tensors, config), strict=True):
            digests[tensor.name] = PackedTensor(tensor.source, hashlib.sha256(values.tobytes()).hexdigest())
            writer.write_tensor_data(values)
    finally:
        writer.close()
    return Written(dict(types), notes, digests)


def _add_sizes(writer: gguf.GGUFWriter, config: PreTrainedConfig, name: str, outtype: str) -> list[str]:
    if config.hidden_act != "silu":
        raise ModelError(
            f"hidden_act is {shown(str(config.hidden_act))!r}, and llama.cpp computes this family with silu"
        )
    writer.add_type("model")
    writer.add_name(shown(name))
    writer.add_file_type(TYPES[outtype][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and window < config.max_position_embeddings:
        return [
            f"sliding_window {window} cannot be said in this family: llama.cpp attends to all of a text that is longer, "
            "and may answer otherwise there"
        ]
    return []


def _tensors(directory: Path, config: PreTrainedConfig, kind: _Type) -> Iterator[_Tensor]:
    """What the file will hold, from headers alone.

    Raises:
        ModelError: A tensor has no place in the family, or one that it needs is not there.
    """
    architecture = FAMILIES[config.model_type]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    found = set()
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as content:
            for source in content.keys():
                name = names.get_name(source, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise ModelError(f"{path.name}: {shown(source)} has no place in llama.cpp's {config.model_type}")
                found.add(name)
                shape = tuple(content.get_slice(source).get_shape())
                yield _Tensor(name, source, shape, _kind(name, shape, kind))
    needed = {"token_embd.weight", "output_norm.weight"}
    if not config.tie_word_embeddings:
        needed.add("output.weight")  # without it llama.cpp takes the embedding, and answers nonsense
    if missing := sorted(needed - found):
        raise ModelError(f"the model holds no tensor for {', '.join(missing)}")


def _kind(name: str, shape: tuple[int, ...], kind: _Type) -> _Type:
    if len(shape) == 1:
        return _Type.F32
    if kind in (_Type.Q8_0, _Type.Q4_0) and _is_unblocked(shape):
        return _Type.F16
    if kind == _Type.Q4_0 and name in ("token_embd.weight", "output.weight"):
        return _Type.Q8_0
    return kind


def _is_unblocked(shape: tuple[int, ...]) -> bool:
    """Whether a matrix has rows that fill no whole blocks of 32, Q8_0's and Q4_0's."""
    return len(shape) > 1 and shape[-1] % 32 != 0


def _packed(directory: Path, tensors: list[_Tensor], config: PreTrainedConfig) -> Iterator[npt.NDArray[Any]]:
    """The tensors' bytes, in the order given, which is that of the files."""
    left = iter(tensors)
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as content:
            for source in content.keys():
                tensor = next(left)
                assert tensor.source == source
                values = as_in_llama_cpp(source, content.get_tensor(source), config).to(torch.float32).numpy()
                with np.errstate(over="ignore"):  # told of below, by name
                    packed = quantize(values, tensor.kind)
                if tensor.kind == _Type.F16 and not np.isfinite(packed).all():
                    raise ModelError(
                        f"{shown(source)} reaches {np.abs(values).max():.3g}, beyond float16\n  --type bf16 or q8_0 holds it"
                    )
                yield packed
                return_freed_memory(values.nbytes)


def as_in_llama_cpp(source: str, values: Tensor, config: PreTrainedConfig) -> Tensor:
    """Rows in llama.cpp's order: its Llama rotates neighbouring rows of a head, transformers' the two halves.

    Of q_proj and k_proj, weights (O, I) and biases (O,); Qwen's graph rotates halves as well.
    """
    return _reordered(source, values, config, (2, -1))


def as_in_transformers(source: str, values: Tensor, config: PreTrainedConfig) -> Tensor:
    """The inverse of `as_in_llama_cpp`."""
    return _reordered(source, values, config, (-1, 2))


def _reordered(source: str, values: Tensor, config: PreTrainedConfig, split: tuple[int, int]) -> Tensor:
    if FAMILIES[config.model_type] != gguf.MODEL_ARCH.LLAMA or not {"q_proj", "k_proj"} & set(source.split(".")):
        return values
    heads = values.shape[0] // head_dim(config)
    return values.reshape(heads, *split, *values.shape[1:]).transpose(1, 2).reshape(values.shape)
