"""The place in a file at which a value of a loaded recipe was written, for mistakes that only show later."""

from __future__ import annotations

import re
from pathlib import Path

from dorakit.errors import Problem
from dorakit.recipe.schema import Recipe
from dorakit.recipe.tree import Place


def problem_at(recipe: Recipe, key: str, message: str, hint: str = "") -> Problem:
    """Make a mistake at the value of a dotted key; one from `--set`, or a default, has no line."""
    source = recipe.origin.sources.get(key, "default")
    file, _, number = source.rpartition(":")
    if not number.isdigit():
        return Problem(message, recipe.origin.path if source == "default" else source, hint=hint)
    try:
        line = Path(file).read_text(encoding="utf-8").splitlines()[int(number) - 1]
    except (OSError, ValueError, IndexError):  # the file may have gone since it was read
        return Problem(message, file, int(number), 1, hint=hint)
    leaf = re.escape(key.rpartition(".")[2])
    written = re.search(rf"(?<![\w-]){leaf}['\"]?\s*:\s*(\[[^\]]*\]|[^#,}}]*)", line)
    start, end = written.span(1) if written and written[1].strip() else (len(line) - len(line.lstrip()), len(line))
    length = len(line[start:end].rstrip())
    return Place(file, int(number), start + 1, length, line).problem(message, hint)
