"""Names in an adapter's files: which layer a tensor belongs to, and how adapted modules are called."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from dorakit.adapters.foreign_names import PREFIX
from dorakit.adapters.layer import MAGNITUDE, AdapterLinear
from dorakit.model.linear import is_linear
from dorakit.model.names import has_suffix


def adapted_modules(layer_class: type[AdapterLinear], names: Iterable[str]) -> set[str]:
    """The modules that tensors of these names, PEFT's prefix aside, adapt."""
    own = layer_class.grows
    return {module for name in names if (module := module_of(layer_class, own, name))}


def is_of_adapter(layer_class: type[AdapterLinear], name: str) -> bool:
    """Whether a tensor belongs to an adapter's layers, and not to a module trained whole."""
    own = (*layer_class.on_disk, MAGNITUDE)
    return name in layer_class.shared_keys or any(module_of(layer_class, key, name) for key in own)


def module_of(layer_class: type[AdapterLinear], own: str, name: str) -> str | None:
    """The module whose parameter `own` is the tensor `name`; PEFT strips the last .weight of some keys, older files have it."""
    key = f".{layer_class.disk_key(own)}"
    name = name.removeprefix(PREFIX)
    for ending in (key, f"{key}.weight"):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return None


def shortest_targets(model: nn.Module, adapted: list[str]) -> list[str]:
    """Last name parts where they select exactly the adapted modules, else whole names; the base may have adapters attached."""
    endings = sorted({name.rsplit(".", 1)[-1] for name in adapted})
    linear = {n for n, m in model.named_modules() if is_linear(m) or isinstance(m, AdapterLinear)}
    inside = {f"{name}.base" for name in adapted}
    selected = {name for name in linear - inside if any(has_suffix(name, ending) for ending in endings)}
    return endings if selected == set(adapted) else sorted(adapted)
