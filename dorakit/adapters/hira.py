"""HiRA (ICLR 2025, openreview.net/forum?id=TwJrTz9cRS): y = W x + (W * (B A)) x, with the elementwise product *.

The change has a rank of up to R times W's. Its product is computed as one dense matrix product. As R products with W,
U x = sum_j b_j * (W (a_j * x)), it needs no (O, I) matrix of its own, and R times the work.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dorakit.adapters.layer import AdapterLinear
from dorakit.adapters.lora import kaiming
from dorakit.adapters.unfactored import UnfactoredLinear


class HiRALinear(UnfactoredLinear):
    """A and B are trained.

    Attributes:
        hira_A: A, float32 (R, I), Kaiming-uniform at the start.
        hira_B: B, float32 (O, R), zero at the start.
    """

    update_name: ClassVar = "hira"
    peft_type: ClassVar = "HIRA"
    peft_values: ClassVar = {"hira_dropout": "dropout", "rank_pattern": "ranks"}
    on_disk: ClassVar = {"hira_A": "hira_A", "hira_B": "hira_B"}
    rank_dim: ClassVar = {"hira_A": 0, "hira_B": 1}
    grows: ClassVar = "hira_B"

    def build_(self, device: torch.device, generator: torch.Generator | None) -> None:
        """Kaiming and zeros."""
        self.hira_A = kaiming(self.rank, self.in_features, device, generator)
        self.hira_B = nn.Parameter(torch.zeros(self.out_features, self.rank, device=device))

    def change(self, weight_OI: Tensor) -> Tensor:
        """W * (B A)."""
        return weight_OI * (self.hira_B @ self.hira_A)

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> dict[str, Any]:
        """HiraConfig."""
        return {"dropout": float(config.get("hira_dropout") or 0.0), "settings": {}}

    @classmethod
    def to_peft(cls, layers: dict[str, AdapterLinear], rank: int) -> dict[str, Any]:
        """HiraConfig."""
        return {
            "hira_dropout": next(iter(layers.values())).dropout.p,
            "init_weights": True,
            "rank_pattern": {name: layer.rank for name, layer in layers.items() if layer.rank != rank},
            "fan_in_fan_out": False,
        }
