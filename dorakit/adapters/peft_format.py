"""Adapters on disk in PEFT's format: adapter_config.json and adapter_model.safetensors.

Written so that PEFT loads them, and read from whatever PEFT wrote for LoRA and DoRA on linear layers. What an adapter
needs and we do not have is refused by name, never dropped: a DoRA without its magnitude is another model.

Beside them lies dorakit.json (storage.py), which PEFT does not read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from dorakit.adapters.attach import adapter_layers, attach_, whole_modules
from dorakit.adapters.foreign_names import PREFIX, refuse_foreign_name
from dorakit.adapters.initial import Initial
from dorakit.adapters.initial_format import check_initial, initial_of, save_initial_of
from dorakit.adapters.layer import AdapterLinear
from dorakit.adapters.on_disk import OWN_TYPE
from dorakit.adapters.peft_config import (
    CONFIG,
    layer_class_of,
    method_of,
    read_config,
    refuse_adapted_head,
    used_patterns,
)
from dorakit.adapters.storage import STORAGE, base_storage, stored_as
from dorakit.adapters.tensor_names import adapted_modules, is_of_adapter, module_of, shortest_targets
from dorakit.adapters.ties import keeps_ties
from dorakit.errors import ModelError, listed
from dorakit.files import give_rights_of_new
from dorakit.model.names import pattern_value
from dorakit.model.nf4 import NF4Format
from dorakit.model.tasks import CAUSAL_LM
from dorakit.model.weights_check import Stored, check_weights

WEIGHTS = "adapter_model.safetensors"
_FLOATS = ("F16", "BF16", "F32", "F64")


def save_adapter(
    model: PreTrainedModel, directory: Path | str, *, base_name_or_path: str, revision: str | None = None
) -> None:
    """Write the model's adapters to an existing directory.

    Args:
        model: A model with adapters attached.
        directory: Where the three files go.
        base_name_or_path: What PEFT is to load the base from.
        revision: Commit of the base, if it came from a hub.
    """
    layers = dict(adapter_layers(model))
    if not layers:
        raise ModelError("the model has no adapter to save")
    tensors = type(next(iter(layers.values()))).shared_tensors(layers)
    for name, layer in layers.items():
        for own, parameter in layer.trained().items():
            tensors[f"{PREFIX}{name}.{layer.disk_key(own)}"] = parameter
    for name, module in whole_modules(model):
        for key, parameter in module.copy.named_parameters():
            tensors[f"{PREFIX}{name}.{key}"] = parameter
    path = Path(directory)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    give_rights_of_new(path / WEIGHTS)
    save_initial_of(model, path)
    config = _config(model, layers, base_name_or_path, revision)
    (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (path / STORAGE).write_text(json.dumps({"base_storage": stored_as(model)}, indent=2) + "\n", encoding="utf-8")


def load_adapter(model: PreTrainedModel, directory: Path | str, *, initial: Initial | None = None) -> None:
    """Attach the adapter in a directory to its base, in place.

    Which modules are adapted is read off the tensors themselves, so every way of naming targets works. `initial`, of
    `initial_of`, is given where it was taken out of the base's weights on their arrival.

    Raises:
        ModelError: The directory holds no adapter, one of another kind, or one that does not fit this base.
    """
    path = Path(directory)
    config, _ = check_adapter(path)
    tensors = read_tensors(path)
    own = dict(model.named_modules())
    layer_class = layer_class_of(config)
    adapted = sorted(adapted_modules(layer_class, tensors))
    if not adapted:
        first = next(iter(layer_class.on_disk))
        raise ModelError(f"{path / WEIGHTS} holds no {first} tensor; its first is {next(iter(tensors), '(none)')}")
    if unknown := [name for name in adapted if name not in own]:
        raise ModelError(
            f"{path} does not fit this base: it adapts {unknown[0]}, which the base does not have "
            f"({len(unknown)} of {len(adapted)} modules)"
        )
    refuse_adapted_head(model, adapted, path)
    beside = [key for key in tensors if not is_of_adapter(layer_class, key)]
    whole = sorted({name for name in own if name and any(_is_part_of(key, name, own) for key in beside)})
    attach_(
        model,
        method=method_of(config),
        update=layer_class.update_name,
        target_modules=adapted,
        rank=int(config["r"]),
        rank_pattern=used_patterns(config, "rank_pattern", adapted),
        alpha_pattern=used_patterns(config, "alpha_pattern", adapted),
        modules_to_save=whole,
        keeps_ties=keeps_ties(config, {key: tensors[key] for key in beside}),
        initial=initial or initial_of(path),
        **_with_shared(layer_class, layer_class.from_peft(config), tensors),
    )
    _fill(model, tensors, path)


@torch.no_grad()
def check_saved(model: PreTrainedModel, directory: Path) -> None:
    """Read back what `save_adapter` wrote, strictly, and compare it bit for bit with the model.

    Raises:
        ModelError: A tensor is missing, odd, or another one.
    """
    read_config(directory)
    base_storage(directory)
    tensors = read_tensors(directory)
    for name, parameter in matched_parameters(model, tensors, directory).items():
        if not torch.equal(parameter.detach().cpu(), tensors[name]):
            raise ModelError(f"{directory / WEIGHTS}: {name} reads back as something else than what was trained")
    check_initial(model, directory)


def check_adapter(directory: Path | str) -> tuple[dict[str, Any], dict[str, Stored]]:
    """What an adapter directory states: its config, and its tensors by name, from the header alone.

    Raises:
        ModelError: It is no adapter, one of another kind, or its two files contradict each other.
    """
    path = Path(directory)
    config = read_config(path)
    file = path / WEIGHTS
    if not file.is_file():
        inside = ", ".join(sorted(item.name for item in path.iterdir())[:8])
        raise ModelError(f"{path} has no {WEIGHTS} (pickled adapters are never read); it holds {inside}")
    stored = check_weights(file)
    shared_keys = layer_class_of(config).shared_keys
    for name, tensor in stored.items():
        refuse_foreign_name(file, name, shared_keys)
        if tensor.dtype not in _FLOATS:
            raise ModelError(f"{file}: {name!r} is {tensor.dtype}, expected one of {', '.join(_FLOATS)}")
    _check_ranks(path, config, stored)
    return config, stored


def _check_ranks(path: Path, config: dict[str, Any], stored: dict[str, Stored]) -> None:
    """Whether the tensors have the rank that the config says: before a layer of that size is made."""
    layer_class = layer_class_of(config)
    wrong = []
    for name, tensor in stored.items():
        own, module = next(
            ((own, module) for own in layer_class.rank_dim if (module := module_of(layer_class, own, name))),
            (None, ""),
        )
        if own is None:
            continue
        stated, dim = pattern_value(module, config.get("rank_pattern") or {}, config["r"]), layer_class.rank_dim[own]
        found = tensor.shape[dim] if dim < len(tensor.shape) else None
        if found != stated:
            wrong.append(f"{name} has shape {tensor.shape}, and the config says rank {stated}")
    if wrong:
        raise ModelError(
            f"{path / WEIGHTS} does not fit r = {config['r']} and rank_pattern of {CONFIG}:\n  {listed(wrong)}"
        )


def adapter_mode(directory: Path) -> str:
    """The mode that would train such an adapter; in 4 bits only where dorakit.json says that the base was stored so."""
    stored = "q" if isinstance(base_storage(directory), NF4Format) else ""
    return stored + method_of(read_config(directory))


def _config(
    model: PreTrainedModel, layers: dict[str, AdapterLinear], base_name_or_path: str, revision: str | None
) -> dict[str, Any]:
    ranks = [layer.rank for layer in layers.values()]
    rank = max(set(ranks), key=ranks.count)
    first = next(iter(layers.values()))
    kind: dict[str, Any] = {"peft_type": first.peft_type}
    has_magnitude = first.lora_magnitude_vector is not None
    if first.initial is not None:  # on W it is another model, so PEFT must not load it
        stated = {"update": first.update_name, "start": first.start, "magnitude": has_magnitude}
        kind = {"peft_type": OWN_TYPE, "dorakit": stated}
    elif first.peft_type == OWN_TYPE or (has_magnitude and "use_dora" not in first.peft_values):
        kind = {"peft_type": OWN_TYPE, "dorakit": {"update": first.update_name, "magnitude": has_magnitude}}
    return {
        **kind,
        "task_type": CAUSAL_LM.peft_type,
        "base_model_name_or_path": base_name_or_path,
        "revision": revision,
        "inference_mode": True,
        "r": rank,
        "target_modules": shortest_targets(model, list(layers)),
        "modules_to_save": [name for name, _ in whole_modules(model)] or None,
        **type(first).to_peft(layers, rank),
    }


def whole_tensors(directory: Path) -> dict[str, Tensor]:
    """The tensors of modules trained whole in an adapter directory."""
    layer_class = layer_class_of(read_config(directory))
    return {name: tensor for name, tensor in read_tensors(directory).items() if not is_of_adapter(layer_class, name)}


def _with_shared(
    layer_class: type[AdapterLinear], arguments: dict[str, Any], tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """The arguments of `attach_`, with the tensors that the file holds for all layers, if it does."""
    shared = {key: tensors[key] for key in layer_class.shared_keys if key in tensors}
    if len(shared) < len(layer_class.shared_keys) or not shared:
        return arguments
    return {**arguments, "settings": {**arguments["settings"], "tensors": shared}}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of an adapter directory, without PEFT's prefix; one that is not finite is a ModelError."""
    try:
        with safe_open(path / WEIGHTS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ModelError(f"{path / WEIGHTS} is damaged: {error}") from None
    if strange := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ModelError(
            f"{path / WEIGHTS}: {strange[0]} holds NaN or infinite values ({len(strange)} of {len(tensors)} tensors do)\n"
            "  its training diverged: take an earlier checkpoint of it"
        )
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    # An embedding that grew is written once more by PEFT as it is held in memory: the original and the trained copy.
    twice = (".original_module.", ".modules_to_save.")
    return {name: tensor for name, tensor in tensors.items() if not any(part in name for part in twice)}


def _is_part_of(key: str, name: str, modules: dict[str, nn.Module]) -> bool:
    """Whether `key` is a parameter directly of module `name`."""
    return key.rpartition(".")[0] == name and next(modules[name].parameters(recurse=False), None) is not None


@torch.no_grad()
def _fill(model: PreTrainedModel, tensors: dict[str, Tensor], path: Path) -> None:
    for name, parameter in matched_parameters(model, tensors, path).items():
        parameter.copy_(tensors[name])


def matched_parameters(model: PreTrainedModel, tensors: dict[str, Tensor], path: Path) -> dict[str, nn.Parameter]:
    """The adapter's parameters by the names that they have in `tensors`: all of both, and of the same shapes."""
    wanted: dict[str, nn.Parameter] = {}
    for name, layer in adapter_layers(model):
        for own, parameter in layer.trained().items():
            key = f"{name}.{layer.disk_key(own)}"
            # PEFT strips the trailing .weight of a magnitude on disk; older files have it.
            wanted[key if key in tensors or f"{key}.weight" not in tensors else f"{key}.weight"] = parameter
    layers = dict(adapter_layers(model))
    shared = next(iter(layers.values())).shared_tensors(layers) if layers else {}
    trained = {
        f"{name}.{key}": parameter
        for name, module in whole_modules(model)
        for key, parameter in module.copy.named_parameters()
    }
    tied = {id(parameter) for key, parameter in trained.items() if key in tensors}
    wanted |= {key: parameter for key, parameter in trained.items() if key in tensors or id(parameter) not in tied}
    problems = [f"lacks {name}" for name in sorted(wanted.keys() - tensors.keys())]
    problems += [
        f"has {name}, which nothing here reads" for name in sorted(tensors.keys() - wanted.keys() - shared.keys())
    ]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & tensors.keys())
        if tensors[name].shape != wanted[name].shape
    ]
    problems += [
        f"{name} is another one than the model has: it was drawn from another seed, or by another version"
        for name in sorted(tensors.keys() & shared.keys())
        if not torch.equal(tensors[name].float(), shared[name].cpu())
    ]
    if problems:
        raise ModelError(f"{path / WEIGHTS} does not fit:\n  {listed(problems)}")
    return wanted
