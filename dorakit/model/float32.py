"""Computing a 16-bit model in float32 without a float32 copy of it: each weight is upcast where it is used.

Two models that differ by less than the rounding of bfloat16 activations can only be told apart this way. It costs several
times a bfloat16 forward pass and a few rows of one weight in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from dorakit.model.nf4 import ROWS_AT_ONCE

_HALF = (torch.bfloat16, torch.float16)


class Float32(TorchFunctionMode):
    """Within the block, forward passes compute in float32 and give float32, whatever dtype the weights are stored in.

    Embeddings are upcast after the lookup, linear weights a slice of rows at a time; in any other call that mixes dtypes
    the 16-bit tensors are upcast. NF4 layers and adapters follow the dtype of their input. For inference only.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.embedding:
            return func(*args, **kwargs).float()
        if func is nn.functional.linear:
            return _linear(*args, **kwargs)
        floating = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point()]
        if any(t.dtype in _HALF for t in floating) and any(t.dtype not in _HALF for t in floating):
            args, kwargs = tree_map(_upcast, (args, kwargs))
        return func(*args, **kwargs)


def _upcast(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALF else value


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x, bias = _upcast(input), _upcast(bias)
    if weight.dtype not in _HALF:
        return nn.functional.linear(x, weight, bias)
    result: Tensor = x.new_empty(*x.shape[:-1], len(weight))
    for start in range(0, len(weight), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        result[..., rows] = nn.functional.linear(x, weight[rows].float(), None if bias is None else bias[rows])
    return result
