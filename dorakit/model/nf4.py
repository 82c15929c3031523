"""NF4 storage of a frozen linear layer (QLoRA, arXiv:2305.14314, sec. 3), on bitsandbytes' kernels.

`NF4Linear` holds plain uint8 tensors and calls `bitsandbytes.functional`. It is not `bnb.nn.Linear4bit`, which on a CPU
with avx512_bf16 repacks its weight in an eval forward: training after that loses the gradient through the base.
Bytes, and the names on disk, are bitsandbytes' own. model/streaming.py streams weights into these layers.

Everything else sees an NF4 layer as it sees a dense one, through model/linear.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dorakit.errors import ModelError
from dorakit.model.packages import not_importable

# On import bitsandbytes advises installing an optional package, `kernels`, whose kernel is not called here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
with not_importable("kernels"):  # where it is installed, the import would fetch native code from a hub and run it
    import bitsandbytes.functional as bnb

# Scratch of bitsandbytes' quantizer is a multiple of its input, so weights are quantized in slices of about this size.
_CHUNK_WEIGHTS = 1 << 22
_NESTED_BLOCK_SIZE = 256
ROWS_AT_ONCE = 1024  # bounds the float32 copy of a weight
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # that its kernels have


@dataclass(frozen=True)
class NF4Format:
    """How to store the base: weights per absmax, whether absmax is itself quantized, name suffixes to leave alone."""

    block_size: int = 64
    double_quant: bool = True
    skip_modules: tuple[str, ...] = ("lm_head",)


class NF4Linear(nn.Module):
    """A frozen linear layer stored as 4-bit NormalFloat.

    Attributes:
        weight: uint8 (out, in / 2), two weights a byte, the first in the high nibble.
        absmax: (out * in / block_size,), uint8 when double-quantized, else float32. Of a layer that keeps some rows only, and
            in training whose base is sharded (parallel/sharding.py), (rows, in / block_size).
        nested_absmax, nested_code, offset: float32, second level of the double quantization; empty without it.
        original_row_norm: float32 (out,), row norms before quantization; empty when loaded already quantized.
        whole_norm_squared: float32 (out,), squared norms of all rows as they dequantize; empty where all rows are here.
        bias: (out,) in the compute dtype, or None.
        dtype: The dtype that the weight had, and dequantizes to by default.
    """

    weight: nn.Parameter
    absmax: Tensor
    nested_absmax: Tensor
    nested_code: Tensor
    offset: Tensor
    original_row_norm: Tensor
    whole_norm_squared: Tensor

    def __init__(
        self, in_features: int, out_features: int, *, block_size: int, dtype: torch.dtype, bias: Tensor | None = None
    ):
        super().__init__()
        if in_features % 2:
            raise ModelError(
                f"NF4 packs two weights of a row into a byte, but this layer has {in_features} inputs.\n"
                "  add its name to quantization.skip_modules"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.block_size = block_size
        self.dtype = dtype
        self.weight = nn.Parameter(torch.empty(out_features, in_features // 2, dtype=torch.uint8), requires_grad=False)
        for name in ("absmax", "nested_absmax", "nested_code", "offset", "original_row_norm", "whole_norm_squared"):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @classmethod
    def from_dense(
        cls, weight: Tensor, bias: Tensor | None, form: NF4Format, *, keep_row_norms: bool = False
    ) -> NF4Linear:
        """Quantize a dense weight (out, in), slice by slice; the bytes equal bitsandbytes' `quantize_4bit`.

        `keep_row_norms` then scales the absmax values of each row so that the row has the norm that it had; the double
        quantization of absmax comes after it and moves the norms by its own error. Only where a row is whole blocks.

        Raises:
            ModelError: `keep_row_norms` with in_features that is no multiple of the block size.
        """
        layer = cls(weight.shape[1], weight.shape[0], block_size=form.block_size, dtype=weight.dtype, bias=bias)
        flat = weight.detach().contiguous().reshape(-1)
        step = _CHUNK_WEIGHTS // form.block_size * form.block_size
        packed, absmax = [flat.new_empty(0, dtype=torch.uint8)], [flat.new_empty(0, dtype=torch.float32)]
        for start in range(0, flat.numel(), step):
            part, state = bnb.quantize_4bit(flat[start : start + step], blocksize=form.block_size, quant_type="nf4")
            packed.append(part.reshape(-1))
            absmax.append(state.absmax)
        layer.weight = nn.Parameter(torch.cat(packed).view(layer.weight.shape), requires_grad=False)
        layer.absmax = torch.cat(absmax)
        layer.original_row_norm = torch.cat(
            [rows.float().norm(dim=1) for rows in torch.split(weight.detach(), ROWS_AT_ONCE)]
        )
        if keep_row_norms:
            layer._keep_row_norms_()
        if form.double_quant:
            layer.quantize_absmax_()
        return layer

    @classmethod
    def from_quantized(cls, weight: Tensor, statistics: Mapping[str, Tensor], bias: Tensor | None = None) -> NF4Linear:
        """Take over bitsandbytes' serialized tensors; `statistics` is keyed by what follows `weight.` on disk.

        Raises:
            ModelError: The tensors are not those of an NF4 weight.
        """
        state = bnb.QuantState.from_dict(dict(statistics), device=weight.device)
        if state.quant_type != "nf4" or len(state.shape) != 2:
            raise ModelError(f"expected an nf4 matrix, found {state.quant_type} of shape {tuple(state.shape)}")
        layer = cls(state.shape[1], state.shape[0], block_size=state.blocksize, dtype=state.dtype, bias=bias)
        layer.weight = nn.Parameter(weight.reshape(layer.out_features, -1), requires_grad=False)
        layer.absmax = state.absmax
        if state.nested:
            layer.offset = state.offset
            layer.nested_absmax, layer.nested_code = state.state2.absmax, state.state2.code.clone()
        return layer

    @property
    def has_all_rows(self) -> bool:
        """Whether the weight is whole."""
        return not self.whole_norm_squared.numel()

    @property
    def is_double_quantized(self) -> bool:
        """Whether the absmax values are themselves 8-bit."""
        return self.absmax.dtype == torch.uint8

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight (out, in), in `dtype` or the dtype that it had."""
        return _dequantize(self, dtype or self.dtype, *self._storage())

    def quant_tensors(self) -> dict[str, Tensor]:
        """What bitsandbytes writes to disk for this weight, keyed by the suffix of the tensor's name.

        The weight itself has the suffix "" and bitsandbytes' shape (out * in / 2, 1).
        """
        second = None
        if self.is_double_quantized:
            second = bnb.QuantState(
                absmax=self.nested_absmax, code=self.nested_code, blocksize=_NESTED_BLOCK_SIZE, dtype=torch.float32
            )
        state = bnb.QuantState(
            absmax=self.absmax,
            shape=torch.Size((self.out_features, self.in_features)),
            code=bnb.get_4bit_type("nf4", device=self.absmax.device),
            blocksize=self.block_size,
            quant_type="nf4",
            dtype=self.dtype,
            offset=self.offset if second else None,
            state2=second,
        )
        tensors = {f".{name}": value for name, value in state.as_dict(packed=True).items()}
        return {"": self.weight.detach().reshape(-1, 1), **tensors}

    def forward(self, x: Tensor) -> Tensor:
        """The layer: x (..., in) -> (..., out), in x's dtype."""
        y: Tensor = _NF4Product.apply(x, self, *self._storage())  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """Sizes and storage, for print(model)."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"block_size={self.block_size}, double_quant={self.is_double_quantized}"
        )

    def row_norm(self) -> Tensor:
        """float32 (out,): norm of each row as it dequantizes."""
        norm: Tensor = self.dequantize(torch.float32).norm(dim=1)
        return norm

    def quantize_absmax_(self) -> None:
        """The second level: absmax, which is float32, in 8 bits around its mean."""
        self.offset = self.absmax.mean()
        self.absmax, second = bnb.quantize_blockwise(self.absmax - self.offset, blocksize=_NESTED_BLOCK_SIZE)
        self.nested_absmax, self.nested_code = second.absmax, second.code.clone()

    def float_absmax(self) -> Tensor:
        """float32 (blocks,): the largest magnitude of each block, whether it is stored in 8 bits or not."""
        return _float_absmax(*self._storage()[1:])

    def _keep_row_norms_(self) -> None:
        """Scale absmax, which is still float32, so that `row_norm` equals `original_row_norm`."""
        if self.in_features % self.block_size:
            raise ModelError(
                f"a row of {self.in_features} weights is no whole number of blocks of {self.block_size}: its norm cannot be kept"
            )
        # A row of zeros has nothing to scale.
        factor = self.original_row_norm / self.row_norm().clamp_min(torch.finfo(torch.float32).tiny)
        self.absmax = (self.absmax.view(self.out_features, -1) * factor[:, None]).reshape(-1)

    def _storage(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.weight, self.absmax, self.nested_absmax, self.nested_code, self.offset


def native_library() -> tuple[str | None, bool]:
    """The file of bitsandbytes' compiled kernels, None where it could not be loaded, and whether it was built for CUDA."""
    from bitsandbytes.cextension import lib

    file = getattr(getattr(lib, "_lib", None), "_name", None)
    return None if file is None else Path(file).name, bool(getattr(lib, "compiled_with_cuda", False))


def stored_format(model: nn.Module) -> NF4Format | None:
    """How a model that was loaded already quantized is stored; None where the original weights were read."""
    for module in model.modules():
        if isinstance(module, NF4Linear) and not module.original_row_norm.numel():
            return NF4Format(module.block_size, module.is_double_quantized, ())
    return None


def _float_absmax(absmax: Tensor, nested_absmax: Tensor, nested_code: Tensor, offset: Tensor) -> Tensor:
    absmax = absmax.reshape(-1)
    if absmax.dtype != torch.uint8:
        return absmax
    unpacked: Tensor = bnb.dequantize_blockwise(
        absmax, absmax=nested_absmax, code=nested_code, blocksize=_NESTED_BLOCK_SIZE
    )
    return unpacked.add_(offset)


def _dequantize(
    layer: NF4Linear,
    dtype: torch.dtype,
    packed: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor,
    nested_code: Tensor,
    offset: Tensor,
) -> Tensor:
    absmax = _float_absmax(absmax, nested_absmax, nested_code, offset)
    # bitsandbytes 0.50.2 on a CPU takes each row for whole blocks, which gives wrong weights where in_features is not a
    # multiple of the block size; as one long row every block is where it belongs.
    rows = layer.out_features if layer.in_features % layer.block_size == 0 else 1
    state = bnb.QuantState(
        absmax=absmax,
        shape=torch.Size((rows, layer.out_features * layer.in_features // rows)),
        dtype=dtype,
        blocksize=layer.block_size,
        quant_type="nf4",
    )
    dense: Tensor = bnb.dequantize_4bit(packed.reshape(-1, 1), state)
    return dense.reshape(layer.out_features, layer.in_features)


class _NF4Product(torch.autograd.Function):
    """x W^T. Saves the packed bytes and dequantizes again in backward, so no dense weight outlives the product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear, *storage: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(*storage)
        return nn.functional.linear(x, _dequantize(layer, x.dtype, *storage))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        storage = ctx.saved_tensors
        return grad @ _dequantize(ctx.layer, grad.dtype, *storage), None, *(None for _ in storage)
