"""Answers of a chat on the screen, while they grow: one below the other, or side by side."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dorakit.terminal import printable

_WIDE = 80  # columns of a terminal that two answers share
_SECONDS_BETWEEN_DRAWINGS = 0.1  # a drawing takes some milliseconds of what would else be a token


class Screen:
    """Where the answers to one text are shown: nowhere. What a model writes never steers the terminal."""

    def open(self, name: str) -> None:
        """Begin the answer of a voice."""

    def add(self, piece: str) -> None:
        """Show a further piece of the answer that was begun last."""

    def close(self) -> None:
        """End, also where an answer was cut short."""


def screen(names: list[str]) -> Screen:
    """The screen that fits: columns for several voices on a wide terminal, else blocks."""
    console = Console(highlight=False)
    if len(names) > 1 and console.is_terminal and not console.is_dumb_terminal and console.width >= _WIDE:
        return _Columns(names, console)
    return _Blocks(names, console)


class _Blocks(Screen):
    """One answer below the other, each under its name where there are several."""

    def __init__(self, names: list[str], console: Console):
        self._names, self._console = names, console
        self._is_open = False

    def open(self, name: str) -> None:
        self.close()
        self._is_open = True
        if len(self._names) > 1:
            self._console.print(Text(f"{name}:", style="bold"))

    def add(self, piece: str) -> None:
        # Not through rich, which would break lines that it sees a part of.
        sys.stdout.write(printable(piece))
        sys.stdout.flush()

    def close(self) -> None:
        if self._is_open:
            self.add("\n")
        self._is_open = False


class _Columns(Screen):
    """Answers side by side. While they are taller than the terminal, their ends are shown; at last they stand in full."""

    def __init__(self, names: list[str], console: Console):
        self._texts = dict.fromkeys(names, "")
        self._name = names[0]
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._drawn_at = 0.0
        self._live.start()

    def open(self, name: str) -> None:
        self._name = name
        self._draw()

    def add(self, piece: str) -> None:
        self._texts[self._name] += printable(piece)
        if time.monotonic() - self._drawn_at >= _SECONDS_BETWEEN_DRAWINGS:
            self._draw()

    def close(self) -> None:
        self._live.stop()
        self._console.print(self._table(height=None))

    def _draw(self) -> None:
        self._live.update(self._table(height=self._console.height), refresh=True)
        self._drawn_at = time.monotonic()

    def _table(self, *, height: int | None) -> Table:
        table = Table(expand=True)
        for name in self._texts:
            table.add_column(name, ratio=1)
        cells = [Text(text) for text in self._texts.values()]
        if height is not None:
            width = (self._console.width - 3 * len(cells) - 1) // len(cells)
            # Five lines are the table's own, one is the cursor's.
            cells = [Text("\n").join(cell.wrap(self._console, width)[-max(1, height - 6) :]) for cell in cells]
        table.add_row(*cells)
        return table
