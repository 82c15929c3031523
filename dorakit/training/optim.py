"""Optimizers over flat buffers, and learning rate as a pure function of the step.

All parameters of a group are views of one flat float32 buffer, and so are their gradients. Every rule here works
element by element, so nothing changes but the number of kernels, and paging becomes true: bitsandbytes pages no state
under 1e5 elements, which is most adapter matrices on their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import dorakit.model.nf4  # noqa: F401  first: it quiets bitsandbytes, and keeps it from a hub

import bitsandbytes as bnb  # isort: skip

from dorakit.recipe.schema import OptimizerSection
from dorakit.training.device import why_not_paged
from dorakit.training.groups import GroupSpec
from dorakit.training.optim_groups import FlatGroup, ShardedGroup, under
from dorakit.training.rules.rule import Rule

SMALLEST_PAGED = 100_000  # bitsandbytes' own limit, in elements
_UNPAGED = {"paged_adamw": "adamw_32bit", "paged_adamw_8bit": "adamw_8bit", "paged_adamw_32bit": "adamw_32bit"}


def learning_rate(step: int, total_steps: int, settings: OptimizerSection) -> float:
    """Learning rate of the step-th update (0-based): linear warmup, then cosine or linear to 0, or constant."""
    warmup = settings.warmup_steps
    if warmup is None:
        warmup = math.ceil(settings.warmup_ratio * total_steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - warmup) / max(1, total_steps - warmup)
    left = (1 + math.cos(math.pi * progress)) / 2 if settings.schedule == "cosine" else 1 - progress
    return settings.learning_rate * left


def keeps_alike(name: str, other: str) -> bool:
    """Whether the state of one optimizer can go on as the state of the other: they differ at most in paging."""
    return _UNPAGED.get(name, name) == _UNPAGED.get(other, other)


class Updater:
    """The optimizer with its flat groups.

    Attributes:
        notes: Lines to print and record: an optimizer that this machine cannot run as asked, what pages.
    """

    def __init__(self, specs: list[GroupSpec], settings: OptimizerSection, rule: Rule | None = None):
        self._rule = rule
        self.notes: list[str] = []
        self._groups: list[FlatGroup | ShardedGroup] = [
            (ShardedGroup if isinstance(spec.parameters[0], DTensor) else FlatGroup)(
                spec.name, spec.parameters, rate_ratio=spec.rate_ratio, weight_decay=spec.weight_decay
            )
            for spec in specs
        ]
        self._optimizer = self._build(settings)

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients to be summed over the ranks: few, long float32 buffers, to be changed in place.

        Those of shards are none of them: FSDP has summed them.
        """
        return [group.grad for group in self._groups if isinstance(group, FlatGroup)]

    def zero_grad(self) -> None:
        """Make all gradients zero."""
        for group in self._groups:
            group.zero_grad()

    def clip(self, max_norm: float) -> float:
        """Let the rule rewrite the gradient, and scale it to `max_norm` if it is longer (0 never scales).

        Returns its norm before it is scaled.

        A norm that is not finite is returned and scales nothing.
        """
        if self._rule is not None:
            self._rule.on_gradients()
        for group in self._groups:
            group.collect()
        norm = float(torch.stack([group.grad_norm() for group in self._groups]).norm())
        if max_norm and math.isfinite(norm) and norm > max_norm:
            for group in self._groups:
                torch._foreach_mul_(group.grads, max_norm / (norm + 1e-6))
        return norm

    def step(self, rate: float) -> None:
        """One update at this learning rate."""
        for group, settings in zip(self._groups, self._optimizer.param_groups, strict=True):
            settings["lr"] = rate * group.rate_ratio
            group.collect()
        self._optimizer.step()
        # The parameters are views that autograd does not know of, and bitsandbytes writes past it altogether.
        flat = [group for group in self._groups if isinstance(group, FlatGroup)]
        torch.autograd.graph.increment_version([p for group in flat for p in group.members])

    def state(self, *, keep: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The optimizer's state: tensors, and plain numbers, keyed `group.name`, then `group-2.name` and so on.

        That of parameters which are shared out comes whole, to where `keep` is set; every rank must call it then.
        """
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, Any] = {}
        for group in self._groups:
            own_tensors: dict[str, Tensor] = {}
            for place, piece in group.pieces.items():
                for name, value in self._optimizer.state[piece].items():
                    if isinstance(value, Tensor):
                        own_tensors[f"{place}.{name}"] = value
                    else:
                        numbers |= {f"{saved}.{name}": value for saved in group.saved_places(place)}
            tensors |= group.saved(own_tensors, keep=keep)
        return tensors, numbers

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Put a state back; state tensors that exist are written in place, so that paged memory stays paged.

        Where parameters are shared out, every rank must call it, and has of each tensor at least shape and dtype.
        """
        for index, group in enumerate(self._groups):
            own_tensors = group.held(tensors)
            for number, (place, piece) in enumerate(group.pieces.items()):
                state = self._optimizer.state[piece]
                if hasattr(self._optimizer, "init_state"):
                    self._optimizer.init_state(self._optimizer.param_groups[index], piece, index, number)
                state |= under(group.saved_places(place)[0], numbers)
                for name, tensor in under(place, own_tensors).items():
                    if isinstance(state.get(name), Tensor):
                        state[name].copy_(tensor)
                    else:
                        state[name] = tensor.clone() if name == "step" else tensor.to(piece.device)

    def _build(self, settings: OptimizerSection) -> torch.optim.Optimizer:
        name = settings.name
        if name in _UNPAGED:
            pieces = [piece for group in self._groups for piece in group.pieces.values()]
            if why := why_not_paged(pieces):
                self.notes.append(f"asked: {name}, using: {_UNPAGED[name]} ({why})")
                name = _UNPAGED[name]  # type: ignore[assignment]
            else:
                sizes = [piece.numel() for piece in pieces]
                total, paged = sum(sizes), sum(size for size in sizes if size >= SMALLEST_PAGED)
                self.notes.append(f"optimizer states of {paged:,} of {total:,} parameters are paged")
        groups = [{"params": [*group.pieces.values()], "weight_decay": group.weight_decay} for group in self._groups]
        adam: dict[str, Any] = {"lr": settings.learning_rate, "betas": settings.betas, "eps": settings.eps}
        rules: dict[str, Callable[[], torch.optim.Optimizer]] = {
            "adamw": lambda: torch.optim.AdamW(groups, **adam),
            "sgd": lambda: torch.optim.SGD(groups, lr=settings.learning_rate),
            "adamw_32bit": lambda: bnb.optim.AdamW32bit(groups, **adam),
            "adamw_8bit": lambda: bnb.optim.AdamW8bit(groups, **adam),
            "paged_adamw": lambda: bnb.optim.PagedAdamW(groups, **adam),
            "paged_adamw_8bit": lambda: bnb.optim.PagedAdamW8bit(groups, **adam),
            "paged_adamw_32bit": lambda: bnb.optim.PagedAdamW32bit(groups, **adam),
            "lion_8bit": lambda: bnb.optim.Lion8bit(groups, lr=settings.learning_rate, betas=settings.betas),
        }
        return rules[name]()


def num_trained(model: nn.Module) -> int:
    """Number of trained parameters; shared ones count once."""
    return sum(p.numel() for p in _unique(model.parameters()) if p.requires_grad)


def _unique(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return list({id(p): p for p in parameters}.values())
