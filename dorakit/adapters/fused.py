"""The product of an adapted layer as one autograd function: y = g (W x + s B A D(x)) + b, with g = 1 for LoRA.

Written out by hand for three reasons. The low-rank terms are added into the output of the base's product, and into its
gradient, by the matrix product itself. W is asked for once in forward and once in backward, so an NF4 base unpacks it
twice and keeps nothing. And DoRA's scale costs two passes over y more in forward and three in backward, in the dtype of x:

    forward    d = (A D(x)) (s g B)^T + (g - 1) W x,   y = W x + d
    backward   dx = (g dy) W + (dy s g B) A,   dg = sum(dy y) / g

g itself is float32 and never rounded to bfloat16, which cannot tell it from 1: only g - 1 is, and d, each to its own size.
Where a g is small, y is a small difference of W x and d, and y / g is 0 / 0 at g = 0. A layer with such rows goes the plain
way, y = g (W x + s B A D(x)) in float32, and keeps W x for the gradient of g, as one with a bias does.
tests/properties/test_fused.py holds it against the plain form.

Shapes: N tokens, I in, O out, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dorakit.model.linear import dense_weight


def adapted_product(
    base: nn.Module,
    x: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float,
    dropped: Tensor | None = None,
    gain: Tensor | None = None,
    has_small_gain: bool = False,
) -> Tensor:
    """Compute y (..., O), in the dtype of x (..., I).

    Args:
        base: The frozen layer: W and b.
        x: The input.
        lora_A: A, float32 (R, I).
        lora_B: B, float32 (O, R).
        scaling: s.
        dropped: D(x) where dropout is on.
        gain: g, float32 (O,).
        has_small_gain: Whether some |g| are too small for the fast form (below a half); right for any g.
    """
    result: Tensor = _AdaptedProduct.apply(x, dropped, lora_A, lora_B, gain, base, scaling, has_small_gain)  # type: ignore[no-untyped-call]
    return result


class _AdaptedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        gain_O: Tensor | None,
        base: nn.Module,
        scaling: float,
        has_small_gain: bool,
    ) -> Tensor:
        bias_O: Tensor | None = base.bias  # type: ignore[assignment]
        x_NI = x.reshape(-1, x.shape[-1])
        dropped_NI = x_NI if dropped is None else dropped.reshape(x_NI.shape)
        a_RI = lora_A.to(x.dtype)
        b_OR = (scaling * lora_B if gain_O is None else (scaling * gain_O)[:, None] * lora_B).to(x.dtype)
        h_NR = dropped_NI @ a_RI.T
        w_OI = dense_weight(base).to(x.dtype)
        keep_product = bias_O is not None or has_small_gain
        kept = None
        if gain_O is None:
            y_NO = nn.functional.linear(x_NI, w_OI, None if bias_O is None else bias_O.to(x.dtype))
            y_NO.addmm_(h_NR, b_OR.T)
        else:
            product_NO = x_NI @ w_OI.T
            if has_small_gain:
                y_NO = product_NO * gain_O + h_NR @ b_OR.T
                y_NO = (y_NO if bias_O is None else y_NO + bias_O).to(x.dtype)
            else:
                change_NO = (product_NO * (gain_O - 1).to(x.dtype)).addmm_(h_NR, b_OR.T)
                if bias_O is not None:
                    y_NO = (product_NO.float() + change_NO).add_(bias_O).to(x.dtype)
                else:
                    y_NO = product_NO.add_(change_NO)
            kept = product_NO if keep_product else y_NO
        ctx.base, ctx.scaling, ctx.shape = base, scaling, x.shape
        ctx.keep_product, ctx.has_small_gain = keep_product, has_small_gain
        ctx.has_dropped = dropped is not None
        ctx.save_for_backward(x_NI if dropped is None else dropped_NI, h_NR, a_RI, b_OR, lora_B, gain_O, kept)
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dropped_NI, h_NR, a_RI, b_OR, lora_B, gain_O, kept_NO = ctx.saved_tensors
        grad_NO = grads[0].reshape(-1, grads[0].shape[-1])
        grad_h_NR = grad_NO @ b_OR
        grad_x = grad_dropped = grad_gain = None
        if ctx.needs_input_grad[0]:
            if gain_O is None:
                scaled_NO = grad_NO
            elif ctx.has_small_gain:
                scaled_NO = (grad_NO * gain_O).to(grad_NO.dtype)
            else:
                scaled_NO = torch.addcmul(grad_NO, grad_NO, (gain_O - 1).to(grad_NO.dtype))
            grad_x_NI = scaled_NO @ dense_weight(ctx.base).to(grad_NO.dtype)
            if not ctx.has_dropped:
                grad_x_NI.addmm_(grad_h_NR, a_RI)
            grad_x = grad_x_NI.view(ctx.shape)
        if ctx.has_dropped and ctx.needs_input_grad[1]:
            grad_dropped = (grad_h_NR @ a_RI).view(ctx.shape)
        grad_A = (grad_h_NR.T @ dropped_NI).to(lora_B.dtype)
        grad_B = (grad_NO.T @ h_NR).to(lora_B.dtype).mul_(ctx.scaling)
        if gain_O is not None:
            grad_gain = torch.linalg.vecdot(grad_NO, kept_NO, dim=0).to(gain_O.dtype)
            # Of y = g z + b either y is kept, where b is 0, or W x; z = W x + s B A D(x).
            grad_gain = grad_gain.add_((grad_B * lora_B).sum(dim=1)) if ctx.keep_product else grad_gain.div_(gain_O)
            grad_B.mul_(gain_O[:, None])
        return grad_x, grad_dropped, grad_A, grad_B, grad_gain, None, None, None
