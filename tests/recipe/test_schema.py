"""Every field says what it means and is read; what is generated from the schema is current."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import dorakit
from dorakit.recipe.fields import arms, homes, section_at, type_at
from dorakit.recipe.foreign import KEYS, VALUES
from dorakit.recipe.loader import json_schema, load_recipe
from dorakit.recipe.schema import Recipe, Section

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(dorakit.__file__).parent


def fields(section: type[Section], name: str = "") -> Iterator[tuple[str, Any]]:
    for key, field in section.model_fields.items():
        here = f"{name}.{key}" if name else key
        yield here, field
        for inner in [inner for arm in arms(field.annotation) for inner in (arm, *get_args(arm))]:
            if isinstance(inner, type) and issubclass(inner, Section):
                yield from fields(inner, here)


ALL = dict(fields(Recipe))


def test_every_field_has_a_description() -> None:
    assert [name for name, field in ALL.items() if not field.description] == []


def test_every_field_is_read_where_it_says() -> None:
    """Catches a field that was added to the schema and forgotten, or whose reader moved."""
    unread = []
    for name, field in ALL.items():
        reader = field.json_schema_extra["read_by"]
        key = name.rpartition(".")[2]
        module = PACKAGE / reader
        # The loader and its neighbours meet keys as texts, everything else as attributes.
        mention = rf'\.{key}\b|"{key}"' if reader.startswith("recipe/") else rf"\.{key}\b"
        if not module.is_file() or not re.search(mention, module.read_text(encoding="utf-8")):
            unread.append(f"{name}: not in {reader}")
    assert not unread, "\n".join(unread)


def test_json_schema_describes_every_field() -> None:
    schema = json_schema()
    definitions = schema["$defs"]
    bare = [
        f"{name}.{key}"
        for name, body in [("Recipe", schema), *definitions.items()]
        for key, shown in body["properties"].items()
        if not shown.get("description")
    ]
    assert bare == []
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False
    assert definitions["AdapterSection"]["properties"]["rank"]["default"] == 16
    assert schema["else"]["properties"]["optimizer"]["required"] == ["learning_rate"]


def test_generated_files_are_current() -> None:
    """Fails when the schema changed and `python scripts/generate_docs.py` was not run."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate_docs.py"), "--check"], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0), "run python scripts/generate_docs.py"


def test_foreign_names_are_not_ours_and_lead_somewhere() -> None:
    assert [name for name in KEYS if name in homes()] == []
    assert [hint for hint in KEYS.values() if " " not in hint and hint not in ALL] == []
    for name, meant in VALUES.items():
        path = tuple(name.replace("train.format", "train.0.format").split("."))
        steps = tuple(int(part) if part == "0" else part for part in path)
        found = type_at(steps)
        assert found is not None, name
        assert set(meant.values()) <= set(get_args(found[0])), name
        assert not set(meant) & set(get_args(found[0])), name


def test_sections_are_found_by_path() -> None:
    assert section_at(("data", "train", 3)) is not None
    assert section_at(("data", "train")) is None
    assert section_at(("adapter", "magnitude", "init")) is None


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.stem)
@pytest.mark.parametrize("twin", [False, True], ids=["plain", "twin"])
def test_shipped_recipes_are_valid(path: Path, twin: bool) -> None:
    recipe = load_recipe(str(path), [], twin=twin)
    assert recipe.model.base.startswith("tiny:") or not twin
    assert recipe.model.architecture is not None
