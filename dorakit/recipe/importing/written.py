"""The text of a recipe from dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dorakit.recipe.resolved import yaml_value


def in_sections(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as mappings in mappings."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        here = tree
        for section in sections:
            here = here.setdefault(section, {})
        here[name] = value
    return tree


def recipe_text(values: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """Dotted keys as YAML in sections, each line with its comment."""
    return "\n".join(_lines(in_sections(values), "", "", comments)) + "\n"


def _lines(tree: Mapping[str, Any], path: str, indent: str, comments: Mapping[str, str]) -> list[str]:
    lines = []
    for key, value in tree.items():
        here = f"{path}{key}"
        comment = f"  # {' '.join(comments[here].split())}" if here in comments else ""
        if isinstance(value, dict) and here not in comments:
            lines += [f"{indent}{key}:", *_lines(value, f"{here}.", f"{indent}  ", comments)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [f"{indent}{key}:{comment}", *(f"{indent}  - {yaml_value(item)}" for item in value)]
        else:
            lines.append(f"{indent}{key}: {yaml_value(value)}{comment}")
    return lines
