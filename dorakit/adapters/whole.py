"""Modules trained whole beside an adapter (`modules_to_save`): the frozen original and a float32 copy that learns."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class TrainedCopy(nn.Module):
    """A module whose float32 copy is trained; its parameters are cast to the original's dtype in every forward pass.

    Attributes:
        base: The frozen original.
        copy: The copy. Tied modules (embedding and head) share one trained parameter.
        enabled: False lets the original answer.
    """

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base
        self.copy = copy.deepcopy(base).float().requires_grad_(True)
        self.enabled = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Whatever the module does."""
        if not self.enabled:
            return self.base(*args, **kwargs)
        dtype = next(self.base.parameters()).dtype
        cast = {name: parameter.to(dtype) for name, parameter in self.copy.named_parameters()}
        return torch.func.functional_call(self.copy, cast, args, kwargs)

    @property
    def weight(self) -> Tensor:
        """What transformers asks embeddings for."""
        active = self.copy if self.enabled else self.base
        assert isinstance(active.weight, Tensor)
        return active.weight
