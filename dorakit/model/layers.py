"""The decoder layers of a model: what is compiled, sharded and planned one at a time."""

from __future__ import annotations

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from dorakit.errors import ModelError


def decoder_layers(model: nn.Module, *, to_be: str = "", otherwise: str = "") -> list[nn.Module]:
    """The layers that are of transformers' common kind, in order.

    Args:
        model: A model on any device.
        to_be: What is to be done with them, for the message; without it a model may have none.
        otherwise: What to set instead.

    Raises:
        ModelError: There are none and `to_be` is given.
    """
    layers: list[nn.Module] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if to_be and not layers:
        raise ModelError(f"{type(model).__name__} has no decoder layers that can be {to_be}\n  set {otherwise}")
    return layers
