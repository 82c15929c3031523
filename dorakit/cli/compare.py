"""`dorakit compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dorakit.cli import completion, options
from dorakit.errors import UsageError
from dorakit.terminal import json_line, printable

if TYPE_CHECKING:
    from rich.table import Table

    from dorakit.comparison.findings import Findings
    from dorakit.comparison.measure import Measure
    from dorakit.comparison.methods import Method
    from dorakit.comparison.statistics import Difference


def compare(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="Recipe that all cells share. They are compared by its evaluation.metric, else by their loss on held-out rows.",
            autocompletion=completion.recipes,
        ),
    ],
    modes: Annotated[
        str,
        typer.Option(
            "--modes",
            help="As lora,dora,qlora,qdora.",
            show_default="the recipe's",
            autocompletion=completion.modes,
        ),
    ] = "",
    ranks: Annotated[
        str, typer.Option("--ranks", help="As 4,8,16,32; alpha follows.", show_default="the recipe's")
    ] = "",
    learning_rates: Annotated[
        str, typer.Option("--learning-rates", help="As 1e-4,3e-4,1e-3.", show_default="the recipe's")
    ] = "",
    seeds: Annotated[int, typer.Option("--seeds", help="How many, counted up from training.seed.")] = 1,
    general: Annotated[
        Path | None, typer.Option("--general", help="Text file; how much its loss rises says what was forgotten.")
    ] = None,
    output: Annotated[Path | None, options.output("runs/RECIPE-comparison")] = None,
    overrides: options.Set = None,
    twin: options.Twin = False,
    as_json: options.Json = False,
    quiet: options.QuietPath = False,
) -> None:
    """Train a recipe in several modes, ranks, learning rates and seeds, and say what can be told apart.

    Every cell is a run directory, and OUTPUT/comparison.html is the page about all. Finished cells are never run again:
    after an interruption, or with more values on an axis, the same command goes on.

    Examples:
        dorakit compare recipes/smoke/dora.yaml --modes lora,dora --ranks 4,8 --seeds 3

        dorakit compare recipes/quickstart.yaml --modes lora,dora,qlora,qdora --learning-rates 3e-4,1e-3,3e-3
    """
    from dorakit.comparison.sweep import compare

    findings, place = compare(
        recipe,
        modes=_words(modes),
        ranks=[int(_number(word, "--ranks", whole=True)) for word in _words(ranks)],
        learning_rates=[_number(word, "--learning-rates") for word in _words(learning_rates)],
        seeds=seeds,
        general=general,
        output=output,
        overrides=overrides or [],
        twin=twin,
        say=lambda line: None if quiet else typer.echo(printable(line), err=True),
        quiet=quiet,
    )
    if as_json:
        report = str(place / "comparison.html")
        typer.echo(json_line({"output": str(place), "report": report, **findings.as_dict()}))
    elif quiet:
        typer.echo(printable(str(place)))
    else:
        _show(findings)
        for file in ("comparison.json", "comparison.html"):
            typer.echo(printable(f"written: {place / file}"), err=True)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _number(word: str, flag: str, *, whole: bool = False) -> float:
    try:
        return int(word) if whole else float(word)
    except ValueError:
        raise UsageError(f"{flag}: {word!r} is no {'whole ' * whole}number") from None


def _show(findings: Findings) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_scores(findings))
    console.print(_costs(findings))
    if findings.is_swept:
        console.print(f"Learning rates were chosen by {findings.chosen_by}.")
    for note in findings.notes:
        console.print(printable(f"Note: {note}"), markup=False, soft_wrap=True)
    console.print(findings.sentence + "\n", markup=False, soft_wrap=True)


def _scores(findings: Findings) -> Table:
    fixed = {method.name: method for method in findings.fixed}
    swept, measure = findings.is_swept, findings.measure
    columns = [measure.name]
    if swept:
        columns += ["at rate", f"at {findings.fixed_rate:g}"]
    table = _table(*columns, f"{findings.winner.name} ahead by")
    for method in findings.best:
        row = [method.name, _score(method, measure)]
        if swept:
            other = fixed.get(method.name)
            row += [f"{method.learning_rate:g}", _score(other, measure) if other else "-"]
        ahead = findings.against_best.get(method.name)
        table.add_row(*row, _lead(ahead, measure) if ahead else "-")
    return table


def _lead(ahead: Difference, measure: Measure) -> str:
    mean, low, high = map(measure.told_difference, (ahead.mean, ahead.low, ahead.high))
    from rich.markup import escape

    return escape(f"{mean} [{low}, {high}]" if ahead.is_bounded else f"{mean} [too few rows]")


def _costs(findings: Findings) -> Table:
    forgets = findings.forgets
    table = _table("seconds", "memory", "trained", *(["forgotten, nats"] if forgets else []))
    for method in findings.best:
        memory = method.mean(lambda cell: float(cell.peak_memory_bytes)) or 0.0
        row = [
            method.name,
            f"{method.mean(lambda cell: cell.seconds):.0f}",
            f"{memory / 1e9:.2f} GB",
            f"{method.cells[0].trained_parameters:,}",
        ]
        forgotten = method.mean(lambda cell: cell.forgotten)
        table.add_row(*row, *(["-" if forgotten is None else f"{forgotten:+.3f}"] if forgets else []))
    return table


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _score(method: Method, measure: Measure) -> str:
    spread = method.spread
    return measure.told(method.score) + (f" ± {measure.told(spread)}" if spread is not None else "")
