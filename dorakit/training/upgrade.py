"""`train --from ADAPTER`: a run that begins with a trained adapter and goes on as its recipe says.

A LoRA that becomes a DoRA takes m = ||W + s B A||: every g is 1, and the first logits are those of the LoRA. What the
adapter is must be what the recipe says, else the recipe would tell of another run than the one that is trained.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from dorakit.adapters.attach import adapter_layers
from dorakit.adapters.continued import continue_adapter_
from dorakit.adapters.peft_config import layer_class_of, method_of, refuse_adapted_head, start_of, used_patterns
from dorakit.adapters.peft_format import WEIGHTS, check_adapter, whole_tensors
from dorakit.adapters.storage import base_storage
from dorakit.adapters.tensor_names import adapted_modules, is_of_adapter, shortest_targets
from dorakit.adapters.ties import keeps_ties
from dorakit.build import nf4_format
from dorakit.digests import sha256
from dorakit.errors import Problem, RecipeError, RunError, UsageError
from dorakit.model.load import Base
from dorakit.model.names import pattern_value
from dorakit.model.nf4 import NF4Format
from dorakit.model.source import resolve
from dorakit.place import find_target
from dorakit.recipe.paths import is_path
from dorakit.recipe.schema import Recipe
from dorakit.recipe.where import problem_at
from dorakit.run import Run
from dorakit.training.checkpoint import how_to_begin_again, named_checkpoint
from dorakit.training.trained import restore_trained

_LAYER = re.compile(r"(.+?)\.(\d+)\.(.+)")  # what is before, the number of a layer, what is in it


@dataclass(frozen=True)
class Predecessor:
    """The adapter that a run begins with.

    Attributes:
        directory: Its PEFT directory.
        modules: Names of the modules that it adapts.
        keeps_ties: False where its embedding or head is trained apart from the other one, though the base ties them.
        facts: What run.json says of it.
        base_files: sha256 of the files of its base, where a run says so.
    """

    directory: Path
    modules: frozenset[str]
    keeps_ties: bool
    facts: dict[str, Any]
    base_files: dict[str, str] | None

    def put_into_(self, base: Base, recipe: Recipe) -> None:
        """Copy its weights into the adapters that were attached for the recipe, in place.

        Raises:
            RecipeError: The recipe's targets are other modules, or its base has other files.
            ModelError: A tensor does not fit.
        """
        refuse_adapted_head(base.model, self.modules, self.directory)
        attached = {name for name, _ in adapter_layers(base.model)}
        problems = []
        if attached != self.modules:
            problems.append(_targets_problem(recipe, base.model, attached, self.modules, self.directory))
        if self.base_files is not None and self.base_files != base.identity:
            problems.append(_base_problem(recipe, self.directory, str(self.facts["base"]), "the files differ"))
        if problems:
            raise RecipeError(problems)
        continue_adapter_(base.model, self.directory)
        base.notes.append(f"begins with the adapter {self.directory} ({self.facts['method']})")
        if base_storage(self.directory) is None:
            base.notes.append(
                f"{self.directory} does not say how its base was stored: it is taken to be as in this recipe"
            )
        if recipe.has_original_magnitude and self.facts["method"] == "lora":
            base.notes.append(
                "asked: adapter.magnitude.init: original, using: the norms of W + s B A (the adapter would change at step 0)"
            )


def find_predecessor(text: Path | str, recipe: Recipe) -> Predecessor:
    """Hold an adapter against the recipe that is to go on with it, from headers; of one with modules trained whole, its tensors.

    Args:
        text: A PEFT directory, or a finished run.
        recipe: Of the new run.

    Raises:
        RecipeError: Mode, rank, alpha or base are not the adapter's: all of them at once.
        RunError: A run that has not finished, a checkpoint, or nothing.
        UsageError: A run in mode full, or a model.
        ModelError: It is no adapter that can be read.
    """
    place = find_target(str(text))
    if place.kind == "model" or place.path is None:
        raise UsageError(f"--from {text}: that is neither an adapter directory nor a run; model.base names a model")
    run = place.run
    directory = place.path if run is None else run.result
    if run is not None and directory == run.model:
        raise UsageError(f"--from {text}: this run is in mode full and has no adapter; model.base can name {directory}")
    config, stored = check_adapter(directory)
    layer_class, method = layer_class_of(config), method_of(config)
    modules = frozenset(adapted_modules(layer_class, stored))
    files = None if run is None else run.read("run.json").get("base", {}).get("files")
    problems = _shape_problems(recipe, config, modules, method, directory)
    problems += _storage_problems(recipe, directory)
    named = config.get("base_model_name_or_path")
    # A run knows its base by content, which is held against the recipe's when that is loaded.
    if files is None and isinstance(named, str) and named and not _is_same_base(named, recipe.model.base):
        problems.append(_base_problem(recipe, directory, named, ""))
    if problems:
        raise RecipeError(problems)
    facts = {
        "adapter": str(text),
        "sha256": sha256(directory / WEIGHTS),
        "method": method,
        "base": named,
    }
    ties = all(is_of_adapter(layer_class, name) for name in stored) or keeps_ties(config, whole_tensors(directory))
    if not ties:
        facts["keeps_ties"] = False  # by which a resume knows it
    return Predecessor(directory, modules, ties, facts, files)


def begins_with_ties(run: Run) -> bool:
    """Whether what a run trains of a tied embedding and head is one weight; only the adapter that it began with can say no."""
    return bool((run.read("run.json").get("from") or {}).get("keeps_ties", True))


def remember_beginning_(model: nn.Module, run: Run) -> None:
    """Tell the layers of a resumed run what they began with, in place, by which one that never moved is noticed.

    Where that was an adapter, only the checkpoint of step 0 knows. Once it is gone, nothing is noticed any more.
    """
    if run.read("run.json").get("from") is None:
        return
    try:
        restore_trained(model, named_checkpoint(run, "step-000000000").trained)
    except RunError:
        return
    for _, layer in adapter_layers(model):
        layer.mark_start_()


def refuse_lost_beginning(run: Run) -> None:
    """Refuse to go on with a run that began with an adapter and was stopped before its first checkpoint held it.

    Raises:
        RunError: Going on would begin with a fresh adapter instead.
    """
    if (start := run.read("run.json").get("from")) is not None:
        raise RunError(
            f"{run.path} began with the adapter {start['adapter']} and was stopped before it had a copy of it\n"
            f"  begin again: {how_to_begin_again(run, start['adapter'])}"
        )


def _shape_problems(
    recipe: Recipe, config: dict[str, Any], modules: frozenset[str], method: str, directory: Path
) -> list[Problem]:
    problems = []
    wanted = recipe.adapter
    if recipe.trains_whole or (method == "dora" and not recipe.has_magnitude):
        kind = "magnitudes (DoRA), which" if method == "dora" else "A and B, which"
        message = f"adapter.mode is {wanted.mode}, and the adapter {directory} has {kind} this mode does not train"
        modes = "dora or qdora" if method == "dora" else "dora, qdora, lora or qlora"
        problems.append(problem_at(recipe, "adapter.mode", message, f"set {modes}"))
        if recipe.trains_whole:
            return problems
    own = layer_class_of(config).from_peft(config)
    if (update := layer_class_of(config).update_name) != wanted.update:
        message = f"adapter.update is {wanted.update}, and the adapter {directory} is {update}"
        return [*problems, problem_at(recipe, "adapter.update", message, f"set {update}")]
    if (begun := start_of(config)) != wanted.start:
        message = f"adapter.start is {wanted.start}, and the adapter {directory} began with {begun}, which its base depends on"
        problems.append(problem_at(recipe, "adapter.start", message, f"set {begun}"))
    for key, value in own.get("settings", {}).items():
        if (asked := wanted.update_settings[key]) != value:
            message = f"adapter.{update}.{key} is {asked}, and the adapter {directory} has {value}"
            problems.append(problem_at(recipe, f"adapter.{update}.{key}", message, f"set {value}"))
    for key, stated in (("rank", config["r"]), ("alpha", own.get("alpha", wanted.alpha))):
        patterns = used_patterns(config, f"{key}_pattern", modules)
        for name in sorted(modules):
            asked = pattern_value(name, getattr(wanted, f"{key}_pattern"), getattr(wanted, key))
            has = pattern_value(name, patterns, stated)
            if asked != has:
                message = f"adapter.{key} is {asked:g}, and the adapter {directory} has {key} {has:g} (at {name})"
                problems.append(problem_at(recipe, f"adapter.{key}", message, _number_hint(key, stated, patterns)))
                break
    if own.get("rslora", wanted.rslora) != wanted.rslora:
        has_it = str(not wanted.rslora).lower()
        message = f"adapter.rslora is {str(wanted.rslora).lower()}, and the adapter {directory} has use_rslora {has_it}"
        problems.append(problem_at(recipe, "adapter.rslora", message, f"set {has_it}"))
    return problems


def _number_hint(key: str, stated: float, patterns: dict[str, Any]) -> str:
    """The recipe's values for the rank or the alpha of an adapter."""
    if not patterns:
        return f"set {stated:g}"
    entries = ", ".join(f"{json.dumps(pattern)}: {value:g}" for pattern, value in patterns.items())
    return f"write `{key}: {stated:g}` and `{key}_pattern: {{{entries}}}`"


def _targets_problem(
    recipe: Recipe, model: PreTrainedModel, attached: set[str], modules: frozenset[str], directory: Path
) -> Problem:
    lacking, beyond = sorted(attached - modules), sorted(modules - attached)
    parts = []
    if lacking:
        parts.append(
            f"it takes in {len(lacking)} that the adapter {directory} does not adapt, the first is {lacking[0]}"
        )
    if beyond:
        parts.append(f"it leaves out {len(beyond)} that the adapter {directory} adapts, the first is {beyond[0]}")
    message = f"adapter.target_modules are other modules: {'; '.join(parts)}"
    return problem_at(recipe, "adapter.target_modules", message, f"write `target_modules: {_targets(model, modules)}`")


def _targets(model: PreTrainedModel, modules: frozenset[str]) -> str:
    """A value of target_modules that selects these modules and no others: suffixes, layers by number, or whole names."""
    names = shortest_targets(model, sorted(modules))
    parts = [_LAYER.fullmatch(name) for name in names]
    if all(parts):
        stems, numbers, ends = (sorted({part[n] for part in parts if part}) for n in (1, 2, 3))
        if len(stems) == 1 and len(numbers) * len(ends) == len(names):
            numbered = "|".join(sorted(numbers, key=int))
            return f"'{re.escape(stems[0])}\\.({numbered})\\.({'|'.join(map(re.escape, ends))})'"
    return f"[{', '.join(names)}]"


def _storage_problems(recipe: Recipe, directory: Path) -> list[Problem]:
    """Whether the base is stored as it was when the adapter was trained; PEFT's own adapters do not say."""
    stored = base_storage(directory)
    own = nf4_format(recipe) if recipe.stores_nf4 else "unquantized"
    if recipe.trains_whole or stored is None or _in_words(stored) == _in_words(own):
        return []
    message = (
        f"adapter.mode {recipe.adapter.mode} trains on a base stored {_in_words(own)}, "
        f"and the adapter {directory} was trained on one stored {_in_words(stored)}"
    )
    return [problem_at(recipe, "adapter.mode", message, "another storage is another base")]


def _base_problem(recipe: Recipe, directory: Path, named: str, why: str) -> Problem:
    reason = f": {why}" if why else ""
    message = f"model.base is {recipe.model.base}, and the adapter {directory} was trained on {named}{reason}"
    return problem_at(recipe, "model.base", message, "an adapter fits only the base that it was trained on")


def _is_same_base(one: str, other: str) -> bool:
    """Whether two names mean one base: the same text, or directories with the same files."""
    if one == other:
        return True
    if not all(is_path(name) and Path(os.path.expanduser(name)).is_dir() for name in (one, other)):
        return False
    return resolve(one).identity == resolve(other).identity


def _in_words(storage: NF4Format | str) -> str:
    if isinstance(storage, str):
        return storage
    return f"as NF4, block {storage.block_size}, {'' if storage.double_quant else 'not '}double-quantized"
