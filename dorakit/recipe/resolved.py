"""A recipe as it was resolved: every value with its source, as YAML or as rows; and the schema as JSON."""

from __future__ import annotations

import re
from typing import Any, cast

from dorakit.recipe.scalars import scalar
from dorakit.recipe.schema import Recipe, Section
from dorakit.recipe.tree import PathKey
from dorakit.recipe.unread import unread_settings

_PLAIN = re.compile(r"[A-Za-z0-9_./~]([A-Za-z0-9_./+-]|:(?=[A-Za-z0-9_.+-]))*")
_HEADER = re.compile(r"# (.*), resolved: every value and where it came from\n")
# A value ends at the first "  # " outside quotes.
_LINE = re.compile(r'((?:[^"]|"(?:\\.|[^"\\])*")*?)  # (.*)')
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def leaf_keys(recipe: Recipe) -> list[PathKey]:
    """The path of every value: scalars, lists of scalars and free mappings; sections are gone through."""
    return [path for path, _, _ in _leaves(recipe, ())]


def explain(recipe: Recipe) -> list[tuple[str, str, str, str]]:
    """Say of each value where it came from.

    Returns:
        Rows of dotted key, value as YAML, source, and the module that reads it.
    """
    unread = _unread(recipe)
    rows = []
    for path, value, read_by in _leaves(recipe, ()):
        key = ".".join(map(str, path))
        when = next((unread[path[:n]] for n in range(1, len(path) + 1) if path[:n] in unread), "")
        reader = f"not read {when}" if when else read_by
        rows.append((key, yaml_value(value), recipe.origin.sources.get(key, "default"), reader))
    return rows


def settings(recipe: Recipe) -> dict[str, str]:
    """Every value as YAML, by dotted key."""
    return {".".join(map(str, path)): yaml_value(value) for path, value, _ in _leaves(recipe, ())}


def plain_settings(recipe: Recipe) -> dict[str, Any]:
    """Every value as it is, by dotted key: numbers, texts, booleans, None, lists and mappings of these."""
    return {".".join(map(str, path)): value for path, value, _ in _leaves(recipe, ())}


def dump_resolved(recipe: Recipe) -> str:
    """Write a recipe out in full, each value with a comment that names its source; it loads back equal.

    What is not read in the recipe's mode is named in a comment instead.
    """
    lines = [f"# {_comment(recipe.origin.path)}, resolved: every value and where it came from"]
    lines += [f"# {_comment(note)}" for note in recipe.origin.notes]
    _dump_section(recipe, (), "", lines, recipe.origin.sources, _unread(recipe))
    return "\n".join(lines) + "\n"


def read_resolved(text: str) -> list[tuple[str, str, str]]:
    """What `dump_resolved` wrote, as rows of dotted key, value as YAML and source; lines of another form are left out.

    Nothing is checked, so that a recipe of another version can be shown too. For a recipe to run, there is the loader.
    """
    rows = []
    above: list[tuple[int, str]] = []  # column and name of each section, and number of each entry, that a line is in
    counts: dict[tuple[str, ...], int] = {}
    for line in text.split("\n"):
        column = len(line) - len(line.lstrip(" "))
        body = line[column:]
        above = [(start, name) for start, name in above if start < column]
        if body.startswith("- "):
            place = tuple(name for _, name in above)
            counts[place] = counts.get(place, -1) + 1
            above.append((column, str(counts[place])))
            column, body = column + 2, body[2:]
        key, colon, rest = body.partition(":")
        if body.startswith("#") or not colon:
            continue
        if not rest:
            above.append((column, key))
        elif rest.startswith(" ") and (found := _LINE.fullmatch(rest[1:])):
            rows.append((".".join([*(name for _, name in above), key]), found[1], found[2]))
    return rows


def with_first_sources(recipe: Recipe) -> Recipe:
    """A recipe that was loaded from what `dump_resolved` wrote, with the file and the sources that are told there.

    So that written out once more it says where its values came from, and not that they came from itself.
    """
    origin = recipe.origin
    told = {key: source for key, _, source in read_resolved(origin.text)}
    sources = {
        key: told.get(key, source) if source.startswith(f"{origin.path}:") else source
        for key, source in origin.sources.items()
    }
    header = _HEADER.match(origin.text)
    found = recipe.model_copy()
    found._origin = origin.model_copy(update={"sources": sources, "path": header[1] if header else origin.path})
    return found


def json_schema() -> dict[str, Any]:
    """The recipe as a JSON schema for editors: descriptions, defaults, allowed values.

    What is required is asked for only where the recipe extends no other.
    """
    schema = Recipe.model_json_schema()
    definitions: dict[str, Any] = schema.pop("$defs")
    sections: dict[str, type[Section]] = {"Recipe": Recipe, **{c.__name__: c for c in _sections()}}
    needed = {}
    for name, section in sections.items():
        body = schema if name == "Recipe" else definitions[name]
        body.pop("title", None)
        for key, field in section.model_fields.items():
            shown = body["properties"][key]
            shown.pop("read_by", None)
            shown.pop("title", None)
            shown["description"] = field.description
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            if not field.is_required() and not isinstance(default, Section):
                shown["default"] = list(default) if isinstance(default, tuple) else default
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                required = [k for k, f in field.annotation.model_fields.items() if f.is_required()]
                if required:
                    needed[key] = {"required": required}
                    definitions[field.annotation.__name__].pop("required", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dorakit recipe",
        "description": "A dorakit recipe, version 1.",
        **{key: value for key, value in schema.items() if key not in ("required", "description")},
        "if": {"required": ["extends"]},
        "else": {"required": schema["required"], "properties": needed},
        "$defs": definitions,
    }


def _sections() -> list[type[Section]]:
    found: list[type[Section]] = []
    pending = list(Section.__subclasses__())
    while pending:
        section = pending.pop()
        if section is not Recipe and section.__module__ == Recipe.__module__:
            found.append(section)
        pending += section.__subclasses__()
    return found


def _leaves(section: Section, path: PathKey) -> list[tuple[PathKey, Any, str]]:
    rows: list[tuple[PathKey, Any, str]] = []
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, Section):
            rows += _leaves(value, (*path, key))
        elif isinstance(value, list) and value and isinstance(value[0], Section):
            for index, item in enumerate(value):
                rows += _leaves(item, (*path, key, index))
        else:
            extra = cast("dict[str, Any]", field.json_schema_extra or {})
            rows.append(((*path, key), value, str(extra.get("read_by", ""))))
    return rows


def _unread(recipe: Recipe) -> dict[PathKey, str]:
    """The paths that this recipe leaves unread, and when they are not."""

    def get(path: PathKey) -> Any:
        value: Any = recipe
        for part in path:
            if isinstance(part, int):
                value = value[part] if part < len(value) else None
            else:
                value = getattr(value, part)
        return value

    return {unread.path: unread.when for unread in unread_settings(get)}


def _dump_section(
    section: Section,
    path: PathKey,
    indent: str,
    lines: list[str],
    sources: dict[str, str],
    unread: dict[PathKey, str],
) -> None:
    for key in type(section).model_fields:
        value, here = getattr(section, key), (*path, key)
        if here in unread:
            lines.append(f"{indent}# {key}: not read {unread[here]}")
        elif isinstance(value, Section):
            lines.append(f"{indent}{key}:")
            _dump_section(value, here, indent + "  ", lines, sources, unread)
        elif isinstance(value, list) and value and isinstance(value[0], Section):
            lines.append(f"{indent}{key}:")
            for index, item in enumerate(value):
                entry: list[str] = []
                _dump_section(item, (*here, index), indent + "    ", entry, sources, unread)
                entry[0] = f"{indent}  - {entry[0].lstrip()}"
                lines += entry
        else:
            source = sources.get(".".join(map(str, here)), "default")
            lines.append(f"{indent}{key}: {yaml_value(value)}  # {_comment(source)}")


def yaml_value(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(str(key))}: {yaml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(yaml_value(item) for item in value) + "]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _text(value) if isinstance(value, str) else repr(value)


def _text(text: str) -> str:
    if _PLAIN.fullmatch(text) and isinstance(scalar(text[:400]), str) and not text.startswith("~"):
        return text
    quoted = "".join(_ESCAPES.get(c) or (c if c.isprintable() else _escaped(c)) for c in text)
    return f'"{quoted}"'


def _comment(text: str) -> str:
    """A text on one line that YAML and UTF-8 can hold: the name of a file may be any bytes."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
