"""Write, find and check initial.safetensors beside an adapter: A0 and B0 of a start that changed the base."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from dorakit.adapters.attach import adapter_layers
from dorakit.adapters.initial import Initial, read_initial, save_initial
from dorakit.adapters.peft_config import read_config, start_of
from dorakit.errors import ModelError


def save_initial_of(model: nn.Module, directory: Path) -> None:
    """Write initial.safetensors of a model's adapters, where their start changed the base."""
    layers = {name: layer for name, layer in adapter_layers(model) if layer.initial is not None}
    if layers:
        found = {name: (layer.initial, layer.scaling) for name, layer in layers.items() if layer.initial is not None}
        save_initial(directory, next(iter(layers.values())).start, found)


def initial_of(directory: Path) -> Initial | None:
    """Read the start of the adapter in a directory; None if its start left the base as it was.

    Raises:
        ModelError: It cannot be read, or is of another start than the adapter.
    """
    if (start := start_of(read_config(directory))) == "kaiming":
        return None
    found = read_initial(directory)
    if found.start != start:
        raise ModelError(
            f"{directory}: the adapter began with {start}, and its initial.safetensors is of {found.start}"
        )
    return found


@torch.no_grad()
def check_initial(model: nn.Module, directory: Path) -> None:
    """Read back what `save_initial_of` wrote, and compare it bit for bit with the model.

    Raises:
        ModelError: A tensor is missing, or another one.
    """
    layers = {name: layer for name, layer in adapter_layers(model) if layer.initial is not None}
    saved = read_initial(directory) if layers else None
    for name, layer in layers.items():
        assert saved is not None and layer.initial is not None
        if not all(map(torch.equal, saved.pair(name), (factor.cpu() for factor in layer.initial))):
            raise ModelError(
                f"{directory}: A0 and B0 of {name} read back as something else than what training began with"
            )
