"""Text of models, rows, paths and recipes, made fit to be shown. Escaping for HTML comes after it."""

from __future__ import annotations

from dorakit.errors import shown

LABEL = 80  # characters of a name in a chart


# Longer than any secret that `shown` knows: of a text cut here, so much is dropped, as half a secret does not look like one.
_LONGEST_SECRET = 1000


def clipped(text: str, limit: int) -> str:
    """The text without secrets and with controls spelled out; what is beyond `limit` characters is counted."""
    if len(text) <= limit + 2 * _LONGEST_SECRET:
        begun = shown(text)
        beyond = len(begun) - limit
    else:  # texts may be megabytes, and all of them are looked at several times
        begun = shown(text[: limit + 2 * _LONGEST_SECRET])[:-_LONGEST_SECRET]
        beyond = len(text) - limit
    return begun if beyond <= 0 else f"{begun[:limit]} … ({beyond:,} more characters)"
