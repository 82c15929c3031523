"""Which modules a recipe means: name suffixes, regular expressions, `all-linear`."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import TypeVar

from dorakit.errors import ModelError
from dorakit.words import did_you_mean

_Number = TypeVar("_Number", int, float)


def has_suffix(name: str, suffix: str) -> bool:
    """Whether `suffix` is the whole dotted name or its last parts, as `b.c` of `a.b.c`."""
    return name == suffix or name.endswith("." + suffix)


def select(names: Iterable[str], wanted: str | list[str], *, setting: str) -> list[str]:
    """The names that a list of suffixes, or one regular expression over whole names, selects; in the order given.

    Args:
        names: Candidates.
        wanted: Suffixes, each of which must match at least one name, or a regular expression.
        setting: The recipe key, for messages.

    Raises:
        ModelError: An entry matches nothing (with near misses), or the expression does not compile.
    """
    names = list(names)
    if isinstance(wanted, str):
        try:
            pattern = re.compile(wanted)
        except re.error as error:
            raise ModelError(f"{setting}: {wanted!r} is not a regular expression: {error}") from None
        chosen = [name for name in names if pattern.fullmatch(name)]
        if not chosen:
            raise ModelError(
                f"{setting}: the expression {wanted!r} matches no module name in full.\n"
                f"  a name looks like {names[0] if names else '(none)'}; for suffixes give a list: [{wanted}]"
            )
        return chosen
    for suffix in wanted:
        if not any(has_suffix(name, suffix) for name in names):
            endings = sorted({name.rsplit(".", 1)[-1] for name in names})
            meant = did_you_mean(suffix.rsplit(".", 1)[-1], endings)
            raise ModelError(
                f"{setting}: no module is called {suffix!r}.\n  "
                + (f"{meant} " if meant else "")
                + f"this model has {', '.join(endings) or 'none'}"
            )
    return [name for name in names if any(has_suffix(name, suffix) for suffix in wanted)]


def pattern_value(name: str, patterns: dict[str, _Number], default: _Number) -> _Number:
    """The value whose key matches the end of `name`, as PEFT reads rank_pattern and alpha_pattern: first hit wins."""
    for key, value in patterns.items():
        if _ending(key).match(name):
            return value
    return default


@functools.lru_cache(maxsize=1 << 15)  # re's own keeps 512
def _ending(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")
