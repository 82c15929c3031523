"""Words in messages: what is counted, how long it took, and the name that was probably meant."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable

_LONGEST = 60  # characters of a name that is compared: the distance takes the square of them


def counted(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun: `1 row`, `1,200 rows`, `2 entries` where the plural is given."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def duration(seconds: float) -> str:
    """Seconds as s, min or h: `4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def near(word: str, candidates: Iterable[str]) -> list[str]:
    """The candidate that `word` is probably a misspelling of, or those that are equally near; mostly none.

    Near is one wrong letter in three, at most two; or, of long names, four fifths of all letters in common. Case does not
    count, nor does a file's extension: every name in a directory may share it, and the wrong one may have been typed.
    """
    wanted = _stem(word)
    found = []
    for candidate in candidates if wanted and len(word) <= _LONGEST else ():
        stem = _stem(candidate)[:_LONGEST]
        distance = _distance(wanted, stem)
        is_like = len(wanted) >= 6 and difflib.SequenceMatcher(None, wanted, stem).ratio() >= 0.8
        if distance <= min(len(wanted) // 3, 2) or is_like:
            found.append((distance, _distance(word.lower(), candidate.lower()), candidate))
    return [candidate for *distances, candidate in found if distances == list(min(found)[:2])]


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """`did you mean a or b?`; "" where no candidate is near."""
    return f"did you mean {' or '.join(found)}?" if (found := near(word, candidates)[:3]) else ""


def _stem(name: str) -> str:
    stem, extension = os.path.splitext(name.lower())
    return stem if extension[1:].isalpha() else name.lower()


def _distance(a: str, b: str) -> int:
    """Damerau-Levenshtein distance (adjacent transpositions count one)."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            best = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]
