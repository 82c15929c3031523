"""Rows in messages: short, without secrets and without control characters, whatever a stranger put into them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from dorakit.errors import shown

_QUOTED = 80
_LISTED = 12


def quoted(text: str, length: int = _QUOTED) -> str:
    """The beginning of a text, on one line."""
    # Hidden first: a secret cut short no longer looks like one.
    whole = shown(text[: 20 * length]).replace("\n", "\\n").replace("\t", "\\t")
    return whole if len(whole) <= length and len(text) <= 20 * length else whole[: length - 3] + "..."


def seen(value: object) -> str:
    """A value as Python writes it, cut short."""
    return quoted(repr(value), 60)


def listed(names: Iterable[object]) -> str:
    """The first names of a list, or `nothing`."""
    first = [quoted(str(name), 40) for name in islice(names, _LISTED + 1)]
    return (", ".join(first[:_LISTED]) + (", ..." if len(first) > _LISTED else "")) or "nothing"
