"""Axes: from values to percent of the plot, and the round numbers to write beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dorakit.report.numbers import figure

_LOG_FROM = 30  # largest over smallest value from which a scale is logarithmic
_SHORTEST = 1e-12  # axis: a part of the smallest numbers there are is zero


@dataclass(frozen=True)
class Scale:
    """Values to percent of an axis."""

    low: float
    high: float
    is_log: bool = False

    def percent(self, value: float) -> float:
        """Where a value lies, from 0 at `low` to 100 at `high`."""
        low, high, value = (math.log10(v) if self.is_log else v for v in (self.low, self.high, value))
        return round(100 * (value - low) / (high - low), 2)

    def ticks(self, about: int, *, whole: bool = False) -> list[float]:
        """Round values within the axis: multiples of 1, 2 or 5 times a power of ten, about so many."""
        if self.is_log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for leads in ((1, 2, 5), (1, 3), (1,)):
                values = [lead * 10.0**exponent for exponent in exponents for lead in leads]
                values = [value for value in values if self.low <= value <= self.high]
                if len(values) <= about + 2:
                    break
            return values[:: max(1, round(len(values) / (about + 2)))]
        exact = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(exact))
        step = next(lead * power for lead in (1, 2, 5, 10) if lead * power >= exact * 0.999)
        if whole:
            step = max(1.0, step)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first + 1
        return [(first + number) * step for number in range(count)]


def scale_of(values: Iterable[float], *, from_zero: bool = False, may_be_log: bool = False) -> Scale:
    """A scale that holds all values, with some room above and below; logarithmic where they lie far apart."""
    low, high = _ends(values)
    if may_be_log and low > 0 and high / low > _LOG_FROM:
        return Scale(low / 1.15, high * 1.15, is_log=True)
    if from_zero and low >= 0:
        return Scale(0.0, max(high * 1.08, _SHORTEST) if high else 1.0)
    # Values that differ in their last digits only, or not at all, still need an axis that can be divided.
    room = max((high - low) * 0.06, abs(high) * 1e-3, _SHORTEST)
    return Scale(low - room, high + room)


def values_scale(values: Iterable[float]) -> Scale:
    """A logarithmic scale of values above zero, with some room before the first and behind the last."""
    low, high = _ends(values)
    room = (high / low) ** 0.04 if high > low else 2.0
    return Scale(low / room, high * room, is_log=True)


def steps_scale(values: Iterable[float]) -> Scale:
    """A scale of steps, from the first to the last."""
    low, high = _ends(values)
    return Scale(low, high) if high > low else Scale(low - 1, high + 1)


def tick_texts(values: Sequence[float]) -> list[str]:
    """The numbers of an axis, all of one form: 20k from ten thousand on, with an exponent where they are longer or tiny."""
    largest = max(map(abs, values), default=0.0)
    if 1e4 <= largest < 1e6:
        return [f"{value / 1000:g}k" if value else "0" for value in values]
    smallest = min((abs(value) for value in values if value), default=largest)
    if 1e-2 < largest < 1e4 and smallest >= 0.999e-3:
        return [figure(value) for value in values]
    return [_exponential(value) for value in values]


def _exponential(value: float) -> str:
    lead, _, exponent = f"{value:.2e}".partition("e")
    return f"{lead.rstrip('0').rstrip('.')}e{int(exponent)}" if value else "0"


def _ends(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    return min(found), max(found)
