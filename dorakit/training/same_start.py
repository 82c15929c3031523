"""What makes sure that all ranks begin alike: they compare what they are about to do, and take over what the first restored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dorakit.parallel.world import World
from dorakit.training.checkpoint import Checkpoint
from dorakit.training.optim import Updater
from dorakit.training.resume import Facts, moves_bytes
from dorakit.training.trained import is_shared_out, restore_trained, trained_tensors


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


def put_in_(world: World, model: nn.Module, updater: Updater, checkpoint: Checkpoint | None) -> None:
    """Give every rank what the first one goes on with: trained tensors and the optimizer's state of its checkpoint.

    Args:
        world: The group.
        model: Its trained parameters are overwritten.
        updater: Its state is overwritten.
        checkpoint: On the first rank. None where the run begins: then what the first rank would begin with.

    Raises:
        RunError: The trained tensors differ afterwards.
    """
    if checkpoint is None and world.size == 1:
        return
    trained, state, numbers = None, None, None
    if checkpoint is not None:
        trained, state, numbers = checkpoint.trained, checkpoint.optimizer, checkpoint.state["optimizer"]
    numbers = world.from_first(lambda: numbers)
    if numbers is not None:
        put_in_trained_(world, model, trained)
        updater.restore(_handed_out(world, model, state), numbers)
    elif not is_shared_out(model):  # else each rank has its rows of the base
        put_in_trained_(world, model, trained_tensors(model))
    own = [(name, tensor) for name, tensor in trained_tensors(model).items() if not isinstance(tensor, DTensor)]
    world.agree({"the trained weights": _digest(f"{name} {_checksum(tensor)}" for name, tensor in own)})


def put_in_trained_(world: World, model: nn.Module, tensors: dict[str, Tensor] | None) -> None:
    """Overwrite the trained parameters on every rank with tensors of the first one; elsewhere they may be None."""
    restore_trained(model, _handed_out(world, model, tensors))


def _handed_out(world: World, model: nn.Module, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The first rank's tensors, on every rank; where each takes only its rows, on the others what they are like instead."""
    described: list[tuple[str, list[int], str]] = world.from_first(
        lambda: [(name, list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in (tensors or {}).items()]
    )
    found = tensors
    if found is None:
        found = {n: torch.empty(size, dtype=getattr(torch, dtype), device="meta") for n, size, dtype in described}
    keeps = is_shared_out(model)
    return {name: t if keeps and t.dim() else world.tensor_from_first(t) for name, t in found.items()}


def _checksum(tensor: Tensor) -> int:
    """Of a tensor's bytes, fast on any device."""
    return int(tensor.detach().contiguous().view(-1).view(torch.uint8).sum(dtype=torch.int64))


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
