"""The trained tensors of a model: taken, put back, written to a file, read."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dorakit.errors import RunError
from dorakit.files import naming
from dorakit.model.weights_check import check_weights


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def restore_trained(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Write saved parameters back in place.

    Raises:
        RunError: Names or shapes differ from the model's; nothing was written.
    """
    own = trained_tensors(model)
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise RunError(f"the checkpoint does not fit the model: {len(odd)} tensors differ, the first is {odd[0]}")
    for name, parameter in own.items():
        if parameter.shape != tensors[name].shape:
            raise RunError(
                f"the checkpoint does not fit the model: {name} is {tuple(tensors[name].shape)}, "
                f"expected {tuple(parameter.shape)}"
            )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(tensors[name])


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to a safetensors file that others may read."""
    with naming(path):
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)
    path.chmod(0o644)  # safetensors leaves 0600


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote, onto the CPU.

    Raises:
        RunError: It is missing or damaged.
    """
    try:
        check_weights(path, error=RunError, advice="put it back, or start a new run")
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}\n  put it back, or start a new run") from None
    return tensors
