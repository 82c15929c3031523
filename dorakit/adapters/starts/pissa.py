"""PiSSA (arXiv:2404.02948, eq. 2 to 4): A and B begin as the principal part of W, and the base keeps the rest."""

from __future__ import annotations

import torch
from torch import Tensor


def pissa(
    weight_OI: Tensor, rank: int, scaling: float, generator: torch.Generator, *, iterations: int | None = None
) -> tuple[Tensor, Tensor]:
    """A0 = diag(sqrt(S_r / s)) V_r^T (R, I) and B0 = U_r diag(sqrt(S_r / s)) (O, R), from W = U S V^T in float32.

    Args:
        weight_OI: W, float32.
        rank: r, at most the smaller side of W.
        scaling: s, so that s B0 A0 is the best approximation of rank r.
        generator: Its seed draws the test matrix of the randomised SVD.
        iterations: Power iterations of a randomised SVD (`torch.svd_lowrank`); None computes the exact one.
    """
    if iterations is None:
        u_OK, s_K, vt_KI = torch.linalg.svd(weight_OI, full_matrices=False)
        u_OR, s_R, vt_RI = u_OK[:, :rank], s_K[:rank], vt_KI[:rank]
    else:
        devices = [] if weight_OI.device.type == "cpu" else [weight_OI.device]
        with torch.random.fork_rng(devices):
            torch.manual_seed(generator.initial_seed())
            u_OR, s_R, v_IR = torch.svd_lowrank(weight_OI, q=rank, niter=iterations)
        vt_RI = v_IR.T
    root_R = (s_R / scaling).sqrt()
    return root_R[:, None] * vt_RI, u_OR * root_R
