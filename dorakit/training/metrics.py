"""Reporting while a run trains: metrics.jsonl always, trackers if asked, a live line on a terminal, plain lines
elsewhere. Nothing here affects a trained weight.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dorakit.errors import Interrupted, shown
from dorakit.files import write_whole
from dorakit.links import as_own
from dorakit.recipe.schema import Recipe
from dorakit.run import Run
from dorakit.terminal import json_line, lasting
from dorakit.training.trackers.figures import figures_of
from dorakit.training.trackers.telling import Telling
from dorakit.training.trackers.tracker import End

_SPEED_WINDOW = 20  # logged intervals over which tokens/s is averaged


class Metrics:
    """Writes a run's metrics and shows its progress.

    Args:
        run: Where metrics.jsonl and log.txt are.
        recipe: Names the trackers, which record it.
        total_steps: For the bar.
        start_step: Steps done before; lines of later steps, left by a crash, are removed.
        quiet: Show nothing; files are still written.
    """

    def __init__(self, run: Run, recipe: Recipe, *, total_steps: int, start_step: int, quiet: bool):
        self._run = run
        self._trackers = Telling(
            run, recipe, start_step=start_step, last_steps=_last_steps(run.metrics_file), warn=self.note
        )
        for file in (run.metrics_file, run.nonfinite_file):
            _forget_after(file, start_step)
        self._file = open(run.metrics_file, "a", encoding="utf-8", opener=as_own)
        self._log = open(run.log_file, "a", encoding="utf-8", opener=as_own)
        self._quiet = quiet
        self._has_lost_lines = False
        self._total = total_steps
        self._speed: deque[tuple[int, float]] = deque(maxlen=_SPEED_WINDOW)
        self._since = time.monotonic()
        self._console = Console(file=lasting(sys.stderr), highlight=False)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if not quiet and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[line]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=total_steps, completed=start_step, line="")
            self._bar.start()

    def say(self, line: str) -> None:
        """One line for a person, above the bar, and into log.txt."""
        line = shown(line)  # it may hold what a model wrote, or a row
        self._append(self._log, line)
        if not self._quiet:
            self._console.print(line, markup=False, emoji=False, soft_wrap=True)

    def note(self, line: str) -> None:
        """One line for a person, recorded with the run too."""
        self.say(line)
        self._run.note(line)

    def start_trackers(self) -> None:
        """Start those that the recipe names, which may take seconds."""
        self._trackers.start()
        self.pause_clock()

    def step(self, step: int, num_tokens: int) -> None:
        """An optimizer step is done; `num_tokens` counts its tokens without padding."""
        now = time.monotonic()
        self._speed.append((num_tokens, now - self._since))
        self._since = now
        if self._bar:
            self._bar.update(self._task, completed=step)

    @property
    def tokens_per_s(self) -> float:
        """Tokens without padding per second, over the last steps."""
        seconds = sum(s for _, s in self._speed)
        return sum(tokens for tokens, _ in self._speed) / seconds if seconds else 0.0

    def train(
        self, step: int, *, loss: float, rate: float, grad_norm: float, num_tokens: int, memory_bytes: int
    ) -> None:
        """A logged step; `num_tokens` counts all tokens since the run began."""
        speed = self.tokens_per_s
        self.write(
            {
                "step": step,
                "train/loss": loss,
                "train/learning_rate": rate,
                "train/grad_norm": grad_norm,
                "train/tokens": num_tokens,
                "train/tokens_per_s": round(speed, 1),
                "train/memory_bytes": memory_bytes,
            }
        )
        figures = f"loss {loss:.4f}  lr {rate:.2e}  {speed:.0f} tok/s  {memory_bytes / 1e9:.1f} GB"
        if self._bar:
            self._bar.update(self._task, line=figures)
        seconds = sum(s for _, s in self._speed) / max(1, len(self._speed)) * (self._total - step)
        minutes, rest = divmod(round(seconds), 60)
        plain = f"step {step}/{self._total}  {figures}  ETA {minutes}:{rest:02d}"
        self._append(self._log, plain)
        if not self._quiet and not self._bar:
            self._console.print(plain, markup=False, emoji=False, soft_wrap=True)

    def pause_clock(self) -> None:
        """Leave out of the speed the time since the last step (validation, saving)."""
        self._since = time.monotonic()

    def write(self, entry: dict[str, Any]) -> None:
        """Append one object to metrics.jsonl, numbers also to the trackers."""
        self._append(self._file, json_line(entry))
        self._trackers.log(entry["step"], figures_of(entry))

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Close every file and the bar, and let go of the trackers."""
        stops = (Interrupted, KeyboardInterrupt, SystemExit)
        end: End = "finished" if kind is None else "interrupted" if issubclass(kind, stops) else "failed"
        if self._bar:
            self._bar.stop()
        self._trackers.finish(end)
        for file in (self._file, self._log):
            with contextlib.suppress(OSError):  # of a full disk; it was said when it was written to
                file.close()

    def _append(self, file: TextIO, line: str) -> None:
        """A line that cannot be written is reported once, and the run goes on."""
        try:
            file.write(line + "\n")
            file.flush()
        except OSError as error:
            if not self._has_lost_lines and not self._quiet:
                self._console.print(f"{file.name}: {error.strerror}; lines are lost", markup=False, soft_wrap=True)
            self._has_lost_lines = True


class NullMetrics:
    """Takes the place of `Metrics` on every rank but the first: reports nothing."""

    def say(self, line: str) -> None:
        """Nothing."""

    def note(self, line: str) -> None:
        """Nothing."""

    def start_trackers(self) -> None:
        """Nothing."""

    def step(self, step: int, num_tokens: int) -> None:
        """Nothing."""

    def train(self, step: int, **figures: float) -> None:
        """Nothing."""

    def pause_clock(self) -> None:
        """Nothing."""

    def write(self, entry: dict[str, Any]) -> None:
        """Nothing."""

    def __enter__(self) -> NullMetrics:
        return self

    def __exit__(self, *error: object) -> None: ...


Reporter = Metrics | NullMetrics


def last_logged_step(run: Run) -> int:
    """The highest step in metrics.jsonl; 0 if there is none."""
    last = 0
    with contextlib.suppress(OSError):
        for line in run.metrics_file.read_text(encoding="utf-8", errors="replace").split("\n"):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                last = max(last, int(json.loads(line)["step"]))
    return last


def _last_steps(file: Path) -> dict[str, int]:
    """The last step of each figure in metrics.jsonl, by its name in trackers."""
    last: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                entry = json.loads(line)
                last |= {figure: max(last.get(figure, 0), int(entry["step"])) for figure in figures_of(entry)}
    return last


def _forget_after(file: Path, step: int) -> None:
    """Remove the lines of steps that a resumed run does again."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, TypeError, KeyError):  # the last line, cut short by a crash
            continue
    write_whole(file, "".join(line + "\n" for line in kept))
