"""The shape of a run's JSON files, checked before they are used: they may be damaged, edited, or a stranger's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dorakit.errors import RunError

SCHEMA_VERSION = 1
STATES = ("training", "finished", "failed")


@dataclass(frozen=True)
class Maybe:
    """A value of this shape, or null."""

    shape: Any


@dataclass(frozen=True)
class Count:
    """A whole number from 0, below 2^53."""


_NAMES = {str: "a text", bool: "true or false", float: "a finite number", list: "a list", dict: "an object"}
# Keys that end in "?" may be absent; those that are not named here are somebody else's.
_RUN = {
    "state": STATES,
    "notes": [str],
    "is_twin?": bool,
    "base?": {"name?": str, "revision?": Maybe(str), "files?": {str: str}},
    "from?": Maybe({"adapter": str, "keeps_ties?": bool}),
    "launch?": str,
    "template_date?": Maybe(str),
    "accepted?": {"step": Count(), "values": dict},
    "data?": {"fingerprint?": str},
    "computing?": {str: str},
    "best_validation_loss?": Maybe(float),
    "seconds?": float,
} | {
    f"{name}?": Count()
    for name in ("steps", "skipped_steps", "tokens", "trained_parameters", "best_step", "peak_memory_bytes")
}


def check_facts(file: Path, facts: dict[str, Any]) -> None:
    """Make sure that run.json is one, and of a version that this dorakit reads.

    Raises:
        RunError: With the field that is missing or odd.
    """
    if (version := facts.get("schema")) != SCHEMA_VERSION:
        raise RunError(f"{file} has schema {version!r:.40}; this dorakit reads {SCHEMA_VERSION}")
    check_shape(file, facts, _RUN)


def field_of(file: Path, facts: dict[str, Any], name: str) -> Any:
    """A field that a run has once it is finished; `data.fingerprint` is one inside another.

    Raises:
        RunError: It is not there.
    """
    value: Any = facts
    for key in name.split("."):
        if not isinstance(value, dict) or key not in value:
            raise RunError(f"{file} is damaged: it has no {name!r}")
        value = value[key]
    return value


def check_shape(file: Path, content: Any, shape: Any) -> None:
    """Hold the content of a JSON file against a shape.

    A shape is a type, a `Maybe`, a `Count`, a tuple of the texts that there are, `[shape]` for a list, `{str: shape}` for an
    object with any keys, or `{"key": shape, "key?": shape}`.

    Raises:
        RunError: With the first field that is missing or odd.
    """
    if problem := _problem(content, shape, ""):
        raise RunError(f"{file} is damaged: {problem}\n  take it from a copy of the run, or begin the run again")


def _problem(value: Any, shape: Any, place: str) -> str:
    """What is wrong with a value; "" where nothing is."""
    if isinstance(shape, Maybe):
        return "" if value is None else _problem(value, shape.shape, place)
    if isinstance(shape, Mapping) and isinstance(value, dict):
        return _problem_inside(value, shape, place)
    if isinstance(shape, list) and isinstance(value, list):
        return next(filter(None, (_problem(inner, shape[0], f"{place}[{n}]") for n, inner in enumerate(value))), "")
    if isinstance(shape, tuple):
        is_right, expected = value in shape, " or ".join(shape)
    elif isinstance(shape, Count):
        is_right = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53
        expected = "a whole number from 0"
    elif shape is float:
        is_right = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
        is_right, expected = is_right and math.isfinite(value), _NAMES[float]
    else:
        kind = dict if isinstance(shape, Mapping) else list if isinstance(shape, list) else shape
        is_right, expected = isinstance(value, kind), _NAMES[kind]
    return "" if is_right else f"{place!r} is {value!r:.40}, expected {expected}"


def _problem_inside(value: dict[str, Any], shape: Mapping[Any, Any], place: str) -> str:
    dot = f"{place}." if place else ""
    if str in shape:
        return next(filter(None, (_problem(inner, shape[str], f"{dot}{key}") for key, inner in value.items())), "")
    for key, inner in shape.items():
        name = key.removesuffix("?")
        if name not in value:
            if name == key:
                return f"it has no {dot + name!r}"
        elif problem := _problem(value[name], inner, f"{dot}{name}"):
            return problem
    return ""
