"""What the schema says about a path: its section, its type, its default; and where each key is at home."""

from __future__ import annotations

import types
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from dorakit.recipe.schema import Recipe, Section
from dorakit.recipe.tree import PathKey


def section_at(path: PathKey) -> type[Section] | None:
    """The section that a path leads to, if it leads to one."""
    found = type_at(path)
    return found[0] if found and isinstance(found[0], type) and issubclass(found[0], Section) else None


def is_free_mapping(path: PathKey) -> bool:
    """Whether the keys below a path are the user's own (rank_pattern, alpha_pattern, columns)."""
    found = type_at(path)
    return bool(found) and get_origin(found[0]) is dict if found else False


def default_of(path: PathKey) -> Any:
    """The schema's default at a path; None where there is none."""
    section = section_at(path[:-1])
    field = section.model_fields.get(str(path[-1])) if section else None
    return None if field is None or field.is_required() else field.get_default(call_default_factory=True)


def dotted(path: PathKey) -> str:
    """A path as the user writes it: data.train.0.path."""
    return ".".join(str(part)[:60] for part in path)


def field_name(path: PathKey) -> str:
    """A path without list indices: data.train.path."""
    return ".".join(part for part in path if isinstance(part, str))


@cache
def homes() -> dict[str, list[str]]:
    """Every key of the schema, and the sections that have it ('' is the top level)."""
    found: dict[str, list[str]] = {}

    def walk(section: type[Section], name: str) -> None:
        for key, field in section.model_fields.items():
            found.setdefault(key, []).append(name)
            for inner in _sections_in(field.annotation):
                walk(inner, f"{name}.{key}" if name else key)

    walk(Recipe, "")
    return found


def unwrap(annotation: Any, metadata: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Separate a type from the constraints around it."""
    while get_origin(annotation) is Annotated:
        annotation, *extras = get_args(annotation)
        for extra in extras:
            metadata += tuple(extra.metadata) if isinstance(extra, FieldInfo) else (extra,)
    return annotation, metadata


def arms(annotation: Any) -> list[Any]:
    """The types of a union, or the one type."""
    annotation, _ = unwrap(annotation, ())
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for argument in get_args(annotation) for inner in arms(argument)]
    return [annotation]


def _sections_in(annotation: Any) -> list[type[Section]]:
    found = []
    for arm in arms(annotation):
        if isinstance(arm, type) and issubclass(arm, Section):
            found.append(arm)
        elif get_origin(arm) is list:
            found += _sections_in(get_args(arm)[0])
    return found


def type_at(path: PathKey) -> tuple[Any, tuple[Any, ...]] | None:
    """The type that the schema gives to a path, with its constraints."""
    annotation: Any = Recipe
    metadata: tuple[Any, ...] = ()
    for part in path:
        step = None
        for arm in arms(annotation):
            step = step or _step(arm, part)
        if step is None:
            return None
        annotation, metadata = step
    return unwrap(annotation, metadata)


def _step(annotation: Any, part: str | int) -> tuple[Any, tuple[Any, ...]] | None:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Section) and isinstance(part, str):
        field = annotation.model_fields.get(part)
        return (field.annotation, tuple(field.metadata)) if field else None
    if origin is list and isinstance(part, int):
        return arguments[0], ()
    if origin is tuple and isinstance(part, int):
        return arguments[min(part, len(arguments) - 1)], ()
    if origin is dict and isinstance(part, str):
        return arguments[1], ()
    return None
