"""LoRA (arXiv:2106.09685, eq. 3): y = W x + s B A x, with s = alpha / r, or alpha / sqrt(r) as rsLoRA (arXiv:2312.03732)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from dorakit.adapters.layer import MAGNITUDE, AdapterLinear


class LoRALinear(AdapterLinear):
    """A and B themselves are trained.

    Attributes:
        lora_A: float32 (R, I), Kaiming-uniform at the start.
        lora_B: float32 (O, R), zero at the start.
    """

    on_disk: ClassVar = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", MAGNITUDE: MAGNITUDE}
    grows: ClassVar = "lora_B"

    def build_(self, device: torch.device, generator: torch.Generator | None) -> None:
        """Kaiming and zeros."""
        start = torch.empty(self.rank, self.in_features)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(start.to(device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, self.rank, device=device))

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B."""
        return self.lora_A, self.lora_B
