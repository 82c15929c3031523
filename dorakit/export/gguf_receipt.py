"""Read a GGUF file back, and compare the answers of its dequantized weights with those of the model that it was written from,
both computed in float32.

llama.cpp also rounds the activations of quantized products to 8 bits, which is not in these figures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf.quants import dequantize
from torch import nn
from transformers import PreTrainedModel

from dorakit.errors import Gate, GateError
from dorakit.export.destination import check_space
from dorakit.export.gguf_file import PackedTensor, as_in_transformers
from dorakit.export.receipt import compare_logits, logits_bytes, sample_rows, store_logits, with_share_lost
from dorakit.model.load import load_base
from dorakit.recipe.schema import Recipe


def gguf_receipt(
    source: Path,
    file: Path,
    packed: Mapping[str, PackedTensor],
    *,
    recipe: Recipe | None,
    learned: dict[str, Any] | None,
    scratch: Path,
) -> dict[str, Any]:
    """Read a file back and compare it with the model directory that it was written from.

    Args:
        source: The model directory.
        file: The GGUF file.
        packed: What was written, by the file's name of each tensor.
        recipe: Names the rows to compare on.
        learned: KL(live || base) by part, as `learned_of` gives it.
        scratch: An empty directory for logits.

    Raises:
        GateError: A tensor of the file is not the one that was written.
    """
    base = load_base(str(source), dtype="float32")
    samples, compared_on = sample_rows(recipe, base.tokenizer)
    check_space(scratch, logits_bytes(base.model, samples))
    store_logits(base.model.eval(), samples, scratch)
    _take_weights_(base.model, file, packed)
    found = with_share_lost(compare_logits(base.model, samples, scratch), learned)
    return {"rows": len(samples), "compared_on": compared_on, "computed_in": "float32", **found}


@torch.no_grad()
def _take_weights_(model: PreTrainedModel, file: Path, packed: Mapping[str, PackedTensor]) -> None:
    """Give a float32 model the weights of a file, in place."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for name, written in packed.items():
        tensor = stored.get(name)
        if tensor is None or hashlib.sha256(tensor.data.tobytes()).hexdigest() != written.sha256:
            raise GateError(
                f"{file.name}: {name} on the disk is not the tensor that was written\n"
                "  nothing was kept; this is a fault of this machine's memory or disk, or of dorakit: please report it",
                Gate("wrong_weights", 1, 0),
            )
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        parameter: nn.Parameter = model.get_parameter(written.source)
        parameter.copy_(as_in_transformers(written.source, values.reshape(parameter.shape), model.config))
