"""Bat, the form of MiSS that multiplies by W (arXiv:2409.15371; Bone in the first versions of the paper).

W is cut into R x R blocks W_ab, a = 1 .. O/R and b = 1 .. I/R, and each row of blocks has one trained D_a:

    U_ab = W_ab D_a + D_a
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dorakit.adapters.layer import AdapterLinear
from dorakit.adapters.unfactored import UnfactoredLinear
from dorakit.errors import ModelError
from dorakit.model.linear import sizes


class BatLinear(UnfactoredLinear):
    """One small matrix for each row of blocks is trained.

    Attributes:
        miss_block: D, float32 (O / R, R, R), zero at the start.
    """

    update_name: ClassVar = "bat"
    peft_type: ClassVar = "MISS"
    peft_values: ClassVar = {"miss_dropout": "dropout"}
    on_disk: ClassVar = {"miss_block": "miss_block"}
    rank_dim: ClassVar = {"miss_block": 1}
    grows: ClassVar = "miss_block"

    def build_(self, device: torch.device, generator: torch.Generator | None, *, common: int) -> None:  # type: ignore[override]
        """Zeros. `common` is the greatest number that divides the sides of all layers."""
        if self.out_features % self.rank or self.in_features % self.rank:
            fitting = ", ".join(str(rank) for rank in range(1, common + 1) if common % rank == 0)
            raise ModelError(
                f"update bat cuts W into blocks of rank x rank, and rank {self.rank} does not divide its sides "
                f"{self.out_features} x {self.in_features}\n  ranks that divide those of all targets: {fitting}"
            )
        self.miss_block = nn.Parameter(torch.zeros(self.out_features // self.rank, self.rank, self.rank, device=device))

    @classmethod
    def shared(cls, bases: list[nn.Module], *, rank: int, **settings: Any) -> dict[str, Any]:
        """The greatest common divisor of all sides, as `common`."""
        return {"common": math.gcd(*(side for base in bases for side in sizes(base))), **settings}

    def change(self, weight_OI: Tensor) -> Tensor:
        """W_ab D_a + D_a."""
        rows, rank = self.miss_block.shape[:2]
        product = torch.bmm(weight_OI.reshape(rows, -1, rank), self.miss_block).view(rows, rank, -1, rank)
        return (product + self.miss_block[:, :, None]).view(weight_OI.shape)

    @classmethod
    def is_described_by(cls, config: dict[str, Any]) -> bool:
        """MissConfig with init_weights bat."""
        return super().is_described_by(config) and config.get("init_weights") == "bat"

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> dict[str, Any]:
        """MissConfig."""
        return {"dropout": float(config.get("miss_dropout") or 0.0), "settings": {}}

    @classmethod
    def to_peft(cls, layers: dict[str, AdapterLinear], rank: int) -> dict[str, Any]:
        """MissConfig."""
        return {"miss_dropout": next(iter(layers.values())).dropout.p, "init_weights": "bat", "bias": "none"}
