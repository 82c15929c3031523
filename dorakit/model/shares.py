"""One rank's rows of NF4 weights that several ranks share out: which ones, made from a dense weight, kept of a whole layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dorakit.model.linear import row_norm_squared
from dorakit.model.nf4 import NF4Format, NF4Linear


@dataclass(frozen=True)
class Share:
    """Which rows of every weight a rank of several keeps, and how the ranks put theirs together.

    `gather` takes a rank's rows and the number of all rows, and returns all of them on every rank; all must call it alike.
    """

    rank: int
    size: int
    gather: Callable[[Tensor, int], Tensor]

    def rows(self, number: int) -> slice:
        """Of `number` rows, as torch.chunk and so FSDP deals them out."""
        each = -(-number // self.size)
        return slice(self.rank * each, (self.rank + 1) * each)


def share_of_dense(weight: Tensor, form: NF4Format, share: Share, dtype: torch.dtype) -> NF4Linear:
    """As `from_dense` of the weight in `dtype` and then `keep_rows_`, to the byte, but each rank reads and quantizes its own
    rows; all must call it.

    What the ranks exchange is the float32 absmax, whose second level is over the whole weight, and two norms a row.
    """
    out_features, in_features = weight.shape
    if in_features % form.block_size:
        return NF4Linear.from_dense(weight.to(dtype), None, form)
    rows = share.rows(out_features)
    own = NF4Linear.from_dense(weight[rows].to(dtype), None, replace(form, double_quant=False))
    layer = NF4Linear(in_features, out_features, block_size=form.block_size, dtype=dtype)
    layer.weight = own.weight
    layer.absmax = share.gather(own.absmax.view(len(own.weight), in_features // form.block_size), out_features).view(-1)
    layer.original_row_norm = share.gather(own.original_row_norm, out_features)
    if form.double_quant:
        layer.quantize_absmax_()
    own.absmax = layer.float_absmax().view(out_features, -1)[rows].reshape(-1)
    layer.whole_norm_squared = share.gather(
        row_norm_squared(own) if len(own.weight) else own.original_row_norm, out_features
    )
    layer.absmax = layer.absmax.view(out_features, -1)[rows].clone()
    return layer


def keep_rows_(layer: NF4Linear, share: Share) -> None:
    """Keep the rows that a rank has when dimension 0 is sharded; the layer computes nothing then.

    Double quantization was done over the whole weight, so that the shares together are its bytes. A row must be whole
    blocks: the others keep all rows.
    """
    if layer.in_features % layer.block_size:
        return
    layer.whole_norm_squared = row_norm_squared(layer)
    rows = share.rows(layer.out_features)
    layer.weight = nn.Parameter(layer.weight.data[rows].clone(), requires_grad=False)
    layer.absmax = layer.absmax.view(layer.out_features, -1)[rows].clone()
