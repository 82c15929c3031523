"""A failure as JSON: what `--json` prints on stdout where a command fails. docs/ci.md describes it."""

from __future__ import annotations

import os
import re
from typing import Any

from dorakit.errors import DorakitError, GateError, Problem, RecipeError, shown

# Messages begin with their place where they have one: file:line:column, file:line, file[index] of a row, or a path.
_IN_FILE = re.compile(r"(?:error: )?(?P<file>.+?)(?::(?P<line>\d+)(?::(?P<column>\d+))?|\[(?P<row>\d+)\])(?=: )")
_PATH = re.compile(r"(?:no such [a-z ]+: |error: )?(?P<path>\S*[/.]\S*?)(?=[:,;]? |[:,;]?$)", re.MULTILINE)


def failure(error: DorakitError) -> dict[str, Any]:
    """The JSON of a command that ends with `error`: its result where there is one, and what went wrong."""
    content: dict[str, Any] = {"kind": error.kind, **_said(error), "exit_code": error.exit_code}
    if isinstance(error, RecipeError):
        content["problems"] = [problem_dict(problem) for problem in error.problems]
    if isinstance(error, GateError):
        content["gates"] = [gate.as_dict() for gate in error.gates]
    return {**(error.result or {}), "error": content}


def other_failure(kind: str, message: str, exit_code: int) -> dict[str, Any]:
    """The same of what is no DorakitError: Typer's own errors, signals, bugs."""
    return {"error": {"kind": kind, "message": shown(message), "place": None, "exit_code": exit_code}}


def problem_dict(problem: Problem) -> dict[str, Any]:
    """A problem of a recipe; line and column 0 are those of a problem that has no place in a file."""
    return {
        "message": shown(problem.message),
        "hint": shown(problem.hint),
        "file": shown(problem.file),
        "line": problem.line,
        "column": problem.column,
    }


def _said(error: DorakitError) -> dict[str, Any]:
    """Message, place, and the hint, which only some have."""
    if isinstance(error, RecipeError):
        first = error.problems[0]
        place = _place_of(first.file, first.line, first.column)
        return {"message": shown(first.message), "place": place, **({"hint": shown(first.hint)} if first.hint else {})}
    message, _, rest = str(error).partition("\n")
    hint = "\n".join(line.strip() for line in rest.splitlines())
    return {"message": message, "place": _place(message), **({"hint": hint} if hint else {})}


def _place_of(file: str, line: int, column: int) -> dict[str, Any] | None:
    if not file:
        return None
    return {"file": shown(file), "line": line, "column": column} if line else {"path": shown(file)}


def _place(message: str) -> dict[str, Any] | None:
    """The place that a message begins with; None where it begins with none."""
    if (found := _IN_FILE.match(message)) and (" " not in found["file"] or os.path.exists(found["file"])):
        numbers = {name: int(found[name]) for name in ("line", "column", "row") if found[name] is not None}
        return {"file": found["file"], **numbers}
    if (found := _PATH.match(message)) and (os.path.exists(found["path"]) or message.startswith("no such ")):
        return {"path": found["path"]}
    return None
