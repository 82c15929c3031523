"""`dorakit report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dorakit.cli import completion, options
from dorakit.terminal import json_line, printable


def report(
    runs: Annotated[
        list[str],
        typer.Argument(help="Run directories: one in full, several side by side.", autocompletion=completion.runs),
    ],
    output: Annotated[Path | None, options.output("of one run RUN/report.html")] = None,
    as_json: options.Json = False,
    quiet: options.QuietPath = False,
) -> None:
    """Write one HTML file about runs, finished or not: answers before and after, curves, evaluations, recipe.

    The file needs no network and holds no script.

    Examples:
        dorakit report runs/latest

        dorakit report runs/lora runs/dora --output lora-dora.html
    """
    from dorakit.report.page import write_page
    from dorakit.run import Run

    path = write_page([Run.open(run) for run in runs], output)
    if as_json:
        typer.echo(json_line({"output": str(path), "runs": runs, "bytes": path.stat().st_size}))
    else:
        typer.echo(printable(str(path) if quiet else f"written: {path}"))
