"""Settings that a recipe's other settings leave unread: a `quantization` section in mode lora, eps with sgd.

Where such a setting stands beside its cause, or was set after it, it is an error: someone believes that it does
something. Where the cause came later (`--set adapter.mode=lora` on a QDoRA recipe, or a recipe that extends one), the
setting is taken out of the recipe and that is noted: "not read in mode lora: quantization".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from dorakit.errors import Problem
from dorakit.methods import RULES, STARTS, UPDATES, Entry
from dorakit.recipe.fields import dotted
from dorakit.recipe.paths import ROW_FILES, is_path
from dorakit.recipe.tree import Node, PathKey

_ADAPTER = (
    "update",
    "start",
    "rank",
    "alpha",
    "dropout",
    "target_modules",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "rslora",
    "magnitude",
)
# Settings that say the same thing in different ways, with the value that says nothing.
ALTERNATIVES: tuple[tuple[tuple[PathKey, Any], ...], ...] = (
    ((("optimizer", "warmup_ratio"), 0), (("optimizer", "warmup_steps"), None)),
    (
        (("data", "validation", "fraction"), 0),
        (("data", "validation", "rows"), 0),
        (("data", "validation", "path"), None),
    ),
)


@dataclass(frozen=True)
class Unread:
    """A setting that is not read, the setting that causes it, and when: `in mode lora`."""

    path: PathKey
    cause: PathKey
    when: str
    hint: str = "remove it"


def unread_settings(get: Callable[[PathKey], Any]) -> Iterator[Unread]:
    """Name every setting that is not read.

    Args:
        get: Gives the value at a path, None where there is none.
    """
    yield from _by_mode(get(("adapter", "mode")))
    yield from _by_method(get)
    name = get(("optimizer", "name"))
    for key in {"sgd": ("betas", "eps"), "lion_8bit": ("eps",)}.get(name if isinstance(name, str) else "", ()):
        yield Unread(("optimizer", key), ("optimizer", "name"), f"by optimizer {name}")
    if get(("training", "micro_batch_tokens")) is not None:
        cause = ("training", "micro_batch_tokens")
        yield Unread(("training", "micro_batch_size"), cause, "with micro_batch_tokens", "remove one of them")
    base = get(("model", "base"))
    if isinstance(base, str) and (is_path(base) or base.startswith(("tiny:", "pkg:"))):
        yield Unread(("model", "revision"), ("model", "base"), "with a base that is no hub id")
    held_out = get(("data", "validation", "path"))
    if held_out is None or _is_row_file(held_out):
        when = "without data.validation.path" if held_out is None else "with a single file"
        yield Unread(("data", "validation", "split"), ("data", "validation", "path"), when)
    sources = get(("data", "train"))
    for index in range(len(sources) if isinstance(sources, list) else 0):
        yield from _by_source(("data", "train", index), get)
    form = get(("data", "train", 0, "format"))
    if form not in ("instruction", None):
        yield Unread(("evaluation", "prompt"), ("data", "train", 0, "format"), f"with format {form}")
    metric = get(("evaluation", "metric"))
    if metric in ("none", None):
        for key in ("max_new_tokens", "batch_size"):
            hint = "remove it, or set evaluation.metric"
            yield Unread(("evaluation", key), ("evaluation", "metric"), "with metric none", hint)
    if metric == "option_likelihood":
        yield Unread(("evaluation", "max_new_tokens"), ("evaluation", "metric"), f"with metric {metric}")
    if metric not in ("option", "option_likelihood") and get(("evaluation", "options")):
        yield Unread(
            ("evaluation", "options"),
            ("evaluation", "metric"),
            f"with metric {metric or 'none'}",
            "add `metric: option` or `option_likelihood`",
        )


# Keys of earlier versions, which the runs of those versions still hold, and what took their place.
_RETIRED = {("merge", "max_kl"): "merge.max_lost limits the share of what was learned that a merge may lose"}


def without_retired(root: Node) -> tuple[Node, list[str]]:
    """Take keys of earlier versions out of a tree; a note for each."""
    notes = []
    for path, successor in _RETIRED.items():
        if (node := root.at(path)) is not None:
            root = _without(root, path)
            notes.append(f"{node.key_place.source}: {dotted(path)} is no longer read: {successor}")
    return root, notes


def without_unread(root: Node) -> tuple[Node, list[Problem], list[str]]:
    """Take the settings that are not read out of a tree.

    Returns:
        The tree without them; problems for those set by mistake; notes for those that a later setting made unread.
    """

    def get(path: PathKey) -> Any:
        node = root.at(path)
        return None if node is None else node.plain()

    problems: list[Problem] = []
    noted: dict[str, list[str]] = {}
    pruned = root
    for unread in [*unread_settings(get), *_outvoted(root)]:
        node, cause = root.at(unread.path), root.at(unread.cause)
        if node is None:
            continue
        layer = cause.place.layer if cause else -1
        offender = _set_since(node, layer)
        if offender is not None:
            message = f"'{dotted(unread.path)}' is not read {unread.when}"
            problems.append(offender.key_place.problem(message, unread.hint))
        else:
            noted.setdefault(unread.when, []).append(dotted(unread.path))
        pruned = _without(pruned, unread.path)
    return pruned, problems, [f"not read {when}: {', '.join(keys)}" for when, keys in noted.items()]


def _by_mode(mode: Any) -> Iterator[Unread]:
    if mode not in ("full", "lora", "dora", "qlora", "qdora"):
        return
    cause, when = ("adapter", "mode"), f"in mode {mode}"
    if mode in ("full", "lora", "dora"):
        quantized = "qlora or qdora" if mode == "full" else f"q{mode}"
        yield Unread(("quantization",), cause, when, f"remove it, or write `mode: {quantized}`")
    if mode == "full":
        entries = (*UPDATES.values(), *STARTS.values())
        for key in (*_ADAPTER, *(key.split(".")[1] for entry in entries for key in entry.reads)):
            yield Unread(("adapter", key), cause, when)
        for name in ("optimizer.rule", *(key for entry in RULES.values() for key in entry.reads)):
            yield Unread(tuple(name.split(".")), cause, when)
        # merge.dtype is also what `dorakit quantize` rounds to first.
        yield Unread(("merge", "onto"), cause, when)
        yield Unread(("merge", "max_lost"), cause, when)
    elif mode in ("lora", "qlora"):
        hint = f"remove it, or write `mode: {mode.replace('lora', 'dora')}`"
        yield Unread(("adapter", "magnitude"), cause, when, hint)
    elif mode == "dora":
        yield Unread(("adapter", "magnitude", "init"), cause, when)


def _by_method(get: Callable[[PathKey], Any]) -> Iterator[Unread]:
    """Settings of methods that are not chosen, and those that the chosen ones ignore."""
    tables: tuple[tuple[PathKey, dict[str, Entry], str | None], ...] = (
        (("adapter", "update"), UPDATES, "lora"),
        (("adapter", "start"), STARTS, "kaiming"),
        (("optimizer", "rule"), RULES, None),
    )
    for cause, table, default in tables:
        chosen = get(cause) or default
        for name, entry in table.items():
            if name == chosen:
                ignored = entry.ignores
                when, hint = f"with {cause[1]} {chosen}", "remove it"
            else:
                ignored = entry.reads
                when = f"with {cause[1]} {chosen}" if chosen else f"without a {cause[1]}"
                hint = f"remove it, or write `{cause[1]}: {name}`"
            for key in ignored:
                yield Unread(tuple(key.split(".")), cause, when, hint)


def _by_source(path: PathKey, get: Callable[[PathKey], Any]) -> Iterator[Unread]:
    form, file = get((*path, "format")), get((*path, "path"))
    if form not in ("instruction", None):
        yield Unread((*path, "prompt"), (*path, "format"), f"with format {form}")
    if _is_row_file(file):
        for key in ("split", "name", "revision"):
            yield Unread((*path, key), (*path, "path"), "with a single file")


def _is_row_file(path: Any) -> bool:
    return isinstance(path, str) and path.lower().endswith(ROW_FILES)


def _outvoted(root: Node) -> Iterator[Unread]:
    """Of settings that say the same thing, the one set last stands; set in one place they contradict."""
    for alternatives in ALTERNATIVES:
        given = [
            (node.place.layer, path)
            for path, nothing in alternatives
            if (node := root.at(path)) is not None and node.value != nothing and node.value is not None
        ]
        if len(given) < 2:
            continue
        given.sort(key=lambda entry: entry[0])
        last = given[-1][1]
        for _, path in given[:-1]:
            yield Unread(path, last, f"beside {dotted(last)}", "keep one of the two")


def _set_since(node: Node, layer: int) -> Node | None:
    """The first part of a subtree that was set on this layer or a later one."""
    if isinstance(node.value, dict):
        found = [inner for child in node.value.values() if (inner := _set_since(child, layer))]
        if found:
            return node if node.key_place.layer >= layer and node.key_place.line else found[0]
        return node if not node.value and node.place.layer >= layer else None
    return node if node.place.layer >= layer else None


def _without(node: Node, path: PathKey) -> Node:
    first, rest = path[0], path[1:]
    if isinstance(node.value, dict) and first in node.value:
        entries = dict(node.value)
        if rest:
            entries[str(first)] = _without(entries[str(first)], rest)
        else:
            del entries[str(first)]
        return replace(node, value=entries)
    if isinstance(node.value, list) and isinstance(first, int):
        items = list(node.value)
        items[first] = _without(items[first], rest)
        return replace(node, value=items)
    return node
