"""A model directory written shard by shard: at no time is more than one shard of it in memory."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dorakit.data.generation_config import write_generation_config
from dorakit.errors import ResourceError
from dorakit.failpoints import reach
from dorakit.files import FULL, give_rights_of_new, naming, write_json
from dorakit.memory import return_freed_memory
from dorakit.model.companions import copy_companions
from dorakit.model.nf4 import NF4Format

SHARD_BYTES = 1_000_000_000


def write_shards(directory: Path, tensors: Iterable[tuple[str, Tensor]], *, limit: int = SHARD_BYTES) -> int:
    """Write tensors as they come, as safetensors files of at most `limit` bytes (one tensor at least), and their index.

    Returns:
        Bytes of all tensors.

    Raises:
        ResourceError: The disk is full.
    """
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    total = size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > limit:
            _write(directory, len(shards), shard)
            shards.append(list(shard))
            shard, size = {}, 0
        # A copy where the tensor is a view: safetensors would write, or refuse, the storage around it.
        shard[name] = tensor.detach().cpu().contiguous().clone()
        size += tensor.nbytes
        total += tensor.nbytes
        return_freed_memory(tensor.nbytes)
    if shard:
        _write(directory, len(shards), shard)
        shards.append(list(shard))
    if len(shards) == 1:
        _numbered(directory, 0).rename(directory / "model.safetensors")
        return total
    weight_map = {}
    for number, names in enumerate(shards):
        final = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        _numbered(directory, number).rename(directory / final)
        weight_map.update(dict.fromkeys(names, final))
    write_json(
        directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )
    return total


def write_description(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: torch.dtype,
    is_tied: bool,
    quantization: dict[str, Any] | None = None,
) -> list[str]:
    """Write everything but the weights: config, generation config, tokenizer with what belongs to it; lines to print.

    Args:
        directory: Where to.
        model: The live model; not changed.
        tokenizer: Its tokenizer, the chat template in it.
        dtype: What config.json says of the weights.
        is_tied: Whether the head's weight is the embedding's.
        quantization: The quantization_config of config.json, None for a plain model.
    """
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    for section in {id(c): c for c in (config, config.get_text_config())}.values():
        section.dtype = dtype
        if hasattr(section, "tie_word_embeddings"):
            section.tie_word_embeddings = is_tied
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if quantization is not None:
        config.quantization_config = quantization
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    notes = copy_companions(model, directory, tokenizer)
    return notes + write_generation_config(directory, model.generation_config, tokenizer)


def bitsandbytes_config(form: NF4Format, half: torch.dtype, kept: list[str]) -> dict[str, Any]:
    """The quantization_config of an NF4 model whose other tensors are `half`; `kept` names linear layers left in it."""
    # Whole module names, since transformers takes an entry for the end of any name ("proj" would be every projection).
    skipped = sorted({"lm_head", *kept})
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": form.double_quant,
        "bnb_4bit_compute_dtype": str(half).removeprefix("torch."),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": skipped,
        "llm_int8_threshold": 6.0,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
    }


def _numbered(directory: Path, number: int) -> Path:
    return directory / f"shard-{number:05d}.safetensors"


def _write(directory: Path, number: int, shard: dict[str, Tensor]) -> None:
    path = _numbered(directory, number)
    try:
        with naming(path):
            save_file(shard, path, metadata={"format": "pt"})
        give_rights_of_new(path)
        reach("shard")
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ResourceError(f"the disk is full: {path.parent} could not be written: {error.strerror}") from None
