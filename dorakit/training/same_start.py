"""What makes sure that all ranks begin alike: they compare what they are about to do, and take over what the first restored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dorakit.parallel.world import World
from dorakit.training.optim import Updater
from dorakit.training.resume import Facts, moves_bytes
from dorakit.training.trained import restore_trained, trained_tensors


def agree(world: World, facts: Facts, model: nn.Module) -> None:
    """Compare recipe, rows, chat template and base of all ranks, the base by its bytes in memory: each rank quantizes its own.

    Raises:
        RunError: Two differ.
    """
    if world.size == 1:
        return
    recipe = {key: value for key, value in facts.recipe.items() if moves_bytes(key)}
    # A share of the base is another one on every rank.
    frozen: list[tuple[str, Tensor]] = [
        (name, t) for name, t in model.named_parameters() if not t.requires_grad and not isinstance(t, DTensor)
    ]
    frozen += list(model.named_buffers())  # of NF4 these were made from the whole weight
    world.agree(
        {
            "the recipe": _digest([json.dumps(recipe, sort_keys=True)]),
            "the rows": facts.data,
            "the chat template": facts.template,
            "the files of the base": _digest([json.dumps(facts.base, sort_keys=True)]),
            "the base in memory": _digest(f"{name} {_checksum(tensor)}" for name, tensor in frozen),
        }
    )


def share_restored(world: World, model: nn.Module, updater: Updater) -> None:
    """Give every rank the trained tensors and the optimizer's state that the first one has.

    Raises:
        RunError: The trained tensors differ afterwards.
    """
    if world.size == 1:
        return
    trained, tensors, numbers = world.from_first(
        lambda: ({name: tensor.cpu() for name, tensor in trained_tensors(model).items()}, *_on_cpu(updater))
    )
    if not world.is_first:
        restore_trained(model, trained)
        if tensors:
            updater.restore(tensors, numbers)
    own = trained_tensors(model).items()
    world.agree({"the trained weights": _digest(f"{name} {_checksum(tensor)}" for name, tensor in own)})


def _on_cpu(updater: Updater) -> tuple[dict[str, Tensor], dict[str, object]]:
    tensors, numbers = updater.state()
    return {name: tensor.cpu() for name, tensor in tensors.items()}, numbers


def _checksum(tensor: Tensor) -> int:
    """Of a tensor's bytes, fast on any device."""
    return int(tensor.detach().contiguous().view(-1).view(torch.uint8).sum(dtype=torch.int64))


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
