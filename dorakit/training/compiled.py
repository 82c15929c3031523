"""torch.compile, one decoder layer at a time.

A model's layers are alike, so that one of them is compiled and all of them use it. Shapes are dynamic: no batch has the
length of the last.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from transformers import PreTrainedModel

from dorakit.adapters.attach import adapter_layers
from dorakit.model.layers import decoder_layers


def compile_layers_(model: PreTrainedModel) -> None:
    """Compile the decoder layers of a model, in place; they are compiled when they first run.

    Raises:
        ModelError: The architecture's layers are not of transformers' common kind.
    """
    layers = decoder_layers(model, to_be="compiled", otherwise="training.compile: false")
    adapted = [layer for _, layer in adapter_layers(model)]

    def before(*_: Any) -> None:
        for layer in adapted:
            layer.update_norm()

    model.base_model.register_forward_pre_hook(before)
    for layer in layers:
        layer.compile(dynamic=True)


def not_compiled() -> contextlib.AbstractContextManager[object]:
    """The same model without what was compiled: evaluation is another program, which would be compiled for a few batches."""
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]
