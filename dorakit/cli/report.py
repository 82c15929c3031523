"""`dorakit report`."""

from __future__ import annotations

import typer

from dorakit.cli import completion
from dorakit.terminal import json_line, printable


def report(
    runs: list[str] = typer.Argument(
        help="Run directories: one in full, several side by side.", autocompletion=completion.runs
    ),
    output: str | None = typer.Option(
        None, "--output", "-o", help="Write the page here; for one run instead of RUN/report.html."
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout, messages on stderr."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Print nothing."),
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
    elif not quiet:
        typer.echo(printable(f"written: {path}"))
