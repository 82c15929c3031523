"""An adapted layer seen from W, the weight before any start changed the base: W = W_res + s B0 A0.

Shapes: I in, O out, R rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dorakit.model.linear import dense_weight

if TYPE_CHECKING:
    from dorakit.adapters.layer import AdapterLinear


@torch.no_grad()
def original_weight(layer: AdapterLinear) -> Tensor:
    """W (O, I); float32 where a start changed the base, else as the base has it."""
    weight_OI = dense_weight(layer.base)
    if layer.initial is None:
        return weight_OI
    a0_RI, b0_OR = layer.initial
    return weight_OI.float().addmm(b0_OR, a0_RI, alpha=layer.scaling)


def original_base(layer: AdapterLinear) -> nn.Module:
    """The base as it was before any start: the base itself, or a dense layer with W in its dtype."""
    if layer.initial is None:
        return layer.base
    bias = layer.base.bias
    dense = nn.Linear(layer.in_features, layer.out_features, bias=bias is not None, device="meta")
    dense.weight = nn.Parameter(original_weight(layer).to(dense_weight(layer.base).dtype), requires_grad=False)
    dense.bias = bias  # type: ignore[assignment]
    return dense


def change_factors(layer: AdapterLinear) -> tuple[Tensor, Tensor]:
    """A' and B' with s B' A' the change of W without a magnitude: A and B, or of rank 2 R, [A; A0] and [B, -B0]."""
    a_RI, b_OR = layer.factors()
    if layer.initial is None:
        return a_RI, b_OR
    a0_RI, b0_OR = layer.initial
    return torch.cat([a_RI, a0_RI]), torch.cat([b_OR, -b0_OR], dim=1)
