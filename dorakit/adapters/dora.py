"""DoRA (arXiv:2402.09353, eq. 5 and 11, sec. 4.3): y = g (W x + s B A D(x)) + b, with g = m / n and n = ||W + s B A||.

The norm runs over the input axis: one number per output row, as in the authors' code (the paper's text says column).
n is a constant for the gradient (sec. 4.3). The bias is never scaled. Dropout falls on the low-rank branch only, so W
is multiplied once; the authors' code and PEFT drop out the base term too: the same expectation at twice the cost.

n is exact without the dense product B A:

    n^2 = ||W||^2 + 2 s rowsum((W A^T) * B) + s^2 rowsum((B A A^T) * B)

||W|| is computed once, the rest whenever A or B have changed. Where the terms cancel, which leaves float32 no digit below
n = 3e-4 ||W||, the rows themselves are computed.

Shapes: O out, I in, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dorakit.adapters.lora import LoRALinear
from dorakit.model.nf4 import ROWS_AT_ONCE, NF4Linear, dense_weight, row_norm_squared

# Of ||W||^2 + ||s B A||^2: a smaller n^2 is not taken from the expansion, which is right to 1e-5 above it.
_CANCELLED = 0.01
_SMALL_GAIN = 0.5  # below it g - 1 in bfloat16 is wrong by more than a rounding of g (fused.py)
_SMALLEST_NORM = 1e-12  # an all-zero row has m = 0 and stays zero, instead of 0 / 0


class DoRALinear(LoRALinear):
    """LoRA on the direction of W, and a trained magnitude per output row.

    Attributes:
        lora_magnitude_vector: m, float32 (O,), the row norms of the weight in use at the start.
    """

    def __init__(self, base: nn.Module, *, magnitude_init: str = "dequantized", **lora: Any):
        super().__init__(base, **lora)
        with torch.no_grad():
            self._base_norm_squared = row_norm_squared(base)
            norm = self._base_norm_squared.sqrt()
            if magnitude_init == "original" and isinstance(base, NF4Linear) and base.original_row_norm.numel():
                norm = base.original_row_norm
        self._start = norm
        self.lora_magnitude_vector = nn.Parameter(norm.clone())
        self._norm: Tensor | None = None
        self._norm_versions = (-1, -1, -1)
        self._has_small_gain = False

    def weight_norm(self) -> Tensor:
        """Row norms n = ||W + s B A||, float32 (O,), without gradient.

        Computed anew when A, B or m have changed in place since the last call (by their version counters; code that
        writes past autograd must call `torch.autograd.graph.increment_version`). A compiled layer, which
        cannot ask for versions, takes the value of `bring_up_to_date`.
        """
        if torch.compiler.is_compiling():
            assert self._norm is not None
            return self._norm
        versions = (self.lora_A._version, self.lora_B._version, self.lora_magnitude_vector._version)
        if self._norm is None or versions != self._norm_versions:
            # Outside inference mode: the value is kept for training steps too.
            with torch.inference_mode(False), torch.no_grad():
                self._norm = self._compute_norm()
                if not self._norm.is_meta:
                    self._has_small_gain = bool((self.lora_magnitude_vector.abs() < _SMALL_GAIN * self._norm).any())
            self._norm_versions = versions
        return self._norm

    def bring_up_to_date(self) -> None:
        """Compute the norm."""
        self.weight_norm()

    def has_still_magnitude(self) -> bool:
        """Whether m is, bit for bit, what it started from."""
        return torch.equal(self.lora_magnitude_vector.detach(), self._start)

    @torch.no_grad()
    def magnitude_to_norm_(self) -> None:
        """Let m be n, so that what was a LoRA answers as it did."""
        self.lora_magnitude_vector.copy_(self.weight_norm())

    def begin_here_(self) -> None:
        """Take B and m as they are for what training began with."""
        super().begin_here_()
        self._start = self.lora_magnitude_vector.detach().clone()

    def _compute_norm(self) -> Tensor:
        a_RI, b_OR, s = self.lora_A.detach().float(), self.lora_B.detach().float(), self.scaling
        cross = _rows(dense_weight(self.base), lambda w_OI, rows: ((w_OI @ a_RI.T) * b_OR[rows]).sum(dim=1))
        square = ((b_OR @ (a_RI @ a_RI.T)) * b_OR).sum(dim=1)
        base_squared = self._base_norm_squared.to(cross.device)
        norm_squared = base_squared + 2 * s * cross + s * s * square
        if not norm_squared.is_meta:
            cancelled = norm_squared < _CANCELLED * (base_squared + s * s * square)
            # Hardly ever any.
            for rows in cancelled.nonzero()[:, 0].split(ROWS_AT_ONCE):  # type: ignore[no-untyped-call]
                direct_OI = dense_weight(self.base)[rows].double().addmm(b_OR[rows].double(), a_RI.double(), alpha=s)
                norm_squared[rows] = direct_OI.square().sum(dim=1).float()
        return norm_squared.clamp_min_(_SMALLEST_NORM**2).sqrt_()

    def product(self, x: Tensor, **_: Any) -> Tensor:
        """The adapted product, scaled."""
        gain = self.lora_magnitude_vector / self.weight_norm()  # which knows whether one is small
        return super().product(x, gain=gain, has_small_gain=self._has_small_gain)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The float32 weight (O, I): g (W + s B A)."""
        return super().merged_weight().mul_((self.lora_magnitude_vector / self.weight_norm())[:, None])

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """The float32 change of the weight (O, I): (g - 1) W + g s B A, of full rank as soon as m has moved."""
        gain_O1 = (self.lora_magnitude_vector / self.weight_norm())[:, None]
        delta_OI, weight_OI = super().delta_weight().mul_(gain_O1), dense_weight(self.base)
        for start in range(0, self.out_features, ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            delta_OI[rows].addcmul_(weight_OI[rows].float(), gain_O1[rows] - 1)
        return delta_OI


def _rows(weight_OI: Tensor, function: Any) -> Tensor:
    """`function(float32 rows, slice)` over slices of rows, joined: never a whole float32 copy of the weight."""
    slices = [slice(start, start + ROWS_AT_ONCE) for start in range(0, weight_OI.shape[0], ROWS_AT_ONCE)]
    return torch.cat([function(weight_OI[rows].float(), rows) for rows in slices])
