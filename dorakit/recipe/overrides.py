"""`--set section.key=value`: the same tree, the same validation, another source."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from dorakit.errors import Problem
from dorakit.recipe.fields import is_free_mapping
from dorakit.recipe.scalars import scalar
from dorakit.recipe.tree import Node, PathKey, Place, Scalar
from dorakit.recipe.yaml_text import parse, secret_problems
from dorakit.secrets import without_values

_INDEX = re.compile(r"0|[1-9][0-9]{0,5}")


def apply_overrides(root: Node, overrides: list[str], layer: int) -> tuple[Node, list[Problem]]:
    """Lay `key=value` texts over a tree, in the order given."""
    problems: list[Problem] = []
    for override in overrides:
        place = Place(f"--set {without_values(override)}", source="--set", layer=layer, directory=Path.cwd())
        if found := secret_problems(override, place):
            problems += found
            continue
        key, equals, value_text = override.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            problems.append(place.problem("expected section.key=value", "for example --set adapter.rank=8"))
            continue
        if key == "extends":
            problems.append(place.problem("extends can only stand in a file"))
            continue
        node, found = _value(value_text, place)
        problems += found
        if node is None:
            continue
        try:
            root = _put(root, _path(root, key), node, ())
        except _Refused as refused:
            problems.append(place.problem(str(refused)))
    return root, problems


class _Refused(Exception):
    """The path leads nowhere."""


def _value(text: str, place: Place) -> tuple[Node | None, list[Problem]]:
    """Read the value: a flow list or mapping, a quoted text, or else one plain scalar taken literally."""
    text = text.strip()
    if not text.startswith(("[", "{", '"', "'")):
        try:
            value: Scalar = scalar(text)
        except ValueError as error:
            return None, [place.problem(str(error))]
        return Node(value, place, place, text), []
    node, found = parse(text, place)
    return (placed(node, place) if node and not found else None), [
        place.problem(problem.message, problem.hint) for problem in found
    ]


def placed(node: Node, place: Place) -> Node:
    """Give every node of a value the place of its argument: a column inside it would say nothing."""
    value = node.value
    if isinstance(value, list):
        value = [placed(item, place) for item in value]
    elif isinstance(value, dict):
        value = {key: placed(item, place) for key, item in value.items()}
    return replace(node, value=value, place=place, key_place=place)


def _path(root: Node, key: str) -> PathKey:
    """Split a dotted key; below a free mapping such as rank_pattern the rest is one key, dots and all."""
    parts = key.split(".")
    path: PathKey = ()
    for number, part in enumerate(parts):
        if is_free_mapping(path):
            return (*path, ".".join(parts[number:]))
        node = root.at(path)
        is_index = node is not None and isinstance(node.value, list) and _INDEX.fullmatch(part)
        path = (*path, int(part) if is_index else part)
    return path


def _put(node: Node | None, path: PathKey, new: Node, done: PathKey) -> Node:
    if not path:
        return new
    part, rest = path[0], path[1:]
    shown = ".".join(map(str, done))
    if node is None or node.value is None:
        node = Node({}, new.place, new.key_place)
    if isinstance(node.value, list):
        if not isinstance(part, int):
            raise _Refused(f"{shown} is a list: write {shown}.0 for its first entry")
        if part >= len(node.value):
            raise _Refused(f"{shown} has {len(node.value)} entries, the last is {shown}.{len(node.value) - 1}")
        items = list(node.value)
        items[part] = _put(items[part], rest, new, (*done, part))
        # A list of scalars is one value: changed in part, it comes from here.
        place = node.place if isinstance(items[part].value, dict) else new.place
        return replace(node, value=items, place=place)
    if not isinstance(node.value, dict):
        raise _Refused(f"{shown} is a value, not a section")
    key = str(part)
    entries = dict(node.value)
    entries[key] = _put(entries.get(key), rest, new, (*done, key))
    return replace(node, value=entries)
