"""The keys of another toolkit's mapping, each taken once: what nobody takes is listed, never dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from dorakit.recipe.scalars import scalar

_NOTHING: tuple[Any, ...] = (None, "", "none", "None", False, [], {})


@dataclass(frozen=True)
class Left:
    """A key that was not carried over."""

    key: str
    value: Any
    reason: str


class Keys:
    """A mapping whose keys are taken one by one, sections as dotted keys.

    Attributes:
        left: What is not carried over.
        empty: Keys that asked for nothing: null, false, empty, or what is so here anyway.
        read: Keys that were taken, and their values.
    """

    def __init__(self, content: Mapping[str, Any], left: list[Left], empty: list[str], prefix: str = ""):
        self.left, self.empty = left, empty
        self.read: dict[str, Any] = {}
        self._content, self._prefix = content, prefix
        self._pending = _flat(content)

    def pick(self, *names: str) -> tuple[str, Any]:
        """The first of these keys that is set, and its value; '' and None where none is. The others stay to be listed."""
        for name in names:
            value = self._pending.get(name)
            if value is not None:
                del self._pending[name]
                self.read[name] = plain(value)
                return name, self.read[name]
        return "", None

    def take(self, *names: str) -> Any:
        """The value of the first of these keys that is set; None where none is."""
        return self.pick(*names)[1]

    def peek(self, name: str) -> Any:
        """The value of a key that is taken later, or None."""
        return plain(self._pending.get(name))

    def below(self, name: str) -> list[str]:
        """The keys that are still to be taken inside a section; '' is the top."""
        return [key for key in self._pending if not name or key.startswith(f"{name}.")]

    def is_null(self, name: str) -> bool:
        """Whether a key is written and null, which is no absence where null asks for something."""
        return name in self._pending and self._pending[name] is None

    def number(self, *names: str) -> float | None:
        """As `take`; what is no number is listed, and None."""
        name, value = self.pick(*names)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)):
            return value
        self.leave(name, value, "expected a number")
        return None

    def texts(self, name: str) -> list[str]:
        """The entries of a list, or of a text with commas, as texts."""
        value = self.take(name)
        entries = value if isinstance(value, list) else str(value).split(",") if value is not None else []
        return [str(entry).strip() for entry in entries if str(entry).strip()]

    def entries(self, name: str) -> list[Keys]:
        """The mappings of a list, each with keys of its own; what is none is listed. `close` each."""
        value = self.take(name)
        found = []
        for entry in value if isinstance(value, list) else [] if value is None else [value]:
            if isinstance(entry, Mapping):
                found.append(self.inside(name, entry))
            else:
                self.leave(name, entry, "expected keys and values: path, type, ...")
        return found

    def section(self, name: str) -> Mapping[str, Any]:
        """The mapping under a key, whole, where its own keys are names; empty where there is none."""
        value: Any = self._content
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not isinstance(value, Mapping):
            return {}
        for key in [key for key in self._pending if key == name or key.startswith(f"{name}.")]:
            del self._pending[key]
        self.read[name] = value
        return value

    def inside(self, name: str, content: Mapping[str, Any]) -> Keys:
        """Keys of a mapping below this one, listed in the same lists."""
        return Keys(content, self.left, self.empty, f"{self._prefix}{name}.")

    def leave(self, key: str, value: Any, reason: str) -> None:
        """List a key, taken before, as not carried over."""
        self.left.append(Left(f"{self._prefix}{key}", value, reason))

    def settle(self, key: str) -> None:
        """Say of a key, taken before, that it asks for nothing: what it asks for is so here anyway."""
        self.empty.append(f"{self._prefix}{key}")

    def drop_if(self, name: str, *values: Any) -> None:
        """Let a key go that asks for nothing where it has one of these values, such as max_steps -1."""
        if name in self._pending and any(plain(self._pending[name]) is v or self._pending[name] == v for v in values):
            self.settle(name)
            del self._pending[name]

    def close(self, reason: str) -> None:
        """List what nobody took."""
        for name, value in self._pending.items():
            if asks_for_nothing(value):
                self.settle(name)
            else:
                self.leave(name, value, reason)
        self._pending.clear()


def plain(value: Any) -> Any:
    """A value as the toolkits read it: a number that stands in quotes is one."""
    try:
        return scalar(value) if isinstance(value, str) and value else value
    except ValueError:
        return value


def asks_for_nothing(value: Any) -> bool:
    """Whether a value is null, false or empty."""
    return any(value is nothing or (type(value) is type(nothing) and value == nothing) for nothing in _NOTHING)


def _flat(content: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Sections as dotted keys; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) and value else {f"{path}{key}": value}
    return flat
