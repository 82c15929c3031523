"""An adapted linear layer whose change U of W is no product of two small matrices: y = g (W x + U D(x)) + b.

A subclass gives U, as a function of W where it likes, or the product with U where that costs less. g, D and b are those of
adapters/layer.py; the row norms n = ||W + U|| are computed from U itself.

Shapes: B batch, T tokens, I in, O out, R rank.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dorakit.adapters.layer import AdapterLinear
from dorakit.adapters.magnitude import SMALLEST_NORM
from dorakit.model.linear import dense_weight
from dorakit.model.nf4 import ROWS_AT_ONCE


class UnfactoredLinear(AdapterLinear):
    """A frozen linear layer with a trained update that has no factors. U is zero if, and only if, `grows` is."""

    has_factors: ClassVar = False
    has_alpha: ClassVar = False

    def change(self, weight_OI: Tensor) -> Tensor:
        """U of this float32 W, both (O, I), differentiable in the parameters. Not asked for where `update` is overridden."""
        raise NotImplementedError

    def update(self) -> Tensor:
        """U, float32 (O, I), differentiable in the parameters."""
        return self.change(dense_weight(self.base).float())

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # its backward differentiates, which cannot be traced
    def branch(self, x: Tensor) -> Tensor:
        """U x (..., O) of x (..., I), in x's dtype."""
        result: Tensor = _Branch.apply(x, self, *self._own())  # type: ignore[no-untyped-call]
        return result

    def product(self, x: Tensor) -> Tensor:
        """The adapted product, dropout included; under a magnitude it is summed and scaled in float32."""
        total: Tensor = _BaseProduct.apply(x, self.base)  # type: ignore[no-untyped-call]
        branch = self.branch(self.dropout(x))
        if self.lora_magnitude_vector is None:
            total = total + branch
        else:
            total = (total.float() + branch) * (self.lora_magnitude_vector / self.weight_norm())
        bias = self.base.bias
        return (total if bias is None else total + bias).to(x.dtype)  # type: ignore[operator]

    def is_zero(self) -> bool:
        """Whether the update is zero."""
        return not self.get_parameter(self.grows).any()

    def row_norm(self) -> Tensor:
        """Row norms of W + U, float32 (O,)."""
        weight_OI, update_OI = dense_weight(self.base), self.update().detach()
        slices = [slice(start, start + ROWS_AT_ONCE) for start in range(0, self.out_features, ROWS_AT_ONCE)]
        norms = [torch.linalg.vector_norm(weight_OI[rows].float() + update_OI[rows], dim=1) for rows in slices]
        return torch.cat(norms).clamp_min_(SMALLEST_NORM)

    def updated_weight(self) -> Tensor:
        """W + U, float32 (O, I)."""
        return self.update().detach() + dense_weight(self.base)

    def _own(self) -> list[nn.Parameter]:
        return [self.get_parameter(name) for name in self.on_disk]


class _BaseProduct(torch.autograd.Function):
    """W x. Keeps nothing: an NF4 weight is unpacked again in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: nn.Module) -> Tensor:
        ctx.base = base
        return nn.functional.linear(x, dense_weight(base).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        return grad @ dense_weight(ctx.base).to(grad.dtype), None


class _Branch(torch.autograd.Function):
    """U x. Keeps x and the parameters; U is computed again in backward, and differentiated there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: UnfactoredLinear, *parameters: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x, *parameters)
        return nn.functional.linear(x, layer.update().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x = ctx.saved_tensors[0]  # refuses parameters that have changed since
        with torch.enable_grad():
            update_OI = ctx.layer.update()
        grad_x = grad @ update_OI.detach().to(grad.dtype) if ctx.needs_input_grad[0] else None
        grad_OI = (grad.reshape(-1, grad.shape[-1]).T @ x.reshape(-1, x.shape[-1])).float()
        return grad_x, None, *torch.autograd.grad(update_OI, ctx.layer._own(), grad_OI)
