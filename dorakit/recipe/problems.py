"""What the schema finds wrong with a tree, said with places and in our words, everything at once."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from dorakit.errors import Problem
from dorakit.recipe.fields import dotted, section_at
from dorakit.recipe.messages import unknown_key_hint, value_message
from dorakit.recipe.schema import AS_IT_IS, Recipe
from dorakit.recipe.tree import Node, PathKey
from dorakit.recipe.yaml_text import MAX_PROBLEMS


def schema_problems(root: Node, *, between_fields: bool = True) -> list[Problem]:
    """Hold a tree against the schema.

    Args:
        root: The tree.
        between_fields: Also say what the schema finds wrong between the fields of a section.
    """
    try:
        Recipe.model_validate(root.plain(), context=AS_IT_IS)
    except ValidationError as error:
        return _told(error, root, between_fields)
    return []


def _told(error: ValidationError, root: Node, between_fields: bool) -> list[Problem]:
    unknown: list[PathKey] = []
    missing: list[PathKey] = []
    wrong: dict[PathKey, None] = {}
    problems = []
    for entry in error.errors(include_url=False, include_context=True):
        path = _tree_path(root, entry["loc"])
        node = node_at(root, path)
        if entry["type"] == "extra_forbidden":
            unknown.append(path)
        elif entry["type"] == "missing" and isinstance(node.value, dict):
            missing.append((*path, str(entry["loc"][-1])))
        elif entry["type"] == "value_error":
            if between_fields:
                problems.append(node.key_place.problem(f"{dotted(path)}: {entry['ctx']['error']}"))
        else:
            wrong[path] = None
    # Every arm of a union complains; the deepest complaint is the one to read.
    outer = {path[:n] for path in (*wrong, *unknown, *missing) for n in range(len(path))}
    deepest = [path for path in wrong if path not in outer]
    count = len(problems) + len(unknown) + len(missing) + len(deepest)
    meant = set()
    for path in unknown[:MAX_PROBLEMS]:
        hint, field = unknown_key_hint(path)
        meant.add(field)
        problems.append(node_at(root, path).key_place.problem(f"unknown key '{dotted(path)}'", hint))
    for path in missing[:MAX_PROBLEMS]:
        if dotted(path) in meant or (len(path) == 1 and any(m.startswith(f"{path[0]}.") for m in meant)):
            count -= 1
        else:
            problems.append(_missing_problem(path, root))
    for path in deepest[:MAX_PROBLEMS]:
        node = node_at(root, path)
        problems.append(node.place.problem(*value_message(path, node)))
    if count > len(problems):
        last = max(problems, key=lambda problem: (problem.line, problem.column))
        more = f"and {count - len(problems)} more problems of this kind"
        problems.append(Problem(more, last.file, last.line, last.column + 1))
    return problems


def node_at(root: Node, path: PathKey) -> Node:
    """The node at a path that is known to be there."""
    node = root.at(path)
    assert node is not None
    return node


def _tree_path(root: Node, location: tuple[Any, ...]) -> PathKey:
    """The part of pydantic's location that is in the tree; names of union arms are not."""
    path: PathKey = ()
    for part in location:
        if root.at((*path, part)) is not None:
            path = (*path, part)
    return path


def _missing_problem(path: PathKey, root: Node) -> Problem:
    parent = node_at(root, path[:-1])
    section = section_at(path)
    if section is None:
        hint = "write version: 1" if path == ("version",) else ""
        return parent.key_place.problem(f"missing required key '{dotted(path)}'", hint)
    needs = ", ".join(name for name, field in section.model_fields.items() if field.is_required())
    return parent.key_place.problem(f"missing section '{dotted(path)}'", f"it needs {needs}")


def one_per_place(problems: list[Problem]) -> list[Problem]:
    """Keep the first problem of each place: what follows from it is noise."""
    kept: dict[tuple[Any, ...], Problem] = {}
    for problem in problems:
        key = (problem.file, problem.line, problem.column, "" if problem.line else problem.message)
        if not problem.message.startswith("missing"):
            kept.setdefault(key, problem)
        else:
            kept.setdefault((*key, problem.message), problem)
    return list(kept.values())
