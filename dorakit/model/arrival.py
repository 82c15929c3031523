"""Weights on their way from a file into the model: a residual in their place, this rank's rows, NF4, a mapped file.

model/streaming.py calls `Arrival.packed` for each weight that NF4 is to store. transformers places the others.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dorakit.errors import ModelError, ResourceError
from dorakit.model.nf4 import NF4Format, NF4Linear
from dorakit.model.shares import Share, keep_rows_, share_of_dense


@dataclass(frozen=True)
class Arrival:
    """The steps that the weights of a model go through while it is loaded.

    Attributes:
        nf4: How to store linear layers; None leaves them dense.
        residual: (layer's name, float32 weight) -> the weight to store instead. Called with each weight that NF4 is to store,
            whole on every rank; a layer that stays dense can be changed once the model is loaded.
        share: Keep only a rank's rows of each NF4 weight, and the model on the CPU with dense weights in their mapped files, so
            that no rank ever holds a whole model. Loading is then collective.
        scratch: A directory. Weights packed on a CPU lie there in mapped files instead of in memory, for work that goes
            through a model once. The files lose their names at once and take room as long as the model lives.
    """

    nf4: NF4Format | None = None
    residual: Callable[[str, Tensor], Tensor] | None = None
    share: Share | None = None
    scratch: Path | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Arrival:
        # transformers copies what it is configured with, and the group of processes behind a share cannot be copied.
        return self

    def packed(self, tensor: str, weight: Tensor, dtype: torch.dtype) -> NF4Linear:
        """The layer that stores a dense weight (out, in), which is taken in `dtype`; with a `share`, collective.

        Raises:
            ModelError: The weight holds NaN or infinite values.
            ResourceError: `scratch` is full.
        """
        assert self.nf4 is not None
        if self.residual is not None:
            check_finite(tensor, weight)
            weight = self.residual(tensor.rpartition(".")[0], weight.float())
        if self.share is None:
            layer = NF4Linear.from_dense(weight.to(dtype), None, self.nf4)
        else:
            layer = share_of_dense(weight, self.nf4, self.share, dtype)
        check_finite(tensor, layer.original_row_norm)
        if self.scratch is not None and layer.weight.device.type == "cpu":
            layer.weight.data = _mapped(layer.weight, self.scratch)
        return layer

    def take_over_(self, tensor: str, layer: NF4Linear) -> None:
        """As `packed`, for a weight that was NF4 in its file.

        Raises:
            ModelError: It holds NaN or infinite values, or a residual is asked for.
        """
        if self.residual is not None:
            raise ModelError(f"{tensor} is stored as NF4, and the weight before quantization is needed")
        check_finite(tensor, layer.nested_absmax if layer.is_double_quantized else layer.absmax)
        if self.share is not None:
            keep_rows_(layer, self.share)


AS_STORED = Arrival()


def check_finite(tensor: str, values: Tensor) -> None:
    """Refuse NaN and infinity; norms of a weight's rows and absmax of its blocks show those anywhere in it."""
    if not values.isfinite().all():
        raise ModelError(f"{tensor} holds NaN or infinite values; nothing can be computed with such weights")


def _mapped(packed: Tensor, directory: Path) -> Tensor:
    try:
        with tempfile.NamedTemporaryFile(dir=directory) as file:
            # Not a hole in a file: a full disk would then be a signal in the midst of a copy.
            os.posix_fallocate(file.fileno(), 0, packed.nbytes)
            stored = torch.from_file(file.name, shared=True, size=packed.numel(), dtype=packed.dtype)
    except OSError as error:
        raise ResourceError(
            f"{directory} cannot hold the packed weights meanwhile: {error.strerror}\n  give an --output on another disk"
        ) from error
    return stored.view(packed.shape).copy_(packed)
