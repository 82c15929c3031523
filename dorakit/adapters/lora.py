"""LoRA (arXiv:2106.09685, eq. 3): y = W x + s B A D(x) + b, with s = alpha / r, or alpha / sqrt(r) as rsLoRA.

Owns one layer. Which layers are adapted is adapters/attach.py's business, and whether W is dense or NF4 model/nf4.py's:
the base is seen only through `dense_weight` and `.bias`.
The product itself is adapters/fused.py's.

Shapes: B batch, T tokens, I in, O out, R rank.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dorakit.adapters.fused import adapted_product
from dorakit.model.nf4 import dense_weight


class LoRALinear(nn.Module):
    """A frozen linear layer with a low-rank update. Complete once built; at step 0 it equals its base.

    Attributes:
        base: The frozen layer.
        lora_A: float32 (R, I), Kaiming-uniform.
        lora_B: float32 (O, R), zero.
        scaling: s.
        enabled: False lets the base answer alone.
    """

    def __init__(
        self,
        base: nn.Module,
        *,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        rslora: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.base = base
        self.in_features: int = base.in_features  # type: ignore[assignment]
        self.out_features: int = base.out_features  # type: ignore[assignment]
        self.rank = rank
        self.alpha = alpha
        self.scaling = alpha / (math.sqrt(rank) if rslora else rank)
        self.dropout = nn.Dropout(dropout)
        self.enabled = True
        device = next(base.parameters()).device
        # Drawn on the CPU, so that a seed means the same adapter on every device.
        start = torch.empty(rank, self.in_features)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(start.to(device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=device))
        self._start_B: Tensor | None = None  # zeros

    def forward(self, x: Tensor) -> Tensor:
        """The layer: x (..., I) -> (..., O), in x's dtype."""
        return self.product(x) if self.enabled else self.base(x)

    def bring_up_to_date(self) -> None:
        """Compute what is derived from the trained parameters, which a compiled layer takes as it finds it."""

    def begin_here_(self) -> None:
        """Take B as it is for what training began with."""
        self._start_B = self.lora_B.detach().clone()

    def has_still_B(self) -> bool:
        """Whether B is, bit for bit, what it started from."""
        if self._start_B is None:
            return not self.lora_B.any()
        return torch.equal(self.lora_B.detach(), self._start_B)

    def product(self, x: Tensor, **dora: Any) -> Tensor:
        """The adapted product, dropout on its low-rank branch included."""
        dropped = self.dropout(x) if self.training and self.dropout.p else None
        return adapted_product(self.base, x, self.lora_A, self.lora_B, scaling=self.scaling, dropped=dropped, **dora)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The float32 weight (O, I) of the one dense layer that does what this one does in eval mode."""
        return dense_weight(self.base).float().addmm(self.lora_B.float(), self.lora_A.float(), alpha=self.scaling)

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """The float32 change of the weight (O, I): merged_weight() - W, without the rounding of that subtraction."""
        return (self.lora_B.float() @ self.lora_A.float()).mul_(self.scaling)

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"rank={self.rank}, alpha={self.alpha}, scaling={self.scaling:.4g}"
