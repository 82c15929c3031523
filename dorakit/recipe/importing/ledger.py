"""What becomes of each key of another toolkit's configuration: carried over, or listed with the reason why not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from dorakit.recipe.fields import arms, default_of, dotted, homes, section_at, type_at
from dorakit.recipe.foreign import KEYS, VALUES
from dorakit.recipe.importing.keys import Keys, asks_for_nothing, plain
from dorakit.recipe.importing.reasons import (
    ABOUT,
    ANOTHER_VALUE,
    MEANS_ANOTHER_THING,
    NO_COUNTERPART,
    ON_THERE,
    TRANSPARENT,
)
from dorakit.recipe.importing.written import in_sections, recipe_text
from dorakit.recipe.problems import schema_problems
from dorakit.recipe.tree import PathKey, Place
from dorakit.recipe.unread import ALTERNATIVES, unread_settings
from dorakit.recipe.yaml_text import parse

_KEY = re.compile(r"[A-Za-z_][\w.]*")


class Ledger(Keys):
    """A foreign configuration being turned into a recipe.

    Attributes:
        recipe: Dotted keys of a recipe (`data.train` as a list of mappings) and their values, in the order set.
        sources: Where each came from.
    """

    def __init__(self, toolkit: str, content: Mapping[str, Any]):
        super().__init__(content, [], [])
        self.toolkit = toolkit
        self.recipe: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self._defaults: set[str] = set()

    def set(self, key: str, value: Any, source: str) -> None:
        """Give a key of the recipe its value.

        `source` is the foreign key, or several, of which those are named that are written; or it says what else it rests on.
        """
        names = source.split(", ")
        if all(map(_KEY.fullmatch, names)):
            source = self.said(*names)
        self.recipe[key] = value
        self.sources[key] = source

    def set_default(self, key: str, value: Any, when: str = "") -> None:
        """Give a key the value that it has in the toolkit where nothing is said."""
        self.set(key, value, f"{self.toolkit}'s default{when}")
        self._defaults.add(key)

    def carry(self, key: str, *names: str, default: Any = None) -> None:
        """Take a value as it is; where none is set, or none that fits, the toolkit's own default."""
        name, value = self.pick(*names)
        if value is not None:
            meant = translated(key, value)
            if not (problem := refused(key, meant)):
                return self.set(key, meant, name)
            self.leave(name, value, problem)
        if default is not None:
            self.set_default(key, default)

    def said(self, *names: str) -> str:
        """Those of these keys that are written, for a source."""
        written = [name for name in names if name in self.read or name in self._pending]
        return ", ".join(written) or f"{self.toolkit}'s default"

    def flag(self, *names: str) -> bool:
        """Whether the first of these keys that is set asks for something."""
        return not asks_for_nothing(self.take(*names))

    def finish(self) -> None:
        """Carry what is only named differently, and list the rest and what no recipe takes."""
        for key, value in list(self.recipe.items()):
            if key == "data.train":
                self._check_sources(value)
            elif problem := refused(key, value):
                self.leave(self.sources[key], value, problem)
                del self.recipe[key], self.sources[key]
        for name, value in self._pending.items():
            target, reason = _counterpart(name)
            meant = translated(target, plain(value))
            is_wish = value is False and (_is_on_here(target) or name.rpartition(".")[2] in ON_THERE)
            if asks_for_nothing(value) and not is_wish:
                self.settle(name)
            elif not target:
                self.leave(name, value, reason)
            elif target in self.recipe and self.recipe[target] == meant:
                if target in self._defaults:  # and written too
                    self._defaults.remove(target)
                    self.sources[target] = name
                else:
                    self.sources[target] += f", {name}"
            elif target in self.recipe or any(key.startswith(f"{target}.") for key in self.recipe):
                self.leave(name, value, f"{target} has its value from {self.sources.get(target, 'another key')}")
            elif problem := refused(target, meant):
                self.leave(name, value, problem)
            else:
                self.set(target, meant, name)
        self._pending.clear()
        self._leave_without_effect()
        self._leave_unread()
        told = set(re.findall(r"[\w.-]+", " ".join([*self.sources.values(), *(item.key for item in self.left)])))
        for name, value in self.read.items():
            if name in told or name in self.empty:
                continue
            if asks_for_nothing(value):
                self.settle(name)
            else:
                self.leave(name, value, "without effect beside the others")

    def _check_sources(self, sources: list[dict[str, Any]]) -> None:
        """Take out of the sources of rows what no source takes; a source without a path is none."""
        written = [source.get("path") for source in sources]
        for source in [source for source in sources if source.get("weight") == 0]:
            self.leave("data.train.weight", f"0 of {source.get('path')}", "none of its rows are read")
            sources.remove(source)
        for source in sources:
            for name, value in list(source.items()):
                if problem := refused("data.train", [{"path": "x", "format": "chat", name: value}]):
                    self.leave(f"data.train.{name}", value, problem)
                    del source[name]
        kept = [source for source in sources if source.get("path")]
        if kept:
            self.recipe["data.train"] = kept
        else:
            if written:
                self.leave(self.sources["data.train"], written, "no rows are left")
            del self.recipe["data.train"], self.sources["data.train"]

    def _leave_without_effect(self) -> None:
        if self.recipe.get("training.compile") and self.recipe.get("training.gradient_checkpointing"):
            value, source = self.recipe.pop("training.compile"), self.sources.pop("training.compile")
            self.leave(source, value, "training.compile has no effect beside training.gradient_checkpointing")
        for alternatives in ALTERNATIVES:
            given = [
                dotted(path) for path, nothing in alternatives if self.recipe.get(dotted(path)) not in (None, nothing)
            ]
            for key in sorted(given, key=list(self.recipe).index)[1:]:
                value, source = self.recipe.pop(key), self.sources.pop(key)
                self.leave(source, value, f"{key} says what {given[0]} says, which stands beside it")

    def _leave_unread(self) -> None:
        """List what the recipe's other settings keep from being read, such as a rank in full fine-tuning."""

        def get(path: PathKey) -> Any:
            value: Any = in_sections(self.recipe)
            for part in path:
                if isinstance(part, int) and isinstance(value, list):
                    value = value[part] if part < len(value) else None
                else:
                    value = value.get(part) if isinstance(value, dict) else None
            return value

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


def _counterpart(name: str) -> tuple[str, str]:
    """The setting that a foreign key is, else '' and the reason why it is none."""
    first, dot, _ = name.partition(".")
    last = name.rpartition(".")[2]
    if said := ABOUT.get(first, ABOUT.get(last, "")):
        return "", said
    if dot and first not in TRANSPARENT:
        said = KEYS.get(first, "")
        return "", said if " " in said else NO_COUNTERPART
    found = MEANS_ANOTHER_THING.get(last, KEYS.get(last, _home(last)))
    return (found, "") if _is_setting(found) else ("", found or NO_COUNTERPART)


def _home(name: str) -> str:
    """The setting of this name under training or optimizer, or output_dir; short names elsewhere are too common."""
    sections = homes().get(name, [])
    return (
        f"{sections[0]}.{name}" if sections in (["training"], ["optimizer"]) else name if name == "output_dir" else ""
    )


def _is_setting(target: str) -> bool:
    """Whether a text of foreign.py names a setting of the schema; the others are sentences."""
    path = tuple(target.split("."))
    if " " in target or path[:2] == ("data", "train"):
        return False
    return type_at(path) is not None and section_at(path) is None and target not in ("", "extends", "version")


def _is_on_here(target: str) -> bool:
    """Whether a setting is on where nothing is said, so that `false` asks for something."""
    return bool(target) and default_of(tuple(target.split("."))) is True


def translated(key: str, value: Any) -> Any:
    """A value in this schema's words: what others call it, a text with commas where a list belongs, 10.0 as 10."""
    found = type_at(tuple(key.split("."))) if key else None
    kinds = arms(found[0]) if found else []
    if isinstance(value, str) and list[str] in kinds and str not in kinds:
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
        return int(value)
    if str(value) in ANOTHER_VALUE.get(key, ()):
        return value
    return VALUES.get(key, {}).get(str(value), value)


def refused(key: str, value: Any) -> str:
    """What is wrong with a value for a key of the recipe; empty where nothing is."""
    return _refused(recipe_text({key: value}, {}))


@lru_cache(maxsize=1024)
def _refused(text: str) -> str:
    root, _ = parse(text, Place("imported"))
    if root is None:
        return "not a value that a recipe can hold"
    found = [problem for problem in schema_problems(root, between_fields=False) if "missing" not in problem.message]
    return found[0].message if found else ""
