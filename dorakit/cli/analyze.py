"""`dorakit analyze`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from dorakit.cli import completion, options
from dorakit.terminal import json_line, printable

_SHOWN_STILL = 12  # names of matrices that never moved
_LEGEND = (
    "n: points, a matrix at a step; delta-M: mean change of a row's length; delta-D: mean turn of a row (1 - cosine); "
    "slope and r: of delta-M over delta-D, r from -1 to +1 with its 95 % interval; r at step: matrices at that step alone"
)


def analyze(
    runs: Annotated[
        list[str],
        typer.Argument(help="Run directories, finished or with a checkpoint.", autocompletion=completion.runs),
    ],
    as_json: options.Json = False,
    quiet: options.QuietPath = False,
) -> None:
    """Show how far training moved each weight matrix in length and in direction; writes RUN/analysis.json and RUN/report.html.

    Every checkpoint that a run kept counts: training.save_every and training.keep_checkpoints say how many there are.

    Examples:
        dorakit analyze runs/latest

        dorakit analyze runs/lora runs/dora --json
    """
    from dorakit.report.analysis import analyze
    from dorakit.report.page import write_report
    from dorakit.run import Run

    results = []
    for run in runs:
        opened = Run.open(Path(os.path.expanduser(run)))
        result = analyze(opened)
        page = write_report(opened)
        results.append({**result, "report": None if page is None else str(page)})
        if quiet and not as_json:
            typer.echo(printable(str(result["output"])))
        elif not as_json:
            _show(results[-1])
    if as_json:
        typer.echo(json_line({"runs": results}))


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    steps = ", ".join(map(str, result["steps"]))
    title = f"{result['run']} · {result['mode']} on {result['base']} · after step {steps}"
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")  # fits into 80 columns
    last = str(result["steps"][-1])
    for name in ("matrix", "n", "delta-M", "delta-D", "slope", "r [95 %]", f"r at step {last}"):
        table.add_column(name, justify="left" if name == "matrix" else "right")
    everything = {**result["all"], "steps": result["checkpoints"]}
    for kind, values in [*result["kinds"].items(), ("all", everything)]:
        table.add_row(
            Text(printable(kind)),
            f"{values['n']}",
            _number(values["mean_delta_m"]),
            _number(values["mean_delta_d"]),
            _number(values["slope"]),
            Text(_correlation(values)),
            Text(_correlation(values["steps"][last])),
        )
    console = Console(highlight=False)
    console.print(Text(printable(title)), soft_wrap=True)
    console.print(table)
    lines = [
        _LEGEND,
        *result["notes"],
        _still(result["never_moved"], len({entry["module"] for entry in result["matrices"]})),
    ]
    written = [f"written: {path}" for path in (result["output"], result["report"]) if path]
    for line in [*lines, *written]:
        console.print(Text(printable(line)), soft_wrap=True)
    console.print()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _correlation(values: dict[str, Any]) -> str:
    if values["r"] is None:
        return "-"
    if values["r_low"] is None:
        return f"{values['r']:+.2f} [too few]"
    return f"{values['r']:+.2f} [{values['r_low']:.2f}, {values['r_high']:.2f}]"


def _still(names: list[str], total: int) -> str:
    if not names:
        return f"all {total} matrices moved"
    more = f" and {len(names) - _SHOWN_STILL} more" if len(names) > _SHOWN_STILL else ""
    return f"never moved, {len(names)} of {total}: {', '.join(names[:_SHOWN_STILL])}{more}"
