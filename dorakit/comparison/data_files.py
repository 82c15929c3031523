"""The files of rows that a comparison began with, so that later cells are of the same."""

from __future__ import annotations

import json
import os
from pathlib import Path

from dorakit.digests import sha256
from dorakit.errors import RunError
from dorakit.files import write_json
from dorakit.recipe.schema import Recipe
from dorakit.terminal import typed

_FILE = "rows.json"


def check_files(place: Path, recipe: Recipe) -> None:
    """Hold the recipe's files of rows against those that the comparison in `place` began with, or note them there.

    Rows of a hub are not asked for: cells of one seed are held against each other (cells.py).

    Raises:
        RunError: A file has other bytes.
    """
    now = _digests(recipe)
    file = place / _FILE
    try:
        then = json.loads(file.read_text(encoding="utf-8"))["files"]
        changed = [path for path, digest in now.items() if then.get(path, digest) != digest]
    except FileNotFoundError:
        then, changed = {}, []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{file} cannot be used ({error})\n  remove it, if no file of rows has changed: rm {typed(file)}"
        ) from None
    if changed:
        raise RunError(
            f"{', '.join(changed)}: other rows than when this comparison began\n"
            f"  put them back, give another --output, or remove what was trained and measured on them: rm -r {typed(place)}"
        )
    if then.keys() != now.keys():
        place.mkdir(parents=True, exist_ok=True)
        write_json(file, {"schema": 1, "files": {**then, **now}})


def _digests(recipe: Recipe) -> dict[str, str]:
    data = recipe.data
    named = [*(source.path for source in data.train), data.validation.path, recipe.evaluation.path]
    found: dict[str, str] = {}
    for path in (Path(data.root, os.path.expanduser(name)) for name in named if name is not None):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        found |= {os.path.abspath(file): sha256(file) for file in files if file.is_file()}
    return found
