"""What must hold between fields, and what a text field must look like; and the base that `--twin` puts in.

The rules look at the tree, not at a validated recipe, so that they speak up beside the schema's own complaints. A value
of the wrong type is the schema's business: a rule passes over it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dorakit.errors import Problem
from dorakit.methods import RULES, STARTS, UPDATES, misfits
from dorakit.recipe.fields import default_of, dotted
from dorakit.recipe.paths import is_path, is_template_text
from dorakit.recipe.tree import Node, PathKey, Place
from dorakit.words import near

PROMPTS = ("default", "llm-adapters", "orca-math", "chat")
_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_MAX_NAME_BYTES, _MAX_PATH_BYTES = 255, 4095  # of Linux
_MAX_USUAL_RATE = 1e-2
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def broken_rules(root: Node) -> Iterator[Problem]:
    """Find what is wrong between fields."""
    yield from _paths(root)
    yield from _base(root)
    yield from _batch(root)
    yield from _compile(root)
    yield from _methods(root)
    yield from _sources(root)
    yield from _prompts(root)
    yield from _best(root)
    yield from _regexes(root)


def remarks(root: Node) -> Iterator[str]:
    """Say what is allowed and most likely a slip; lines to print and record.

    No problem, since `--set training.max_steps=2` tries a recipe out, and a run's recipe must load ever after.
    """
    rate, steps = _value(root, ("optimizer", "learning_rate")), _value(root, ("training", "max_steps"))
    # sgd takes rates a hundred times those of the others, which normalise the gradient.
    if _is_number(rate) and _MAX_USUAL_RATE < rate and _value(root, ("optimizer", "name")) != "sgd":
        yield f"optimizer.learning_rate {rate:g} is unusually large: most runs diverge above {_MAX_USUAL_RATE:g}"
    if _value(root, ("adapter", "start")) == "pissa" and _value(root, ("adapter", "dropout")):
        yield "adapter.dropout with start pissa drops part of W's principal directions; the paper trains without dropout"
    train = root.at(("data", "train"))
    for index, source in enumerate(train.items if train else ()):
        form = source.at(("format",))
        if form is not None and form.value == "instruction" and source.at(("prompt",)) is None:
            yield (
                f"data.train.{index}.prompt is not set, so its rows go into Alpaca's text (default); for a model with a chat "
                "template, `prompt: chat` asks and answers in the model's own turns"
            )
    if not _is_int(steps):
        return
    warmup = _value(root, ("optimizer", "warmup_steps"))
    if _is_int(warmup) and warmup >= steps > 0:
        yield (
            f"optimizer.warmup_steps {warmup} is not below training.max_steps {steps}: the learning rate never reaches "
            "its peak"
        )
    for key, rest in (("save_every", "the only checkpoint is"), ("eval_every", "the only validation is")):
        every = root.at(("training", key))
        if every is not None and _is_int(every.value) and every.plain() > steps > 0:
            yield f"training.{key} {every.text or every.value} is above training.max_steps {steps}: {rest} at the end"


def with_twin(root: Node, layer: int) -> tuple[Node, list[Problem]]:
    """Put `tiny:<architecture>` in the place of model.base; a base that is tiny already stays.

    The architecture is model.architecture, else what config.json of a local base directory says.
    """
    node, model = root.at(("model", "base")), root.at(("model",))
    if node is None or model is None or not isinstance(node.value, str) or node.value.startswith("tiny:"):
        return root, []
    architecture = _architecture(root, node)
    if architecture is None:
        hint = "add model.architecture, for example `architecture: llama`"
        return root, [node.place.problem(f"--twin: the architecture of {node.value!r} is not known", hint)]
    place = Place("--twin", source="--twin", layer=layer)
    base = Node(f"tiny:{architecture}", place, place)
    entries = {**root.entries, "model": replace(model, value={**model.entries, "base": base})}
    return replace(root, value=entries), []


def _architecture(root: Node, base: Node) -> str | None:
    stated = root.at(("model", "architecture"))
    if stated is not None and isinstance(stated.value, str):
        return stated.value
    if not is_path(str(base.value)):
        return None
    config = base.place.directory / Path(str(base.value)).expanduser() / "config.json"
    try:
        found = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    return found if isinstance(found, str) and _WORD.fullmatch(found) else None


def _value(root: Node, path: PathKey) -> Any:
    """The value at a path, or the schema's default."""
    node = root.at(path)
    return default_of(path) if node is None else node.plain()


def _paths(root: Node) -> Iterator[Problem]:
    """A path that no machine can have is found here, where it has a place; opening it would fail in many ways."""
    train = root.at(("data", "train"))
    sources: list[PathKey] = [("data", "train", index, "path") for index in range(len(train.items) if train else 0)]
    others: list[PathKey] = [("output_dir",), ("model", "base"), ("data", "root"), ("data", "chat_template")]
    for path in [*others, *sources, ("data", "validation", "path"), ("evaluation", "path")]:
        node = root.at(path)
        if node is None or not isinstance(node.value, str) or is_template_text(node.value):
            continue
        found = os.path.expanduser(node.value)
        names = [len(os.fsencode(name)) for name in found.split("/")]
        if found.startswith("~"):
            user = found.partition("/")[0]
            yield node.place.problem(f"{dotted(path)}: {user!r} is nobody's home directory", "write the directory out")
        elif "\0" in found:
            yield node.place.problem(f"{dotted(path)}: a path with a zero byte", "remove it")
        elif max(names) > _MAX_NAME_BYTES:
            message = f"{dotted(path)}: a name of {max(names)} bytes in a path, where {_MAX_NAME_BYTES} are possible"
            yield node.place.problem(message)
        elif len(os.fsencode(found)) > _MAX_PATH_BYTES:
            message = f"{dotted(path)}: a path of {len(os.fsencode(found))} bytes, where {_MAX_PATH_BYTES} are possible"
            yield node.place.problem(message)


def _base(root: Node) -> Iterator[Problem]:
    node = root.at(("model", "base"))
    if node is None or not isinstance(node.value, str):
        return
    base = node.value
    if base.startswith("pkg:"):
        package, slash, file = base.removeprefix("pkg:").partition("/")
        if not (slash and file and _WORD.fullmatch(package)):
            yield node.place.problem(f"model.base: {base!r} names no file", "write pkg:<installed package>/<file>")
    elif base.startswith("tiny:"):
        if not _WORD.fullmatch(base.removeprefix("tiny:")):
            yield node.place.problem(f"model.base: {base!r} names no architecture", "write tiny:llama")
    elif not is_path(base) and not _HUB_ID.fullmatch(base):
        meant = "for a directory, start with ./ or /" if "/" in base else "write a hub id, ./directory, file.gguf"
        yield node.place.problem(f"model.base: {base!r} is not a hub id", meant)
    stated = root.at(("model", "architecture"))
    if stated is not None and isinstance(stated.value, str) and not _WORD.fullmatch(stated.value):
        yield stated.place.problem(f"model.architecture: {stated.value!r} is no architecture", "for example llama")


def _batch(root: Node) -> Iterator[Problem]:
    paths = ("training", "batch_size"), ("training", "micro_batch_size")
    batch, micro = (_value(root, path) for path in paths)
    if _value(root, ("training", "micro_batch_tokens")) is not None:
        return
    if not (_is_int(batch) and _is_int(micro) and 0 < batch < micro):
        return
    nodes = [node for path in paths if (node := root.at(path))]
    last = max(reversed(nodes), key=lambda node: node.place.layer)
    default = "" if root.at(paths[1]) else " (the default)"
    message = f"training.micro_batch_size {micro}{default} is larger than training.batch_size {batch}"
    yield last.place.problem(message, f"set micro_batch_size to {batch} or less")


def _compile(root: Node) -> Iterator[Problem]:
    nodes = [root.at(("training", name)) for name in ("compile", "gradient_checkpointing")]
    if all(node is not None and node.plain() is True for node in nodes):
        # torch falls back to the plain layer for all that is computed again, without a word.
        node = max((node for node in nodes if node), key=lambda node: node.place.layer)
        message = "training.compile has no effect on layers that training.gradient_checkpointing computes again"
        yield node.place.problem(message, "set one of them to false")


def _methods(root: Node) -> Iterator[Problem]:
    update = root.at(("adapter", "update"))
    name = "lora" if update is None else update.value
    for key, path, table in (("rule", ("optimizer", "rule"), RULES), ("start", ("adapter", "start"), STARTS)):
        other = root.at(path)
        if other is None or other.value not in table or name not in UPDATES:
            continue
        if why := misfits(name, **{key: other.value}):
            yield max((node for node in (other, update) if node), key=lambda node: node.place.layer).place.problem(
                why, "remove one of the two"
            )


def _sources(root: Node) -> Iterator[Problem]:
    """`train_on: last` needs conversations."""
    node, train = root.at(("data", "train_on")), root.at(("data", "train"))
    if node is None or node.value != "last" or train is None:
        return
    forms = [form.value for item in train.items if (form := item.at(("format",)))]
    prompts = [prompt.value for item in train.items if (prompt := item.at(("prompt",)))]
    if forms and "chat" not in [*forms, *prompts]:
        message = "data.train_on: last needs a source of format chat, or of format instruction with prompt: chat"
        yield node.place.problem(message, "write completion or all")
    elif "text" in forms:
        yield node.place.problem("data.train_on: a source of format text has no last turn", "write completion or all")


def _prompts(root: Node) -> Iterator[Problem]:
    train = root.at(("data", "train"))
    paths: list[PathKey] = [("data", "train", index, "prompt") for index in range(len(train.items) if train else 0)]
    for path in [*paths, ("evaluation", "prompt")]:
        node = root.at(path)
        if node is None or not isinstance(node.value, str):
            continue
        if node.value not in PROMPTS and "{instruction}" not in node.value:
            meant = next(iter(near(node.value, PROMPTS)), "")
            message = (
                f"{dotted(path)}: {node.value[:60]!r} is not one of {', '.join(PROMPTS)} and has no {{instruction}}"
            )
            yield node.place.problem(message, f"did you mean '{meant}'?" if meant else "")


def _best(root: Node) -> Iterator[Problem]:
    node = root.at(("training", "keep_best"))
    held_out = [_value(root, ("data", "validation", key)) for key in ("fraction", "rows", "path")]
    if node is not None and node.value is True and not any(held_out):
        hint = "add for example data.validation: {fraction: 0.02}"
        yield node.place.problem("training.keep_best needs validation rows", hint)


def _regexes(root: Node) -> Iterator[Problem]:
    """A target_modules text and the keys of rank_pattern and alpha_pattern are regular expressions."""
    for setting in ("rank_pattern", "alpha_pattern"):
        patterns = root.at(("adapter", setting))
        for key, entry in patterns.entries.items() if patterns and isinstance(patterns.value, dict) else ():
            try:
                re.compile(rf"(.*\.)?({key})$")
            except (re.error, RecursionError, OverflowError) as error:
                hint = "a key is a name suffix or a regular expression: q_proj, or .*q_proj"
                yield entry.place.problem(f"adapter.{setting}: {key!r} is no regular expression: {error}", hint)
    node = root.at(("adapter", "target_modules"))
    if node is None or not isinstance(node.value, str) or node.value == "all-linear":
        return
    if near(node.value, ["all-linear"]):
        message = f"adapter.target_modules: {node.value!r} would match no module"
        yield node.place.problem(message, "did you mean 'all-linear'?")
        return
    try:
        re.compile(node.value)
    except (re.error, RecursionError, OverflowError) as error:
        hint = "write all-linear, or a list of name suffixes"
        yield node.place.problem(f"adapter.target_modules is no regular expression: {error}", hint)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or isinstance(value, float)
