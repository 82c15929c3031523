"""Adapters on and off a model: `attach_`, `merge_`, `base_only`. Knows torch and no recipe; usable in a notebook."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from dorakit.adapters.initial import Initial
from dorakit.adapters.layer import AdapterLinear
from dorakit.adapters.ties import tied_ends
from dorakit.adapters.whole import TrainedCopy
from dorakit.errors import ModelError
from dorakit.memory import return_freed_memory
from dorakit.methods import UPDATES
from dorakit.model.linear import dense_weight, is_linear
from dorakit.model.names import has_suffix, pattern_value, select
from dorakit.model.nf4 import NF4Linear


def attach_(
    model: PreTrainedModel,
    *,
    method: str,
    update: str = "lora",
    target_modules: str | list[str] = "all-linear",
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    rslora: bool = False,
    rank_pattern: dict[str, int] | None = None,
    alpha_pattern: dict[str, float] | None = None,
    modules_to_save: list[str] | None = None,
    keeps_ties: bool = True,
    seed: int = 0,
    magnitude_init: str = "dequantized",
    settings: dict[str, Any] | None = None,
    initial: Initial | None = None,
) -> list[str]:
    """Freeze the model and put an adapter on each target, in place. The output does not change.

    Args:
        model: A loaded model, dense or NF4.
        method: `lora`, or `dora` for an update under a magnitude.
        update: What is added to the weight: a name of `dorakit methods`.
        target_modules: `all-linear` (every linear layer that text passes through, but the output head), name suffixes, or
            one regular expression.
        rank: r; `rank_pattern` overrides it per name suffix or expression.
        alpha: Numerator of the scaling; `alpha_pattern` overrides it likewise.
        dropout: On the input of A.
        rslora: Scale by alpha / sqrt(r).
        rank_pattern: See rank.
        alpha_pattern: See alpha.
        modules_to_save: Name suffixes of modules to train whole.
        keeps_ties: Of an embedding and a head that are tied, naming one trains both as one. False gives each that is named
            a weight of its own and leaves the other the base's, as PEFT does.
        seed: A's start is a pure function of (seed, module name).
        magnitude_init: The row norms that dora's magnitude starts as: of the weight in use, `dequantized`, or `original`.
        settings: What only this update takes, e.g. d_initial of vera.
        initial: A start that changes the base; where that was not done on arrival, dense weights are changed here.

    Returns:
        Names of the adapted modules, in model order.

    Raises:
        ModelError: A target matches nothing, or something that no adapter fits.
    """
    model.requires_grad_(False)
    names = target_names(model, target_modules)
    whole = _whole_modules(model, modules_to_save or [], keeps_ties=keeps_ties)
    if twice := [name for name in names if any(_is_inside(name, other) for other in whole)]:
        raise ModelError(
            f"adapter: {twice[0]} is a target of adapters and, itself or a module around it, in modules_to_save; name it once"
        )
    if nested := [name for name in whole if any(name != other and _is_inside(name, other) for other in whole)]:
        raise ModelError(f"adapter.modules_to_save: {nested[0]} lies inside another entry; name it once")
    for setting, patterns in (("rank_pattern", rank_pattern), ("alpha_pattern", alpha_pattern)):
        for pattern in patterns or {}:
            if not any(pattern_value(name, {pattern: 1}, 0) for name in names):
                raise ModelError(f"adapter.{setting}: {pattern!r} matches no adapted module; one is {names[0]}")
    layer_class = UPDATES[update].load()
    shared = layer_class.shared([model.get_submodule(name) for name in names], rank=rank, **(settings or {}))
    for name in names:
        if initial is not None:
            initial.take_out_(name, model.get_submodule(name))
        try:
            adapter = layer_class(
                model.get_submodule(name),
                rank=pattern_value(name, rank_pattern or {}, rank),
                alpha=pattern_value(name, alpha_pattern or {}, alpha),
                dropout=dropout,
                rslora=rslora,
                generator=generator_of(seed, name),
                magnitude_init=magnitude_init if method == "dora" else None,
                initial=initial,
                name=name,
                **shared,
            )
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from None
        model.set_submodule(name, adapter)
        return_freed_memory(2 * adapter.in_features * adapter.out_features)
    _train_whole_(model, whole, keeps_ties=keeps_ties)
    return names


def generator_of(seed: int, name: str) -> torch.Generator:
    """The generator of a module's start, on the CPU."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def text_part(model: PreTrainedModel) -> nn.Module:
    """What text passes through on its way to the output head: of a model that sees images too, its text decoder."""
    sees_text_only = model.config.get_text_config() is model.config
    part: nn.Module = model if sees_text_only else model.get_decoder()
    return part


def adapter_layers(model: nn.Module) -> Iterator[tuple[str, AdapterLinear]]:
    """Name and layer of every adapter, in model order."""
    for name, module in model.named_modules():
        if isinstance(module, AdapterLinear):
            yield name, module


def whole_modules(model: nn.Module) -> Iterator[tuple[str, TrainedCopy]]:
    """Name and module of everything trained whole beside the adapters, in model order."""
    for name, module in model.named_modules():
        if isinstance(module, TrainedCopy):
            yield name, module


def changes_nothing(model: nn.Module) -> bool:
    """Whether the attached adapters leave the base as it is."""
    layers = [layer for _, layer in adapter_layers(model)]
    return (
        bool(layers) and next(whole_modules(model), None) is None and all(layer.changes_nothing() for layer in layers)
    )


@contextlib.contextmanager
def base_only(model: nn.Module) -> Iterator[None]:
    """Within the block the frozen base answers alone."""
    switched = [
        module for module in model.modules() if isinstance(module, (AdapterLinear, TrainedCopy)) and module.enabled
    ]
    for module in switched:
        module.enabled = False
    try:
        yield
    finally:
        for module in switched:
            module.enabled = True


@torch.no_grad()
def merge_(model: PreTrainedModel) -> PreTrainedModel:
    """Replace every adapter by the dense layer that does the same, in place; each merge is computed in float32.

    The merged weights have the dtype that the layer computed in, so an NF4 layer becomes a dense one.
    """
    for name, layer in list(adapter_layers(model)):
        dtype = dense_weight(layer.base).dtype
        bias = layer.base.bias
        dense = nn.Linear(layer.in_features, layer.out_features, bias=bias is not None, device="meta")
        dense.weight = nn.Parameter(layer.merged_weight().to(dtype), requires_grad=False)
        if bias is not None:
            dense.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)  # type: ignore[operator]
        model.set_submodule(name, dense)
    done: dict[nn.Parameter, nn.Parameter] = {}
    for name, module in list(whole_modules(model)):
        base = module.base
        for key, trained in module.copy.named_parameters():
            old = base.get_parameter(key)
            new = done.setdefault(trained, nn.Parameter(trained.detach().to(old.dtype), requires_grad=False))
            owner, _, leaf = key.rpartition(".")
            setattr(base.get_submodule(owner), leaf, new)
        model.set_submodule(name, base)
    if done and not tied_ends(model):
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
    return model


def _is_inside(name: str, other: str) -> bool:
    """Whether a dotted name is the other one or a part of it."""
    return name == other or name.startswith(other + ".")


def target_names(model: PreTrainedModel, wanted: str | list[str]) -> list[str]:
    """The linear layers that `target_modules` selects, in model order.

    Raises:
        ModelError: As `attach_`.
    """
    text = text_part(model)
    if fused := next((name for name, module in text.named_modules() if _holds_experts(name, module)), None):
        raise ModelError(
            f"{type(model).__name__} holds fused expert weights ({fused}), which no adapter here fits yet;\n"
            "  only models whose targets are plain linear layers can be trained"
        )
    head = model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if is_linear(m)}
    candidates = [name for name, module in linear.items() if module is not head]
    if not candidates:
        kinds = ", ".join(
            sorted({type(m).__name__ for m in model.modules() if next(m.parameters(recurse=False), None) is not None})
        )
        raise ModelError(
            f"{type(model).__name__} has no linear layer (nn.Linear) to adapt; its layers are {kinds}.\n"
            "  Conv1D layers (GPT-2) are not supported"
        )
    if wanted == "all-linear":
        # Layers that only images pass through would get no gradient here.
        inside = set(text.modules())
        return [name for name in candidates if linear[name] in inside] or candidates
    head_name = next((name for name, module in linear.items() if module is head), "")
    if head_name and isinstance(wanted, list) and any(has_suffix(head_name, suffix) for suffix in wanted):
        raise ModelError(
            f"adapter.target_modules: the output head {head_name} takes no adapter; list it in modules_to_save"
        )
    return select(candidates, wanted, setting="adapter.target_modules")


def _holds_experts(name: str, module: nn.Module) -> bool:
    """Whether a module keeps the matrices of several experts in one parameter; other 3-D ones are kernels and queries."""
    is_expert = re.search("expert|moe", f"{name.rpartition('.')[2]} {type(module).__name__}", re.IGNORECASE)
    return bool(is_expert) and any(parameter.dim() == 3 for parameter in module.parameters(recurse=False))


def _whole_modules(model: PreTrainedModel, wanted: list[str], *, keeps_ties: bool) -> list[str]:
    if not wanted:
        return []
    names = [name for name, module in model.named_modules() if name and next(module.parameters(), None) is not None]
    chosen = select(names, wanted, setting="adapter.modules_to_save")
    for name in chosen:
        module = model.get_submodule(name)
        if any(isinstance(inner, NF4Linear) for inner in module.modules()):
            raise ModelError(
                f"adapter.modules_to_save: {name} is stored as NF4 and cannot be trained.\n"
                "  add it to quantization.skip_modules"
            )
    tied = tied_ends(model) if keeps_ties else []
    return [*chosen, *(name for name in tied if name not in chosen and not {*tied}.isdisjoint(chosen))]


def _train_whole_(model: PreTrainedModel, names: list[str], *, keeps_ties: bool) -> None:
    trained: dict[int, nn.Parameter] = {}
    for name in names:
        if not keeps_ties:
            trained = {}
        wrapper = TrainedCopy(model.get_submodule(name))
        for key, original in wrapper.base.named_parameters():
            owner, _, leaf = key.rpartition(".")
            own = wrapper.copy.get_parameter(key)
            setattr(wrapper.copy.get_submodule(owner), leaf, trained.setdefault(id(original), own))
        model.set_submodule(name, wrapper)
