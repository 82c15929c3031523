"""Text for a terminal: what comes from a model, a file or a row is shown there and steers nothing.

A control character moves the cursor, wipes lines, sets the title or makes the terminal answer as if somebody typed; one
that turns the direction of writing shows another text than the one that is there.
"""

from __future__ import annotations

import json
import os
import shlex
import unicodedata
from pathlib import Path
from typing import Any, TextIO, cast

# The joiner and the non-joiner, without which Persian and many scripts of India are misspelt.
_HARMLESS = "\n\t\u200c\u200d"


def printable(text: str) -> str:
    r"""The text with everything that is not there to be looked at spelled out (`\x1b`); line breaks and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if _is_shown(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def json_line(content: Any) -> str:
    """JSON on one line that can be shown: JSON itself escapes nothing above U+001F."""
    text = json.dumps(content, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(c if _is_shown(c) else json.dumps(c)[1:-1] for c in text)


def typed(path: Path | str) -> str:
    """A path as one types it into a shell."""
    return shlex.quote(str(path))


def lasting(stderr: TextIO) -> TextIO:
    """A stderr that may stop taking text (its reader gone, its disk full): the rest is not shown, and the program goes on."""
    return cast(TextIO, _Lasting(stderr))


class _Lasting:
    def __init__(self, stderr: TextIO):
        self._stderr = stderr

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stderr, name)

    def write(self, text: str) -> int:
        try:
            return self._stderr.write(text)
        except OSError:
            _let_go_of_stderr()
            return len(text)

    def flush(self) -> None:
        try:
            self._stderr.flush()
        except OSError:
            _let_go_of_stderr()


def _let_go_of_stderr() -> None:
    """Point stderr nowhere: Python writes what it holds back once more at its end, and would change the exit code."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def _is_shown(character: str) -> bool:
    # Blanks other than the plain one are not printable to Python.
    return character.isprintable() or character in _HARMLESS or unicodedata.category(character) == "Zs"
