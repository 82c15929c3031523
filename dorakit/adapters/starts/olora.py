"""OLoRA (arXiv:2406.01775, sec. 3): A and B begin as the first part of the QR decomposition of W.

The paper has no scaling. As in PEFT the factors are not divided by s, so the base becomes W - s Q_r R_r.
"""

from __future__ import annotations

import torch
from torch import Tensor


def olora(weight_OI: Tensor, rank: int, scaling: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A0 = R[:r] (R, I) and B0 = Q[:, :r] (O, R) with orthonormal columns, from W = Q R in float32."""
    q_OK, r_KI = torch.linalg.qr(weight_OI)
    return r_KI[:rank], q_OK[:, :rank]
