"""A recipe given as Python values: `Recipe(...)` and `Recipe.model_validate(...)`.

The values become YAML text and the tree of that text, so that they are judged as a file is, in the same words; a mistake
has no line, since there is none. A value that equals its default counts as not written: `model_dump()` of one recipe makes
another, though it also has the settings that the mode does not read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dorakit.errors import Problem, RecipeError
from dorakit.recipe.fields import dotted, section_at
from dorakit.recipe.loader import extended, finished
from dorakit.recipe.overrides import placed
from dorakit.recipe.resolved import leaf_keys, yaml_value
from dorakit.recipe.schema import Recipe, Section
from dorakit.recipe.tree import PathKey, Place
from dorakit.recipe.yaml_text import MAX_DEPTH, decode, parse

SOURCE = "python"
_NAME = "recipe"  # what {name} in output_dir stands for


def recipe_from_python(given: Any) -> Recipe:
    """Judge values as a recipe file is judged.

    Args:
        given: A mapping of sections, each a mapping or a section of the schema.

    Raises:
        RecipeError: With every problem found.
    """
    problems: list[Problem] = []
    values = _plain(given, (), problems)
    if not problems and not isinstance(values, dict):
        problems = [
            Problem("a recipe is a mapping of sections", _NAME, hint="it needs version, model, adapter, data, ...")
        ]
    if problems:
        raise RecipeError(problems)
    # Over another recipe a default is a change.
    written = values if values.get("extends") is not None else _without_defaults(values, ())
    text = _as_yaml(written) or "{}"
    text, problems = decode(text.encode("utf-8", "surrogatepass"), _NAME, len(text))
    if problems:
        raise RecipeError(problems)
    place = Place(_NAME, source=SOURCE, directory=Path.cwd())
    root, problems = parse(text, place)
    if root is None:
        raise RecipeError(problems)
    whole, found = extended(placed(root, place), "<python>")
    if whole is None:
        raise RecipeError(problems + found)
    recipe = finished(whole, problems + found, path=SOURCE, text="")
    sources = {dotted(path): SOURCE for path in leaf_keys(recipe) if _is_in(values, path)}
    kept = _without_defaults(recipe.model_dump(exclude_unset=True, exclude={"extends"}), ())
    recipe._origin = recipe.origin.model_copy(
        update={
            "name": _NAME,
            "text": f"# A recipe that was made in Python\n{_as_yaml(kept)}",
            "sources": {**recipe.origin.sources, **sources, "extends": "default"},
        }
    )
    return recipe


def _plain(value: Any, path: PathKey, problems: list[Problem]) -> Any:
    """Mappings, lists, texts, numbers, booleans and None; anything else is a problem."""
    if isinstance(value, Section):
        value = {name: getattr(value, name) for name in type(value).model_fields if name in value.model_fields_set}
    if len(path) > MAX_DEPTH:
        problems.append(Problem(f"{dotted(path[:3])}...: nested more than {MAX_DEPTH} levels deep", _NAME))
    elif isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                problems.append(Problem(f"{dotted(path) or 'the recipe'}: a key must be text, not {key!r:.60}", _NAME))
        return {str(key): _plain(item, (*path, str(key)), problems) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        return [_plain(item, (*path, index), problems) for index, item in enumerate(value)]
    elif value is None or isinstance(value, bool):
        return value
    else:
        # Plain values of subclasses: numpy's float64, members of an enumeration.
        for kind, plain in ((str, str.__str__), (int, int), (float, float)):
            if isinstance(value, kind):
                return plain(value)
        expected = "expected text, a number, True, False, None, a list or a dict"
        hint = f"write {os.fspath(value)!r}" if isinstance(value, os.PathLike) else ""
        problems.append(Problem(f"{dotted(path)}: {type(value).__name__} {value!r:.60}, {expected}", _NAME, hint=hint))
    return None


def _without_defaults(value: Any, path: PathKey) -> Any:
    """The values that are not those of the schema anyway, without the sections that this leaves empty."""
    if isinstance(value, list):
        return [_without_defaults(item, (*path, index)) for index, item in enumerate(value)]
    section = section_at(path)
    if section is None or not isinstance(value, dict):
        return value
    kept = {}
    for key, item in value.items():
        field = section.model_fields.get(key)
        left = _without_defaults(item, (*path, key))
        if field is not None and not field.is_required():
            default = field.get_default(call_default_factory=True)
            # By their texts, since 1 == 1.0 == True.
            if left == {} or repr(item) == repr(list(default) if isinstance(default, tuple) else default):
                continue
        kept[key] = left
    return kept


def _is_in(values: Any, path: PathKey) -> bool:
    for part in path:
        if isinstance(values, dict) and part in values:
            values = values[str(part)]
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            return False
    return True


def _as_yaml(values: Any, indent: str = "") -> str:
    """Sections as blocks, everything else on one line."""
    lines = []
    for key, item in values.items():
        name = f"{indent}{yaml_value(key)}:"
        if isinstance(item, dict) and item:
            lines.append(f"{name}\n{_as_yaml(item, indent + '  ')}")
        elif isinstance(item, list) and item and all(isinstance(entry, dict) for entry in item):
            lines.append(name + "\n" + "".join(f"{indent}  - {yaml_value(entry)}\n" for entry in item))
        else:
            lines.append(f"{name} {yaml_value(item)}\n")
    return "".join(lines)
