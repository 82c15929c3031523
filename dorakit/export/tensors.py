"""The tensors of the plain model that a live one amounts to: adapters merged in, NF4 dequantized, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from dorakit.adapters.layer import AdapterLinear
from dorakit.adapters.whole import TrainedCopy
from dorakit.model.linear import is_linear
from dorakit.model.nf4 import NF4Linear


@dataclass(frozen=True)
class PlainTensor:
    """One tensor of the plain model, made when asked for.

    `name` is what the checkpoint calls it, `owner` the name of its module in the live model. `make` gives it in float32
    where it is merged or dequantized, else as it stands.
    """

    name: str
    shape: torch.Size
    make: Callable[[], Tensor]
    owner: str
    is_linear_weight: bool = False


@dataclass(frozen=True)
class PlainModel:
    """All tensors of the plain model, tied ones once, and whether embedding and head are one tensor."""

    tensors: list[PlainTensor]
    is_tied: bool


@torch.no_grad()
def plain_model(model: PreTrainedModel) -> PlainModel:
    """Take stock of a live model: adapters attached or not, dense or NF4, modules trained whole.

    Weights that the architecture ties are listed once if they are equal. If they are not, as after training only one of
    them, both are listed and `is_tied` is False.
    """
    tensors = {tensor.name: tensor for tensor in _walk(model, "")}
    is_tied = False
    for target, source in model.all_tied_weights_keys.items():
        if target in tensors and source in tensors:
            if _same(tensors[target].make(), tensors[source].make()):
                del tensors[target]
                is_tied = True
            else:
                return PlainModel(_checkpoint_names(model, {t.name: t for t in _walk(model, "")}), False)
    return PlainModel(_checkpoint_names(model, tensors), is_tied)


def _walk(module: nn.Module, owner: str) -> Iterator[PlainTensor]:
    """The tensors of a module and all inside it; `owner` is its name, "" for the model."""
    prefix = f"{owner}." if owner else ""
    if isinstance(module, (AdapterLinear, NF4Linear)):
        shape = torch.Size((module.out_features, module.in_features))
        yield PlainTensor(f"{prefix}weight", shape, partial(_dense, module), owner, is_linear_weight=True)
        bias = module.base.bias if isinstance(module, AdapterLinear) else module.bias
        if isinstance(bias, Tensor):
            yield PlainTensor(f"{prefix}bias", bias.shape, bias.detach, owner)
    elif isinstance(module, TrainedCopy):
        yield from _walk(module.copy, owner)
    else:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                is_weight = name == "weight" and is_linear(module)
                yield PlainTensor(f"{prefix}{name}", parameter.shape, parameter.detach, owner, is_weight)
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield PlainTensor(f"{prefix}{name}", buffer.shape, buffer.detach, owner)
        for name, child in module.named_children():
            yield from _walk(child, f"{prefix}{name}")


def _dense(module: AdapterLinear | NF4Linear) -> Tensor:
    return module.merged_weight() if isinstance(module, AdapterLinear) else module.dequantize(torch.float32)


def _same(left: Tensor, right: Tensor) -> bool:
    return left is right or left.data_ptr() == right.data_ptr() or torch.equal(left, right)


def _checkpoint_names(model: PreTrainedModel, tensors: dict[str, PlainTensor]) -> list[PlainTensor]:
    """Undo the renaming that transformers does for some families when it loads them.

    Where that means more than new names (experts split again), the tensors are made here, all of them.
    """
    stand_ins = {name: torch.empty(tensor.shape, device="meta") for name, tensor in tensors.items()}
    owner = {id(stand_in): tensors[name] for name, stand_in in stand_ins.items()}
    conversions = getattr(model, "_weight_conversions", None)
    # Reading a quantized checkpoint is a conversion too, and not one to undo.
    kept = [c for c in conversions or [] if not any("quant_state" in pattern for pattern in c.source_patterns)]
    if conversions is not None:
        model._weight_conversions = kept
    try:
        reverted = revert_weight_conversion(model, dict(stand_ins))
        if all(id(stand_in) in owner for stand_in in reverted.values()):
            return [replace(owner[id(stand_in)], name=name) for name, stand_in in reverted.items()]
        made = {name: tensor.make() for name, tensor in tensors.items()}
        owner = {id(tensor): tensors[name] for name, tensor in made.items()}
        return [
            replace(owner[id(tensor)], name=name, make=tensor.detach)
            if id(tensor) in owner
            else PlainTensor(name, tensor.shape, tensor.detach, name.rpartition(".")[0])
            for name, tensor in revert_weight_conversion(model, dict(made)).items()
        ]
    finally:
        if conversions is not None:
            model._weight_conversions = conversions
