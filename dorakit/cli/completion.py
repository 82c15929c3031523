"""What the shell offers when TAB is pressed: recipes, runs, keys of `--set`, modes. Without torch, which takes seconds.

Names with blanks or with what a shell reads as its own are left out: Typer's script for zsh evaluates what is offered,
and where nothing is, shells complete files by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from dorakit.methods import RULES, UPDATES

_PLAIN = re.compile(r"[\w./@+,-]+")
_DEPTH = 3  # levels of runs/: a comparison keeps its runs one down


def recipes(incomplete: str) -> list[str]:
    """YAML files here and below recipes/."""
    files = [*Path().glob("*.yaml"), *sorted(Path("recipes").rglob("*.yaml"))]
    return _offered(map(str, files), incomplete)


def runs(incomplete: str) -> list[str]:
    """Runs below runs/, and the links `latest` to the newest of them."""
    here = Path("runs")
    try:
        found = run_directories(here, _DEPTH) if here.is_dir() else []
    except OSError:  # a directory that may not be read
        return []
    latest = {run.parent / "latest" for run in found}
    return _offered(map(str, sorted([*(link for link in latest if link.exists()), *found])), incomplete)


def run_directories(directory: Path, depth: int) -> list[Path]:
    """The runs at most so many levels below a directory."""
    if (directory / "run.json").is_file():
        return [directory]
    if depth == 0:
        return []
    below = [path for path in directory.iterdir() if path.is_dir() and not path.is_symlink() and path.name[0] != "."]
    return [run for path in below for run in run_directories(path, depth - 1)]


def settings(incomplete: str) -> list[tuple[str, str]]:
    """KEY= of every setting; of a single one, what it may be."""
    from dorakit.recipe.schema import Recipe

    found = [(key, field) for key, field in _fields(Recipe, "") if key.startswith(incomplete.partition("=")[0])]
    exact = [(key, field) for key, field in found if key == incomplete.partition("=")[0]]
    found = exact or found
    if len(found) != 1:
        return [(f"{key}=", field.description or "") for key, field in found]
    [(key, field)] = found
    return [
        (f"{key}={value}", field.description or "")
        for value in _values(field)
        if f"{key}={value}".startswith(incomplete)
    ]


def modes(incomplete: str) -> list[str]:
    """A list of modes with one more."""
    from dorakit.recipe.fields import type_at

    found = type_at(("adapter", "mode"))
    assert found is not None
    *before, begun = incomplete.split(",")
    return [",".join([*before, mode]) for mode in get_args(found[0]) if mode.startswith(begun) and mode not in before]


def methods(incomplete: str) -> list[str]:
    """Names of the table of methods."""
    return _offered([*UPDATES, *RULES], incomplete)


def _offered(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete) and _PLAIN.fullmatch(name)]


def _fields(section: Any, name: str) -> list[tuple[str, Any]]:
    """Every setting that is one value or list, with its dotted key."""
    from dorakit.recipe.fields import section_at

    found: list[tuple[str, Any]] = []
    for key, field in section.model_fields.items():
        path = f"{name}.{key}" if name else key
        inner = section_at(tuple(path.split(".")))
        found += _fields(inner, path) if inner is not None else [(path, field)]
    return found


def _values(field: Any) -> list[str]:
    """What a value may be, where that can be told; else nothing and the default, so that the shell adds no blank."""
    from dorakit.recipe.fields import arms
    from dorakit.recipe.resolved import yaml_value

    known: list[Any] = []
    for arm in arms(field.annotation):
        known += get_args(arm) if get_origin(arm) is Literal else [True, False] if arm is bool else []
    if known:
        return [yaml_value(value) for value in known]
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    shown = yaml_value(default)
    return ["", shown] if _PLAIN.fullmatch(shown) else [""]
