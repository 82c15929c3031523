"""Trained parameters as an optimizer is given them: laid end to end in one buffer, or the rows that a rank has."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial

from dorakit.parallel.sharding import rows_of_first, whole_tensors
from dorakit.training.groups import LARGEST_PIECE

T = TypeVar("T")


class FlatGroup:
    """Parameters laid end to end in one buffer, of which they and their gradients become views.

    Attributes:
        grad: The gradient of the whole buffer.
        pieces: What the optimizer is given: the buffer, in consecutive views where it is too long for one.
    """

    def __init__(self, name: str, members: list[nn.Parameter], *, rate_ratio: float, weight_decay: float):
        self.members = members
        self.rate_ratio = rate_ratio
        self.weight_decay = weight_decay
        size = sum(parameter.numel() for parameter in members)
        flat = torch.empty(size, dtype=torch.float32, device=members[0].device)
        self.grad = torch.zeros_like(flat)
        start = 0
        for parameter in members:
            end = start + parameter.numel()
            view = flat[start:end].view(parameter.shape)
            view.copy_(parameter.detach())
            parameter.data = view
            parameter.grad = self.grad[start:end].view(parameter.shape)
            start = end
        self.pieces: dict[str, nn.Parameter] = {}
        for place, part, grad in zip(_places(name, size), _split(flat), _split(self.grad), strict=True):
            self.pieces[place] = piece = nn.Parameter(part)
            piece.grad = grad

    @property
    def grads(self) -> list[Tensor]:
        """All gradients, to be changed in place."""
        return [self.grad]

    def collect(self) -> None:
        """Nothing: backward writes into the buffer."""

    def zero_grad(self) -> None:
        """In place: parameters keep their views."""
        self.grad.zero_()

    def grad_norm(self) -> Tensor:
        """float32 (): norm of the gradient, the same on every rank."""
        norm: Tensor = self.grad.norm()
        return norm

    def saved_places(self, place: str) -> list[str]:
        """Keys under which a checkpoint has what belongs to the piece `place`."""
        return [place]

    def saved(self, tensors: dict[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
        """State tensors keyed `piece.name`, as a checkpoint has them."""
        return tensors

    def held(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """State tensors of a checkpoint, as the pieces here have them."""
        return tensors


class ShardedGroup:
    """Parameters of which this rank has some rows (parallel/sharding.py), updated where they lie.

    What is saved of its state is that of a `FlatGroup` of the whole parameters, so that any number of processes can go on
    with it. No optimizer whose states are in blocks: theirs would be others.
    """

    def __init__(self, name: str, members: list[Any], *, rate_ratio: float, weight_decay: float):
        self.name = name
        self.members: list[DTensor] = members  # as FSDP leaves them; for a type checker they are Parameters
        self.rate_ratio = rate_ratio
        self.weight_decay = weight_decay
        self.pieces = {f"{name}.{i}": nn.Parameter(m.to_local().detach()) for i, m in enumerate(members)}
        self._places = _places(name, sum(member.numel() for member in members))

    @property
    def grads(self) -> list[Tensor]:
        """All gradients that were collected, to be changed in place."""
        return [piece.grad for piece in self.pieces.values() if piece.grad is not None]

    def collect(self) -> None:
        """Take over the gradients that FSDP has made since `zero_grad`."""
        for member, piece in zip(self.members, self.pieces.values(), strict=True):
            piece.grad = torch.zeros_like(piece) if member.grad is None else member.grad.to_local()  # type: ignore[attr-defined]

    def zero_grad(self) -> None:
        """FSDP makes new ones."""
        for member, piece in zip(self.members, self.pieces.values(), strict=True):
            member.grad = piece.grad = None

    def grad_norm(self) -> Tensor:
        """float32 (): norm of the whole gradient; every rank must call it."""
        squared = torch.stack(torch._foreach_norm(self.grads)).square().sum()
        norm: Tensor = DTensor.from_local(squared, self.members[0].device_mesh, [Partial()]).full_tensor().sqrt()
        return norm

    def saved_places(self, place: str) -> list[str]:
        """As of a FlatGroup: the number of steps is the same everywhere."""
        return self._places

    def saved(self, tensors: dict[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
        """As of a FlatGroup, whole where `keep` is set; every rank must call it."""
        found: dict[str, Tensor] = {}
        for name, first in under(f"{self.name}.0", tensors).items():
            if not first.dim():  # the number of steps
                found |= {f"{place}.{name}": first.clone() for place in self._places}
                continue
            shares = {
                place: _as_share_of(member, tensors[f"{place}.{name}"])
                for place, member in zip(self.pieces, self.members, strict=True)
            }
            if whole := whole_tensors(shares, keep=keep):
                flat = torch.cat([tensor.reshape(-1) for tensor in whole.values()])
                found |= {f"{p}.{name}": t for p, t in zip(self._places, _split(flat), strict=True)}
        return found

    def held(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """As of a FlatGroup; of each whole tensor this rank takes its rows, and every rank must call it."""
        found: dict[str, Tensor] = {}
        for name, first in under(self.name, tensors).items():
            if not first.dim():
                found |= {f"{place}.{name}": first for place in self.pieces}
                continue
            flat = first
            if len(self._places) > 1:
                flat = torch.cat([tensors[f"{place}.{name}"] for place in self._places])
            parts = torch.split(flat, [member.numel() for member in self.members])
            for (place, piece), member, part in zip(self.pieces.items(), self.members, parts, strict=True):
                found[f"{place}.{name}"] = rows_of_first(part.view(member.shape), member).to(piece.device)
        return found


def _as_share_of(member: DTensor, rows: Tensor) -> DTensor:
    """`rows`, which belong to this rank's rows of `member`, as its share of something of that shape."""
    return DTensor.from_local(
        rows, member.device_mesh, member.placements, run_check=False, shape=member.shape, stride=member.stride()
    )


def _places(name: str, size: int) -> list[str]:
    """The keys of a flat buffer's pieces."""
    return [name, *(f"{name}-{number}" for number in range(2, -(-size // LARGEST_PIECE) + 1))]


def _split(flat: Tensor) -> tuple[Tensor, ...]:
    return torch.split(flat, LARGEST_PIECE)


def under(place: str, values: dict[str, T]) -> dict[str, T]:
    """The entries keyed `place.name`, keyed `name`."""
    return {key.removeprefix(f"{place}."): value for key, value in values.items() if key.startswith(f"{place}.")}
