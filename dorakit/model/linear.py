"""Frozen linear layers, y = W x + b, as adapters, exports and plans see them: sizes, W and `.bias`, whatever stores W.

A new kind of layer is a line in `KINDS`, and a `.bias` attribute (out,) or None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dorakit.errors import ModelError
from dorakit.model.names import has_suffix
from dorakit.model.nf4 import ROWS_AT_ONCE, NF4Linear


@dataclass(frozen=True)
class Kind:
    """How to read one kind of layer: W (out, in) in the dtype that the layer computes in, and its sizes (out, in)."""

    weight: Callable[[Any], Tensor]
    sizes: Callable[[Any], tuple[int, int]] = lambda layer: (layer.out_features, layer.in_features)


KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: Kind(lambda layer: layer.weight.detach()),
    NF4Linear: Kind(NF4Linear.dequantize),
}


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a layer of one of the kinds, or of a class derived from one."""
    return isinstance(module, tuple(KINDS))


def sizes(base: nn.Module) -> tuple[int, int]:
    """(out, in)."""
    return _kind(base).sizes(base)


def dense_weight(base: nn.Module) -> Tensor:
    """The weight in use, (out, in), in the dtype that the product is computed in. Not to be changed in place.

    Raises:
        ModelError: The module is no linear layer.
    """
    return _kind(base).weight(base)


def row_norm_squared(base: nn.Module) -> Tensor:
    """float32 (out,): squared norm of each row of the weight in use, without a whole float32 copy of it."""
    if isinstance(base, NF4Linear) and not base.has_all_rows:
        return base.whole_norm_squared
    slices = torch.split(dense_weight(base), ROWS_AT_ONCE)
    return torch.cat([rows.float().square().sum(dim=1) for rows in slices])


def is_storable(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether NF4 can store a dense layer: nn.Linear itself, since a derived class may compute something else."""
    return type(module) is nn.Linear


def layers_to_store(model: PreTrainedModel, skip_modules: Sequence[str]) -> list[tuple[str, nn.Linear]]:
    """Name and layer of the dense layers that NF4 is to store: all but the output head and the name suffixes to skip.

    A suffix that names an adapter skips the layer inside it.
    """
    head = model.get_output_embeddings()
    return [
        (name, module)
        for name, module in model.named_modules()
        if is_storable(module)
        and module is not head
        and not any(has_suffix(name.removesuffix(".base"), suffix) for suffix in skip_modules)
    ]


def _kind(base: nn.Module) -> Kind:
    for kind, reading in KINDS.items():
        if isinstance(base, kind):
            return reading
    raise ModelError(f"a {type(base).__name__} has no dense weight: only linear layers, dense or NF4")
