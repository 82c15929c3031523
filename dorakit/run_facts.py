"""What run.json says, checked before it is used: it may be damaged, edited, or a stranger's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dorakit.errors import RunError

SCHEMA_VERSION = 1
# What is used without a further question.
_FIELDS = {"state": str, "notes": list, "base": dict, "is_twin": bool}
_NEEDED = ("state", "notes")


def check_facts(file: Path, facts: dict[str, Any]) -> None:
    """Make sure that run.json is one, and of a version that this dorakit reads.

    Raises:
        RunError: With the field that is missing or odd.
    """
    if (version := facts.get("schema")) != SCHEMA_VERSION:
        raise RunError(f"{file} has schema {version!r:.40}; this dorakit reads {SCHEMA_VERSION}")
    for field, kind in _FIELDS.items():
        if field not in facts:
            if field in _NEEDED:
                raise RunError(f"{file} is damaged: it has no {field!r}")
        elif not isinstance(facts[field], kind):
            raise RunError(f"{file} is damaged: {field!r} is {facts[field]!r:.40}, expected a {kind.__name__}")
