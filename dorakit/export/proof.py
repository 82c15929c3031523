"""The proof that a merged file holds the right weights: each adapted layer against its own forward pass, in float64, and
each tensor on disk against what was computed, bit for bit.

Logits cannot show this. Rounding to 16 bits hides a layer that was forgotten where the adapter's effect is small.

Shapes: P probes, O out, I in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from dorakit.adapters.attach import adapter_layers, whole_modules
from dorakit.adapters.layer import AdapterLinear
from dorakit.adapters.original import original_weight
from dorakit.errors import Gate, GateError
from dorakit.export.peft_reading import PeftReading
from dorakit.export.tensors import PlainTensor
from dorakit.memory import return_freed_memory
from dorakit.model.linear import dense_weight
from dorakit.model.nf4 import ROWS_AT_ONCE

_PROBES = 4
# A merged weight is float32: a row may be off by that rounding, about 3e-8 of its length, and its change by that of the
# low-rank product. Over a whole layer the roundings average out; a magnitude that was dropped does not.
_OF_ROW, _OF_LAYER, _OF_CHANGE = 4e-7, 8e-8, 1e-5


class WeightProof:
    """Checks the tensors of one merge as they are computed, and the files after they are written.

    Args:
        model: The live model, adapters attached and enabled, in eval mode.
        reading: PEFT's reading of an adapter that was made elsewhere, held against the weights too.
    """

    def __init__(self, model: PreTrainedModel, reading: PeftReading | None = None):
        self._reading = reading
        self._written: set[str] = set()
        self._layers = dict(adapter_layers(model))
        self._whole = {
            f"{name}.{key}": parameter
            for name, module in whole_modules(model)
            for key, parameter in module.copy.named_parameters()
        }
        self._proved: set[str] = set()
        self._digests: dict[str, str] = {}

    def rounded(self, tensors: Iterable[PlainTensor], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Name and value of each tensor, checked in float32 and rounded once to `dtype`; integers stay as they are.

        Raises:
            GateError: A merged weight is not what its layer computes, or an adapted layer has none.
        """
        for tensor in tensors:
            value = tensor.make()
            self._check(tensor, value)
            if value.is_floating_point():
                value = value.to(dtype)
            self._digests[tensor.name] = _digest(value)
            yield tensor.name, value
        missing = [name for name in [*self._layers, *self._whole] if name not in self._proved]
        # A pair that is tied, or equal as at the start of its training, is written once.
        written = set(self._digests.values())
        missing = [
            name for name in missing if name in self._layers or _digest(self._whole[name].to(dtype)) not in written
        ]
        if missing:
            raise _wrong(f"{missing[0]} was trained and has no weight in the merged model")
        if self._reading is not None and (fault := self._reading.left_out(self._written)):
            raise _wrong(fault)

    def check_files(self, directory: Path) -> int:
        """Read the files back and compare every tensor; returns how many there are.

        Raises:
            GateError: A tensor is missing or differs.
        """
        found: dict[str, str] = {}
        for file in sorted(directory.glob("*.safetensors")):
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():
                    tensor = handle.get_tensor(name)
                    found[name] = _digest(tensor)
                    return_freed_memory(tensor.nbytes)
        for name in sorted(found.keys() | self._digests.keys()):
            if found.get(name) != self._digests.get(name):
                raise _wrong(f"{name} on the disk is not the tensor that was written")
        return len(found)

    @torch.no_grad()
    def _check(self, tensor: PlainTensor, value: Tensor) -> None:
        layer, leaf = self._layers.get(tensor.owner), tensor.name.rpartition(".")[2]
        if layer is not None and tensor.is_linear_weight:
            _check_layer(tensor.owner, layer, value)
            self._proved.add(tensor.owner)
        elif (trained := self._whole.get(f"{tensor.owner}.{leaf}")) is not None:
            if not torch.equal(value, trained):
                raise _wrong(f"{tensor.owner}.{leaf} is not the one that was trained")
            self._proved.add(f"{tensor.owner}.{leaf}")
        self._written.add(tensor.owner)
        if self._reading is not None:
            base = dense_weight(layer.base) if layer is not None and tensor.is_linear_weight else None
            if fault := self._reading.fault(tensor.owner, leaf, value, base):
                raise _wrong(fault)


def _check_layer(name: str, layer: AdapterLinear, merged_OI: Tensor) -> None:
    """Hold a merged weight against the layer's forward pass over random inputs."""
    generator = torch.Generator().manual_seed(0)
    x_PI = torch.randn(_PROBES, layer.in_features, generator=generator, dtype=torch.float64).to(merged_OI.device)
    live_PO, weight_OI, bias_O = layer(x_PI), original_weight(layer), layer.base.bias
    errors, changes, norms = [], [], []
    for start in range(0, layer.out_features, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        bias = 0 if bias_O is None else bias_O[rows].double()  # type: ignore[index]
        live = live_PO[:, rows] - bias
        merged = merged_OI[rows].double()
        errors.append((live - x_PI @ merged.T).norm(dim=0))
        changes.append((live - x_PI @ weight_OI[rows].double().T).norm(dim=0))
        norms.append(_PROBES**0.5 * (merged.norm(dim=1) + abs(bias)))
    return_freed_memory(8 * layer.in_features * layer.out_features)
    error_O, change_O, norm_O = torch.cat(errors), torch.cat(changes), torch.cat(norms)
    allowed_O = _OF_ROW * norm_O + _OF_CHANGE * change_O
    row = int((error_O - allowed_O).argmax())
    # Written so that a NaN fails too.
    if not error_O[row] <= allowed_O[row]:
        raise _wrong(
            f"row {row} of {name} is not what the adapter computes: it is off by {_share(error_O[row], norm_O[row])} of its "
            f"length (allowed {_share(allowed_O[row], norm_O[row])})"
        )
    allowed = _OF_LAYER * norm_O.norm() + _OF_CHANGE * change_O.norm()
    if not error_O.norm() <= allowed:
        raise _wrong(
            f"{name} is not what the adapter computes: it is off by {_share(error_O.norm(), norm_O.norm())} of its length "
            f"(allowed {_share(allowed, norm_O.norm())})"
        )


def _share(part: Tensor, whole: Tensor) -> str:
    return f"{float(part / whole):.1e}"


def _digest(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous()
    return hashlib.sha256(values.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _wrong(what: str) -> GateError:
    return GateError(
        f"the merged weights are wrong: {what}\n"
        "  nothing was written; this is a fault of dorakit, or of this machine's memory or disk: please report it",
        Gate("wrong_weights", 1, 0),
    )
