"""YAML text to Recipe: `extends`, `--set`, `--twin`, positions, and every problem at once.

Three steps: files and overrides become one tree of nodes with places (yaml_text.py, overrides.py); the schema and the
cross-field rules (rules.py) judge it; the recipe leaves with its paths absolute and the source of each value recorded.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from dorakit.errors import Problem, RecipeError
from dorakit.recipe.fields import dotted
from dorakit.recipe.overrides import apply_overrides
from dorakit.recipe.paths import with_settled_paths
from dorakit.recipe.problems import one_per_place, schema_problems
from dorakit.recipe.resolved import dump_resolved as dump_resolved
from dorakit.recipe.resolved import explain as explain
from dorakit.recipe.resolved import json_schema as json_schema
from dorakit.recipe.resolved import leaf_keys
from dorakit.recipe.rules import broken_rules, remarks, with_twin
from dorakit.recipe.schema import AS_IT_IS, Origin, Recipe
from dorakit.recipe.tree import Node, Place, merged
from dorakit.recipe.unread import without_retired, without_unread
from dorakit.recipe.yaml_text import MAX_BYTES, decode, parse
from dorakit.words import near

_MAX_CHAIN = 16
_LISTED = 8


def load_recipe(path: str, overrides: list[str], *, twin: bool = False) -> Recipe:
    """Read, merge, override and validate a recipe file.

    Relative paths in it start from the directory of the file they are written in; in `--set`, from the working
    directory; those of data from data.root, where one is stated.

    Args:
        path: The YAML file.
        overrides: `section.key=value` texts.
        twin: Swap the base for `tiny:<architecture>`.

    Raises:
        RecipeError: With every problem found.
    """
    path = str(path)
    text, root, problems = _read_chain(path, ())
    if root is None:
        raise RecipeError(problems)
    layer = root.place.layer + 1
    root, found = apply_overrides(root, overrides, layer)
    problems += found
    if twin:
        root, found = with_twin(root, layer + 1)
        problems += found
    return finished(root, problems, path=path, text=text, is_twin=twin)


def finished(root: Node, problems: list[Problem], *, path: str, text: str, is_twin: bool = False) -> Recipe:
    """Judge a whole tree and make the recipe of it, with its paths absolute and the source of each value recorded.

    Args:
        root: Files and overrides, laid over each other.
        problems: Those found on the way here.
        path: Of the file at the beginning, as the user names it.
        text: What that file holds.
        is_twin: Whether the base was swapped.

    Raises:
        RecipeError: With every problem found.
    """
    root, notes = without_retired(root)
    kept, found, unread = without_unread(root)
    problems = problems + found
    notes += unread
    # What is taken out must still be right; only what holds between fields is judged without it.
    problems += schema_problems(root, between_fields=False) + schema_problems(kept)
    problems += broken_rules(kept)
    notes += remarks(kept)
    if problems:
        raise RecipeError(one_per_place(problems))
    # `extends` is done.
    recipe = Recipe.model_validate(kept.plain(), context=AS_IT_IS).model_copy(update={"extends": None})
    recipe = with_settled_paths(recipe, kept)
    recipe._origin = Origin(
        path=path,
        name=Path(path).name.removesuffix(".yaml").removesuffix(".yml"),
        text=text,
        sources=_sources(recipe, kept),
        notes=notes,
        is_twin=is_twin,
    )
    return recipe


def extended(root: Node, path: str, below: tuple[str, ...] = ()) -> tuple[Node | None, list[Problem]]:
    """Lay a tree over the recipe that it extends, if it extends one; `path` is its file, `below` those that led here."""
    extends = root.entries.get("extends")
    if extends is None or not isinstance(extends.value, str) or not extends.value:
        return root, []
    parent = os.path.expanduser(extends.value)
    if not os.path.isabs(parent):
        parent = os.path.normpath(os.path.join(os.path.dirname(path), parent))
    chain = (*below, path)
    seen = [os.path.realpath(file) for file in chain]
    if os.path.realpath(parent) in seen:
        loop = " -> ".join((*chain[seen.index(os.path.realpath(parent)) :], parent))
        return root, [extends.place.problem(f"recipes extend each other: {loop}")]
    if len(chain) >= _MAX_CHAIN:
        return root, [extends.place.problem(f"a chain of more than {_MAX_CHAIN} recipes")]
    if not os.path.isfile(parent):
        return None, [extends.place.problem(f"extends: no such file: {parent}", _near(parent))]
    _, base, problems = _read_chain(parent, chain)
    if base is None:
        return None, problems
    return merged(base, _raised(root, base.place.layer + 1)), problems


def _read_chain(path: str, below: tuple[str, ...]) -> tuple[str, Node | None, list[Problem]]:
    """Read a file and everything it extends; `below` are the files that led here."""
    directory = Path(os.path.abspath(path)).parent
    text, problems = _read(path)
    if problems:
        return text, None, problems
    root, problems = parse(text, Place(path, directory=directory))
    if root is None or not isinstance(root.value, dict):
        if not problems:
            what = "the file is empty" if root is None or root.value is None else "a recipe is a mapping of sections"
            hint = "it starts with `version: 1`"
            place = root.place if root and root.place.line else None
            problems = [place.problem(what, hint) if place else Problem(what, path, hint=hint)]
        return text, None, problems
    root, found = extended(root, path, below)
    return text, root, problems + found


def _read(path: str) -> tuple[str, list[Problem]]:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)  # enough to see that it is too large, of /dev/zero too
            size = max(len(content), os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        return "", [Problem("no such file", path, hint=_near(path))]
    except IsADirectoryError:
        return "", [Problem("a directory, not a recipe file", path)]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return "", [Problem(f"cannot be read: {reason}", path)]
    return decode(content, path, size)


def _near(path: str) -> str:
    """What may have been meant by a path at which nothing is."""
    directory, name = os.path.split(path)
    try:
        names = sorted(entry for entry in os.listdir(directory or ".") if entry.endswith((".yaml", ".yml")))
    except OSError:
        above = next((str(parent) for parent in Path(os.path.abspath(path)).parents if parent.is_dir()), "/")
        return f"the nearest directory that exists is {above}"
    if meant := near(name, names):
        return f"did you mean {os.path.join(directory, meant[0])}?"
    if names:
        return f"recipes there: {', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}"
    return "there is no recipe in that directory; `dorakit init` writes one"


def _raised(node: Node, layer: int) -> Node:
    """Put a tree on a layer."""
    value = node.value
    if isinstance(value, dict):
        value = {key: _raised(item, layer) for key, item in value.items()}
    elif isinstance(value, list):
        value = [_raised(item, layer) for item in value]
    return replace(
        node, value=value, place=replace(node.place, layer=layer), key_place=replace(node.key_place, layer=layer)
    )


def _sources(recipe: Recipe, root: Node) -> dict[str, str]:
    sources = {}
    for path in leaf_keys(recipe):
        node = root.at(path) if path != ("extends",) else None
        sources[dotted(path)] = node.place.source if node else "default"
    return sources
