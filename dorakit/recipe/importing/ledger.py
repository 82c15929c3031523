"""What becomes of each key of another toolkit's configuration: carried over, or listed with the reason why not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dorakit.recipe.fields import default_of, dotted, homes
from dorakit.recipe.foreign import KEYS, VALUES
from dorakit.recipe.problems import schema_problems
from dorakit.recipe.resolved import yaml_value
from dorakit.recipe.scalars import scalar
from dorakit.recipe.tree import PathKey, Place
from dorakit.recipe.unread import unread_settings
from dorakit.recipe.yaml_text import parse

_NO_COUNTERPART = "dorakit has no such setting"
_KEY = re.compile(r"[A-Za-z_][\w.]*")
_ARCHITECTURE = "the architecture is read from the base"
# Keys that foreign.py takes to the right place for a hint, but whose value means something else there.
_MEANS_ANOTHER_THING = {
    "evals_per_epoch": "training.eval_every counts steps here, not times in an epoch",
    "saves_per_epoch": "training.save_every counts steps here, not times in an epoch",
    "max_steps_per_epoch": "training.max_steps counts the steps of all epochs here",
    "model_type": _ARCHITECTURE,
    "architectures": _ARCHITECTURE,
}


@dataclass(frozen=True)
class Left:
    """A key that was not carried over."""

    key: str
    value: Any
    reason: str


class Ledger:
    """A foreign configuration being turned into a recipe. What nobody takes is listed in the end, never dropped.

    Attributes:
        recipe: Dotted keys of a recipe (`data.train` as a list of mappings) and their values, in the order set.
        sources: Where each came from.
        left: What is not carried over.
        empty: Keys that were null, false or empty, and so asked for nothing.
    """

    def __init__(self, toolkit: str, content: Mapping[str, Any]):
        self.toolkit = toolkit
        self.recipe: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.left: list[Left] = []
        self.empty: list[str] = []
        self._pending = _flat(content)
        self._given = tuple(self._pending)
        self._defaults: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the file has a key, or a section, of this name."""
        return any(f".{key}.".find(f".{name}.") >= 0 for key in self._given)

    def take(self, *names: str) -> Any:
        """The value of the first of these keys that is set; None where none is. The others stay to be listed."""
        for name in names:
            value = self._pending.get(name)
            if value is not None:
                del self._pending[name]
                return scalar(value) if isinstance(value, str) and value else value
        return None

    def number(self, *names: str) -> float | None:
        """As `take`; what is no number is listed, and None."""
        present = next((name for name in names if self._pending.get(name) is not None), "")
        value = self.take(*names)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        self.leave(present, value, "expected a number")
        return None

    def mappings(self, name: str) -> list[dict[str, Any]]:
        """The entries of a list of mappings; what is none is listed."""
        value = self.take(name)
        entries = value if isinstance(value, list) else [] if value is None else [value]
        for entry in entries:
            if not isinstance(entry, dict):
                self.leave(name, entry, "expected keys and values: path, type, ...")
        return [entry for entry in entries if isinstance(entry, dict)]

    def texts(self, name: str) -> list[str]:
        """The entries of a list, or of a text with commas, as texts."""
        value = self.take(name)
        entries = value if isinstance(value, list) else str(value).split(",") if value is not None else []
        return [str(entry).strip() for entry in entries if str(entry).strip()]

    def peek(self, name: str) -> Any:
        """The value of a key that is taken later, or None."""
        return self._pending.get(name)

    def set(self, key: str, value: Any, source: str) -> None:
        """Give a key of the recipe its value.

        `source` says where from in words, or is the foreign key; of several, those that the file has are kept.
        """
        names = source.split(", ")
        if all(map(_KEY.fullmatch, names)):
            source = ", ".join(filter(self.has, names)) or f"{self.toolkit}'s default"
        self.recipe[key] = value
        self.sources[key] = source

    def set_default(self, key: str, value: Any) -> None:
        """Give a key the value that it has in the toolkit where nothing is said."""
        self.set(key, value, f"{self.toolkit}'s default")
        self._defaults.add(key)

    def carry(self, key: str, *names: str, default: Any = None) -> None:
        """Take a value as it is; where none is set, the toolkit's own default."""
        present = next((name for name in names if self._pending.get(name) is not None), None)
        value = self.take(*names)
        if value is not None:
            self.set(key, VALUES.get(key, {}).get(str(value), value), present or names[0])
        elif default is not None:
            self.set_default(key, default)

    def leave(self, key: str, value: Any, reason: str) -> None:
        """List a key, taken before, as not carried over."""
        self.left.append(Left(key, value, reason))

    def drop_if(self, name: str, *values: Any) -> None:
        """Let a key go that asks for nothing where it has one of these values, such as max_steps -1."""
        if name in self._pending and self._pending[name] in values:
            self.empty.append(name)
            del self._pending[name]

    def finish(self) -> None:
        """Carry what is only named differently, and list the rest and what no recipe takes."""
        for key, value in list(self.recipe.items()):
            if key != "data.train" and (problem := _refused(key, value)):
                self.leave(self.sources[key], value, f"{key}: {problem}")
                del self.recipe[key], self.sources[key]
        for name, value in self._pending.items():
            last = name.rsplit(".", 1)[-1]
            target = _MEANS_ANOTHER_THING.get(last, KEYS.get(last, _home(last)))
            if value in (None, "", "none", [], {}) or (value is False and not _is_on_here(target)):
                self.empty.append(name)
            elif not _is_setting(target):
                self.leave(name, value, target or _NO_COUNTERPART)
            elif target in self.recipe or any(key.startswith(f"{target}.") for key in self.recipe):
                self.leave(name, value, f"{target} has its value from {self.sources.get(target, 'another key')}")
            elif problem := _refused(target, translated := VALUES.get(target, {}).get(str(value), value)):
                self.leave(name, value, f"{target}: {problem}")
            else:
                self.set(target, translated, name)
        self._pending.clear()
        self._leave_unread()

    def _leave_unread(self) -> None:
        """List what the recipe's other settings keep from being read, such as a rank in full fine-tuning."""
        root, _ = parse(recipe_text(self.recipe, {}), Place("imported"))
        assert root is not None

        def get(path: PathKey) -> Any:
            node = root.at(path)
            return None if node is None else node.plain()

        for unread in list(unread_settings(get)):
            reason = f"{dotted(unread.path)} is not read {unread.when}"
            if unread.path[:2] == ("data", "train"):
                _, _, index, name = unread.path
                if name in self.recipe["data.train"][index]:
                    self.leave(dotted(unread.path), self.recipe["data.train"][index].pop(name), reason)
                continue
            for key in [key for key in self.recipe if f"{key}.".startswith(f"{dotted(unread.path)}.")]:
                value, source = self.recipe.pop(key), self.sources.pop(key)
                if key not in self._defaults:
                    self.leave(source, value, reason)


def recipe_text(values: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """Dotted keys as YAML in sections, each line with its comment."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        here = tree
        for section in sections:
            here = here.setdefault(section, {})
        here[name] = value
    return "\n".join(_lines(tree, "", "", comments)) + "\n"


def _lines(tree: Mapping[str, Any], path: str, indent: str, comments: Mapping[str, str]) -> list[str]:
    lines = []
    for key, value in tree.items():
        here = f"{path}{key}"
        comment = f"  # {' '.join(comments[here].split())}" if here in comments else ""
        if isinstance(value, dict) and here not in comments:
            lines += [f"{indent}{key}:", *_lines(value, f"{here}.", f"{indent}  ", comments)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [f"{indent}{key}:{comment}", *(f"{indent}  - {yaml_value(item)}" for item in value)]
        else:
            lines.append(f"{indent}{key}: {yaml_value(value)}{comment}")
    return lines


def _flat(content: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Sections as dotted keys; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) and value else {f"{path}{key}": value}
    return flat


def _home(name: str) -> str:
    """The one place of the schema that has a key of this name, else nothing."""
    sections = homes().get(name, [])
    return f"{sections[0]}.{name}".removeprefix(".") if len(sections) == 1 else ""


def _is_setting(target: str) -> bool:
    """Whether a text of foreign.py names a setting of the schema; the others are sentences."""
    section, _, name = target.rpartition(".")
    return " " not in target and name not in ("extends", "version") and section in homes().get(name, [])


def _is_on_here(target: str) -> bool:
    """Whether a setting is on where nothing is said, so that `false` asks for something."""
    return _is_setting(target) and default_of(tuple(target.split("."))) is True


def _refused(key: str, value: Any) -> str:
    """What is wrong with a value for a key of the recipe; empty where nothing is."""
    root, _ = parse(recipe_text({key: value}, {}), Place("imported"))
    assert root is not None
    found = [problem for problem in schema_problems(root, between_fields=False) if "missing" not in problem.message]
    return found[0].message if found else ""
