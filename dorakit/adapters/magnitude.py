"""The row norms that DoRA's magnitude is divided by (arXiv:2402.09353, eq. 5): n = ||W + s B A|| over the input axis.

One number per output row, as in the authors' code (the paper's text says column). n is exact without the dense product:

    n^2 = ||W||^2 + 2 s rowsum((W A^T) * B) + s^2 rowsum((B A A^T) * B)

||W|| is computed once per layer. Where the terms cancel, which leaves float32 no digit below n = 3e-4 ||W||, the rows
themselves are computed.

Shapes: O out, I in, R rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dorakit.model.linear import dense_weight
from dorakit.model.nf4 import ROWS_AT_ONCE

# Of ||W||^2 + ||s B A||^2: a smaller n^2 is not taken from the expansion, which is right to 1e-5 above it.
_CANCELLED = 0.01
SMALLEST_NORM = 1e-12  # an all-zero row has m = 0 and stays zero, instead of 0 / 0


def row_norm(base: nn.Module, a_RI: Tensor, b_OR: Tensor, *, scaling: float, base_norm_squared: Tensor) -> Tensor:
    """N of W + s B A, float32 (O,); `base_norm_squared` is ||W||^2 by rows, and A and B are float32."""
    cross = _by_rows(dense_weight(base), lambda w_OI, rows: ((w_OI @ a_RI.T) * b_OR[rows]).sum(dim=1))
    square = ((b_OR @ (a_RI @ a_RI.T)) * b_OR).sum(dim=1)
    base_squared = base_norm_squared.to(cross.device)
    norm_squared = base_squared + 2 * scaling * cross + scaling * scaling * square
    if not norm_squared.is_meta:
        cancelled = norm_squared < _CANCELLED * (base_squared + scaling * scaling * square)
        # Hardly ever any.
        for rows in cancelled.nonzero()[:, 0].split(ROWS_AT_ONCE):  # type: ignore[no-untyped-call]
            direct_OI = dense_weight(base)[rows].double().addmm(b_OR[rows].double(), a_RI.double(), alpha=scaling)
            norm_squared[rows] = direct_OI.square().sum(dim=1).float()
    return norm_squared.clamp_min_(SMALLEST_NORM**2).sqrt_()


def _by_rows(weight_OI: Tensor, function: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """`function(float32 rows, slice)` over slices of rows, joined: never a whole float32 copy of the weight."""
    slices = [slice(start, start + ROWS_AT_ONCE) for start in range(0, weight_OI.shape[0], ROWS_AT_ONCE)]
    return torch.cat([function(weight_OI[rows].float(), rows) for rows in slices])
