"""The trained tensors of a model: taken, put back, written to a file, read."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dorakit.errors import RunError
from dorakit.files import give_rights_of_new, naming
from dorakit.model.weights_check import check_weights
from dorakit.parallel.sharding import reshard_, rows_of_first


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name; where they are shared out, this rank's rows as DTensors."""
    reshard_(model)
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def is_shared_out(model: nn.Module) -> bool:
    """Whether each rank has only its rows of what is trained."""
    return any(isinstance(tensor, DTensor) for tensor in trained_tensors(model).values())


@torch.no_grad()
def restore_trained(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Write saved parameters back in place.

    Of parameters that are shared out, the first rank's tensors are taken; those of the others may be on the meta device.

    Raises:
        RunError: As `check_fits`; nothing was written.
    """
    check_fits(model, tensors)
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor) and parameter.requires_grad:
            parameter.to_local().copy_(rows_of_first(tensors[name], parameter))
        elif parameter.requires_grad:
            parameter.copy_(tensors[name])


def check_fits(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Compare saved parameters with the model's.

    Raises:
        RunError: Names or shapes differ.
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


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to a safetensors file, with the rights that the umask leaves."""
    with naming(path):
        save_file(_apart(tensors), path)
    give_rights_of_new(path)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each in a storage of its own, as safetensors wants it.

    Most are views of a flat buffer, and the 8-bit states of all groups have one table between them.
    """
    apart, taken = {}, set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage()
        if storage.nbytes() != own.nbytes or storage.data_ptr() in taken:
            own = own.clone()
        taken.add(own.untyped_storage().data_ptr())
        apart[name] = own
    return apart


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
