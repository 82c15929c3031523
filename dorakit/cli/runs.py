"""`dorakit runs`; it does not import torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from dorakit.cli import options
from dorakit.cli.completion import run_directories
from dorakit.errors import DorakitError, RunError, UsageError
from dorakit.terminal import json_line, printable

_DEPTH = 3  # levels of directories below the one that is asked for: comparisons keep their runs one down


@dataclass(frozen=True)
class _Row:
    """One run. Absent: whatever is not known yet, or not asked for by its recipe."""

    path: str
    state: str
    mode: str | None = None
    rank: int | None = None
    base: str | None = None
    steps: int | None = None
    validation_loss: float | None = None
    accuracy: float | None = None
    measured: str | None = None
    changed: str = ""


def runs(
    directory: Annotated[Path, typer.Argument(help="Directory of runs.")] = Path("runs"),
    as_json: options.Json = False,
) -> None:
    """List runs, the latest first: state, mode, steps, lowest validation loss, best accuracy measured.

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
    except (DorakitError, OSError, ValueError) as error:
        return _Row(str(path), f"damaged: {str(error).splitlines()[0]}", changed=changed)
    return _Row(
        path=str(path),
        state=state,
        mode=settings.get("adapter.mode"),
        rank=int(rank) if (rank := settings.get("adapter.rank", "")).isdigit() else None,
        base=settings.get("model.base"),
        steps=facts.get("steps"),
        validation_loss=facts.get("best_validation_loss"),
        accuracy=accuracy,
        measured=measured,
        changed=changed,
    )


def _best_accuracy(run: Any) -> tuple[float | None, str | None]:
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


def _show(rows: list[_Row]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("state", overflow="fold")
    table.add_column("mode", no_wrap=True)
    for name in ("steps", "loss", "accuracy"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("changed", no_wrap=True)
    table.add_column("run", overflow="fold")
    for row in rows:
        loss = "" if row.validation_loss is None else f"{row.validation_loss:.4f}"
        accuracy = "" if row.accuracy is None else f"{row.accuracy:.1%}"
        mode = "" if row.mode is None else row.mode + (f" r={row.rank}" if row.rank else "")
        steps = "" if row.steps is None else str(row.steps)
        cells = (row.state, mode, steps, loss, accuracy, row.changed, row.path)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    Console(highlight=False).print(table)
