"""The tree between YAML and Recipe: values that know the place they were written at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from dorakit.errors import Problem
from dorakit.secrets import without_values

# Beyond this column a caret under the line helps nobody.
_MAX_COLUMN = 400

Scalar: TypeAlias = "bool | int | float | str | None"
PathKey: TypeAlias = "tuple[str | int, ...]"


@dataclass(frozen=True)
class Place:
    """Where something was written.

    Attributes:
        file: The file as the user names it, or the whole `--set` argument.
        source: What `--explain` prints: `file:line`, `--set` or `--twin`.
        layer: Precedence: 0 is the file at the end of the `extends` chain, each overriding source one more.
        directory: Where relative paths written here start from.
    """

    file: str
    line: int = 0
    column: int = 0
    length: int = 1
    source_line: str = ""
    source: str = ""
    layer: int = 0
    directory: Path = Path()

    def problem(self, message: str, hint: str = "") -> Problem:
        """Make a mistake at this place."""
        shown = ""
        if self.column <= _MAX_COLUMN:
            line = without_values(self.source_line)[: self.column + 160]  # hidden before a cut could hide it from that
            shown = "".join(c if c.isprintable() else " " for c in line)
        return Problem(message, self.file, self.line, self.column, shown, min(self.length, 80), hint)


@dataclass(frozen=True)
class Node:
    """A value of the tree.

    Attributes:
        value: A scalar, a list of nodes, or a mapping from key to node.
        place: Where the value stands.
        key_place: Where its key stands; the value's own place for list entries and the root.
        text: The scalar as written.
        quoted: Whether the scalar stood in quotes or was a block of text.
    """

    value: Scalar | list[Node] | dict[str, Node]
    place: Place
    key_place: Place
    text: str = ""
    quoted: bool = False

    @property
    def entries(self) -> dict[str, Node]:
        """The mapping's entries; empty for anything else."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[Node]:
        """The list's nodes; empty for anything else."""
        return self.value if isinstance(self.value, list) else []

    def at(self, path: PathKey) -> Node | None:
        """Find the node under a path of keys and indices."""
        node: Node | None = self
        for part in path:
            if node is None:
                return None
            if isinstance(part, int):
                node = node.items[part] if 0 <= part < len(node.items) else None
            else:
                node = node.entries.get(part)
        return node

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def merged(base: Node, over: Node) -> Node:
    """Lay one tree over another: mappings merge, everything else replaces."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    entries = dict(base.value)
    for key, node in over.value.items():
        entries[key] = merged(entries[key], node) if key in entries else node
    return replace(over, value=entries)
