"""A model's weights as NF4 on their way to disk, and the ledger of what that did to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dorakit.export.tensors import PlainTensor
from dorakit.model.names import has_suffix
from dorakit.model.nf4 import NF4Format, NF4Linear


@dataclass
class Ledger:
    """What happens to the tensors as they stream by: relative errors per layer, sizes, what stays as it is."""

    errors: dict[str, float] = field(default_factory=dict)
    row_norm_errors: dict[str, float] = field(default_factory=dict)
    row_norms_not_kept: list[str] = field(default_factory=list)
    bytes_before: int = 0
    kept: list[str] = field(default_factory=list)


def spread(errors: dict[str, float]) -> dict[str, Any]:
    """Errors per layer as quantize.json holds them."""
    worst = max(errors, key=lambda name: errors[name])
    return {"mean": sum(errors.values()) / len(errors), "max": errors[worst], "worst": worst, "layers": errors}


def _can_be_nf4(tensor: PlainTensor, skipped: tuple[str, ...]) -> bool:
    """Of a linear layer's weight, whether it is to be quantized and its rows can be packed."""
    return tensor.shape[1] % 2 == 0 and not any(has_suffix(tensor.owner, suffix) for suffix in skipped)


def nf4_bytes(tensor: PlainTensor, skipped: tuple[str, ...], form: NF4Format) -> float:
    """Bytes that a tensor will take, all but a few."""
    if tensor.is_linear_weight and _can_be_nf4(tensor, skipped):
        return tensor.shape.numel() * (0.53 if form.double_quant else 0.57)
    return tensor.shape.numel() * 2


def nf4_tensors(
    tensors: list[PlainTensor],
    skipped: tuple[str, ...],
    form: NF4Format,
    half: torch.dtype,
    keep_row_norms: bool,
    ledger: Ledger,
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors as bitsandbytes' checkpoints have them; the ledger is filled on the way.

    Args:
        tensors: The model's, dense, made one at a time.
        skipped: Name suffixes of linear layers that stay in `half`.
        form: How to store the others.
        half: 16-bit dtype that everything is rounded to first.
        keep_row_norms: See `NF4Linear.from_dense`; a layer whose rows are no whole blocks goes without, into the ledger.
        ledger: Changed in place.
    """
    for tensor in tensors:
        dense = tensor.make()
        if dense.is_floating_point():
            dense = dense.to(half)
        ledger.bytes_before += dense.nbytes
        if not tensor.is_linear_weight:
            yield tensor.name, dense
        elif not _can_be_nf4(tensor, skipped):
            ledger.kept.append(tensor.owner)
            yield tensor.name, dense
        else:
            whole_blocks = dense.shape[1] % form.block_size == 0
            if keep_row_norms and not whole_blocks:
                ledger.row_norms_not_kept.append(tensor.owner)
            layer = NF4Linear.from_dense(dense, None, form, keep_row_norms=keep_row_norms and whole_blocks)
            dense = dense.float()
            found, norm = layer.dequantize(torch.float32), layer.original_row_norm
            ledger.errors[tensor.owner] = float((found - dense).norm() / dense.norm().clamp_min(1e-30))
            ledger.row_norm_errors[tensor.owner] = float(
                (found.norm(dim=1) - norm).norm() / norm.norm().clamp_min(1e-30)
            )
            for suffix, part in layer.quant_tensors().items():
                yield tensor.name + suffix, part
