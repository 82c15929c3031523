"""`dorakit runs`; it does not import torch."""

from __future__ import annotations

import contextlib
import json
import math
import textwrap
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dorakit.cli import options
from dorakit.cli.completion import run_directories
from dorakit.errors import DorakitError, RunError, UsageError
from dorakit.terminal import json_line, printable

if TYPE_CHECKING:
    from rich.table import Table

    from dorakit.run import Run

_DEPTH = 3  # levels of directories below the one that is asked for: comparisons keep their runs one down


@dataclass(frozen=True)
class _Row:
    """One run. Absent: whatever is not known yet, or not asked for by its recipe.

    `steps`, `loss` and `validation_loss` (the lowest) of a run that did not finish are as far as it came.
    """

    path: str
    state: str
    mode: str | None = None
    update: str | None = None
    rank: int | None = None
    base: str | None = None
    steps: int | None = None
    loss: float | None = None
    validation_loss: float | None = None
    accuracy: float | None = None
    measured: str | None = None
    changed: str = ""


def runs(
    directory: Annotated[Path, typer.Argument(help="Directory of runs.")] = Path("runs"),
    as_json: options.Json = False,
) -> None:
    """List runs, the latest first: state, mode, steps, last loss, lowest validation loss, best accuracy measured.

    A run that stopped shows how far it came. Where the terminal is too narrow for a table, each run has lines of its own.

    Examples:
        dorakit runs

        dorakit runs runs/orders-comparison --json
    """
    if not directory.is_dir():
        raise UsageError(f"no such directory: {directory}\n  `dorakit train RECIPE` makes runs below runs/")
    found = sorted(run_directories(directory, _DEPTH), key=_changed, reverse=True)
    rows = [_row(path) for path in found]
    if as_json:
        typer.echo(json_line({"directory": str(directory), "runs": [asdict(row) for row in rows]}))
    elif not rows:
        typer.echo(printable(f"no runs below {directory}"))
    else:
        _show(rows)


def _changed(path: Path) -> float:
    return (path / "run.json").stat().st_mtime


def _row(path: Path) -> _Row:
    from dorakit.lock import refuse_held
    from dorakit.recipe.resolved import read_resolved
    from dorakit.run import Run

    changed = datetime.fromtimestamp(_changed(path)).strftime("%Y-%m-%d %H:%M")
    try:
        run = Run.open(path)
        facts, state = run.read("run.json"), run.state
        # As text: a run of an older dorakit is listed too, whatever its recipe could say.
        text = (path / "recipe.resolved.yaml").read_text(encoding="utf-8")
        settings = {key: value for key, value, _ in read_resolved(text)}
        if state == "training":
            try:
                refuse_held(path / "run.lock", of=path)
                state = "stopped"  # it can go on: dorakit train --resume
            except RunError:
                pass
        accuracy, measured = _best_accuracy(run)
        step, loss, lowest = _logged(run)
    except (DorakitError, OSError, ValueError) as error:
        return _Row(str(path), f"damaged: {str(error).splitlines()[0]}", changed=changed)
    return _Row(
        path=str(path),
        state=state,
        mode=settings.get("adapter.mode"),
        update=settings.get("adapter.update"),
        rank=int(rank) if (rank := settings.get("adapter.rank", "")).isdigit() else None,
        base=settings.get("model.base"),
        steps=facts.get("steps", step),
        loss=loss,
        validation_loss=facts.get("best_validation_loss", lowest),
        accuracy=accuracy,
        measured=measured,
        changed=changed,
    )


def _best_accuracy(run: Run) -> tuple[float | None, str | None]:
    """The highest accuracy among the run's evaluations of its own weights, and the name of that evaluation."""
    best: tuple[float | None, str | None] = (None, None)
    for file in sorted(run.eval.glob("*.json")) if run.eval.is_dir() else []:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            accuracy = None if content.get("variant") == "base" else content.get("accuracy")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(accuracy, float) and (best[0] is None or accuracy > best[0]):
            best = (accuracy, file.stem)
    return best


def _logged(run: Run) -> tuple[int | None, float | None, float | None]:
    """The last step that was logged or saved, its training loss, and the lowest validation loss."""
    steps = [int(path.name[5:]) for path in run.checkpoints.glob("step-*") if path.name[5:].isdigit()]
    last, lowest = "", None
    with contextlib.suppress(OSError), open(run.metrics_file, encoding="utf-8", errors="replace") as file:
        for line in file:
            if '"train/loss"' in line and line.endswith("\n"):  # the last one may be cut short
                last = line
            if '"validation/loss"' in line:
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    entry = json.loads(line)
                    steps.append(int(entry["step"]))
                    lowest = min(float(entry["validation/loss"]), math.inf if lowest is None else lowest)
    loss = None
    with contextlib.suppress(ValueError, TypeError, KeyError):
        entry = json.loads(last)
        steps.append(int(entry["step"]))
        loss = float(entry["train/loss"])
    return max(steps, default=None), loss, lowest


_UNBROKEN = "\N{NO-BREAK SPACE}"
_RIGHT = ("steps", "loss", "validation", "accuracy")


def _show(rows: list[_Row]) -> None:
    """As a table where one fits, without the time of the last change if need be; else some lines for each run."""
    from rich.console import Console
    from rich.measure import Measurement

    console, endless = Console(highlight=False), Console(width=100_000)
    cells = [_cells(row) for row in rows]
    used = [name for name in cells[0] if any(row[name] for row in cells)]
    for names in (used, [name for name in used if name != "changed"]):
        table = _table(names, cells)
        if Measurement.get(endless, endless.options, table).maximum <= console.width:
            console.print(table)
            break
    else:
        for one in cells:
            console.print(_lines(one, console.width), markup=False, soft_wrap=True)
    for row in rows:
        if reason := row.state.partition(": ")[2]:
            console.print(printable(f"{row.path}: {reason}"), markup=False, soft_wrap=True)


def _cells(row: _Row) -> dict[str, str]:
    """One run's line of the table, by column."""
    shown = {
        "state": row.state.partition(": ")[0],
        "mode": " ".join(
            word
            for word in (row.mode, "" if row.update == "lora" else row.update, f"r={row.rank}" if row.rank else "")
            if word
        ),
        "steps": "" if row.steps is None else str(row.steps),
        "loss": "" if row.loss is None else f"{row.loss:.4f}",
        "validation": "" if row.validation_loss is None else f"{row.validation_loss:.4f}",
        "accuracy": "" if row.accuracy is None else f"{row.accuracy:.1%}",
        "changed": row.changed,
        "run": row.path,
    }
    return {name: printable(value) for name, value in shown.items()}


def _table(names: list[str], rows: list[dict[str, str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in names:
        table.add_column(name, no_wrap=True, justify="right" if name in _RIGHT else "left")
    for row in rows:
        table.add_row(*(Text(row[name]) for name in names))
    return table


def _lines(row: dict[str, str], width: int) -> str:
    """The run's path, whole, and what is known of it, broken between figures only."""
    told = [row["state"], row["mode"], row["steps"] and f"{row['steps']} {'step' if row['steps'] == '1' else 'steps'}"]
    told += [f"{name} {row[name]}" for name in _RIGHT[1:] if row[name]] + [row["changed"]]
    kept = [part.replace(" ", _UNBROKEN) for part in told if part]
    words = textwrap.fill(
        ", ".join(kept),
        width,
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{row['run']}\n{words.replace(_UNBROKEN, ' ')}"
