"""Numbers as a person reads them, and what an accuracy over a sample is worth."""

from __future__ import annotations

import math
from typing import Any

from dorakit import words

# Standard deviations to each side within which 95 % of the normal distribution lie.
Z = 1.959964
# Nothing that is measured comes near it, and differences of larger numbers overflow.
_LARGEST = 1e200


def finite(value: Any) -> float | None:
    """A number that can be drawn and calculated with; None for anything else, NaN and infinity among it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) < _LARGEST else None  # a NaN is not smaller


def figure(value: Any) -> str:
    """Four digits that count: 0.03412, 2.31, 12,345; 6.4e-05 below a thousandth."""
    number = finite(value)
    if number is None:
        return "–"
    if number == 0:
        return "0"
    size = abs(number)
    if size >= 1000:
        return f"{number:,.0f}" if size < 1e9 else f"{number:.3g}"
    return f"{number:.4g}" if size >= 1e-3 else f"{number:.2e}".replace("e-0", "e-")


def count(value: Any) -> str:
    """A whole number with its thousands set apart."""
    number = finite(value)
    return "–" if number is None else f"{number:,.0f}"


def percent(value: Any) -> str:
    """A share as percent, with one digit after the point and a blank at which no line is broken."""
    number = finite(value)
    return "–" if number is None else f"{number * 100:.1f}\N{NO-BREAK SPACE}%"


def size(value: Any) -> str:
    """Bytes as MB or GB (powers of ten)."""
    number = finite(value)
    if number is None:
        return "–"
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def duration(value: Any) -> str:
    """Seconds as s, min or h."""
    number = finite(value)
    return "–" if number is None or number < 0 else words.duration(number)


def wilson_interval(correct: int, answered: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson's score interval), which holds at 0 % and at 100 % too."""
    share = correct / answered
    scale = 1 + Z**2 / answered
    middle = (share + Z**2 / (2 * answered)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / answered + Z**2 / (4 * answered**2))
    return max(0.0, middle - half), min(1.0, middle + half)
