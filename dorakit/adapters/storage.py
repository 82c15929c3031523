"""dorakit.json beside an adapter: how the base was stored, since an adapter that was trained on NF4 weights is another model
on the original ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import nn

from dorakit.adapters.attach import adapter_layers, whole_modules
from dorakit.digests import TRAINED
from dorakit.errors import ModelError
from dorakit.model.configs import read_object
from dorakit.model.linear import is_storable
from dorakit.model.nf4 import BLOCK_SIZES, NF4Format, NF4Linear

STORAGE = TRAINED


def base_storage(directory: Path) -> NF4Format | Literal["unquantized"] | None:
    """How the base of an adapter was stored when it was trained; None where nothing says so, as in PEFT's own.

    Raises:
        ModelError: dorakit.json is damaged, or names a format that is not known here.
    """
    path = directory / STORAGE
    if not path.is_file():
        return None
    try:
        stated = read_object(path)["base_storage"]
        if stated is None:
            return "unquantized"
        if stated["format"] != "nf4":
            raise ModelError(f"{path}: the base was stored as {stated['format']!r}; only nf4 is known")
        if (size := stated["block_size"]) not in BLOCK_SIZES:
            raise ModelError(f"{path}: block_size is {size!r}, expected one of {', '.join(map(str, BLOCK_SIZES))}")
        return NF4Format(size, bool(stated["double_quant"]), tuple(map(str, stated["skip_modules"])))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} does not say how the base was stored: {type(error).__name__}: {error}") from None


def stored_as(model: nn.Module) -> dict[str, Any] | None:
    """The `base_storage` entry of dorakit.json: the NF4 format and the layers kept dense; None if no layer is NF4."""
    quantized = next((module for module in model.modules() if isinstance(module, NF4Linear)), None)
    if quantized is None:
        return None
    dense = [name for name, module in model.named_modules() if is_storable(module)]
    whole = [name for name, _ in whole_modules(model)]
    dense = [name for name in dense if not any(f"{name}.".startswith(f"{owner}.copy.") for owner in whole)]
    for wrapper in (*whole, *(name for name, _ in adapter_layers(model))):
        inside = f"{wrapper}.base"  # of which the base knows nothing
        dense = [wrapper + n.removeprefix(inside) if f"{n}.".startswith(f"{inside}.") else n for n in dense]
    return {
        "format": "nf4",
        "block_size": quantized.block_size,
        "double_quant": quantized.is_double_quantized,
        "skip_modules": sorted(dense),
    }
