"""MiSS (arXiv:2409.15371; its first versions are called Bone): y = W x + D^T p, where p sums x over blocks of r inputs.

That is a LoRA whose A is the frozen matrix of zeros and ones with A[j, i] = 1 where i mod r = j, with B = D^T and s = 1. With
`mini_rank` D has fewer columns, which repeat over the outputs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dorakit.adapters.layer import AdapterLinear
from dorakit.errors import ModelError


class MiSSLinear(AdapterLinear):
    """One matrix is trained.

    Attributes:
        miss_block: D, float32 (R, O or `mini_rank`), zero at the start.
    """

    update_name: ClassVar = "miss"
    peft_type: ClassVar = "MISS"
    peft_values: ClassVar = {"mini_r": "whole", "miss_dropout": "dropout"}
    on_disk: ClassVar = {"miss_block": "miss_block"}
    rank_dim: ClassVar = {"miss_block": 0}
    grows: ClassVar = "miss_block"
    has_alpha: ClassVar = False

    def build_(self, device: torch.device, generator: torch.Generator | None, *, mini_rank: int | None = None) -> None:
        """Zeros."""
        self.mini_rank = mini_rank
        if self.mini_rank is not None and (self.mini_rank < 1 or self.out_features % self.mini_rank):
            raise ModelError(
                f"adapter.miss.mini_rank {self.mini_rank} does not divide the {self.out_features} outputs of a target\n"
                "  set one that divides the outputs of all of them"
            )
        self.miss_block = nn.Parameter(torch.zeros(self.rank, self.mini_rank or self.out_features, device=device))

    def constants(self) -> list[Tensor]:
        """A."""
        return [_block_sum(self.rank, self.in_features, self.miss_block.device)]

    def factors(self) -> tuple[Tensor, Tensor]:
        """The frozen A, and D^T."""
        a_RI = _block_sum(self.rank, self.in_features, self.miss_block.device)
        b_OR = self.miss_block.T
        return a_RI, b_OR.repeat(self.out_features // self.mini_rank, 1) if self.mini_rank else b_OR

    @classmethod
    def is_described_by(cls, config: dict[str, Any]) -> bool:
        """MissConfig, but not with init_weights bat (bat.py)."""
        return super().is_described_by(config) and config.get("init_weights") != "bat"

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> dict[str, Any]:
        """MissConfig."""
        mini_rank = int(config.get("mini_r") or 1) if config.get("init_weights") == "mini" else None
        return {"dropout": float(config.get("miss_dropout") or 0.0), "settings": {"mini_rank": mini_rank}}

    @classmethod
    def to_peft(cls, layers: dict[str, AdapterLinear], rank: int) -> dict[str, Any]:
        """MissConfig."""
        first = next(iter(layers.values()))
        assert isinstance(first, MiSSLinear)
        return {
            "miss_dropout": first.dropout.p,
            "init_weights": "mini" if first.mini_rank else True,
            "mini_r": first.mini_rank or 1,
            "bias": "none",
        }


@lru_cache(maxsize=64)
def _block_sum(rank: int, inputs: int, device: torch.device) -> Tensor:
    """A, float32 (R, I), which layers of one shape share."""
    # Outside inference mode: training uses it too.
    with torch.inference_mode(False):
        return (torch.arange(inputs) % rank == torch.arange(rank)[:, None]).float().to(device)
