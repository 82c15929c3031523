"""`compare`: every cell trained and measured, then what they say together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dorakit.comparison.cells import Cell, cell_recipe, check_alike, environment_notes, grid
from dorakit.comparison.execution import measure_cell, right_or_wrong, train_cell
from dorakit.comparison.findings import CellResult, Findings, find
from dorakit.comparison.page import Comparison, write_comparison
from dorakit.errors import UsageError
from dorakit.files import write_json
from dorakit.recipe.schema import Recipe
from dorakit.report.page import write_report
from dorakit.run import Run

# A text is read as it stands: no answer is judged, and every token counts.
_AS_TEXT = ("evaluation.metric=none", "evaluation.options=[]", "data.train_on=all")
_TWIN = "A twin: a tiny random base in the place of the recipe's. Its figures say nothing of quality."


def compare(
    recipe: Path,
    *,
    modes: Sequence[str] = (),
    ranks: Sequence[int] = (),
    learning_rates: Sequence[float] = (),
    seeds: int = 1,
    general: Path | None = None,
    output: Path | None = None,
    overrides: Sequence[str] = (),
    twin: bool = False,
    say: Callable[[str], None] = lambda line: None,
    quiet: bool = False,
) -> tuple[Findings, Path]:
    """Train and measure the recipe once per mode, rank, learning rate and seed; the findings and where they lie.

    Writes comparison.json and comparison.html there.

    Alpha follows the rank, so that the scale alpha / rank is the same everywhere. Cells of one seed see the same batches
    in the same order. A finished cell is never run again, an interrupted one goes on.

    Args:
        recipe: The recipe; its evaluation section says how cells are measured.
        modes: Values of adapter.mode; none: the recipe's own.
        ranks: Values of adapter.rank, likewise.
        learning_rates: Values of optimizer.learning_rate, likewise.
        seeds: How many, counted up from the recipe's training.seed.
        general: A text file, on which each cell's rise of the loss over its base is measured.
        output: Directory of the cells; default: runs/NAME-comparison, NAME being the recipe's.
        overrides: As of `--set`, for every cell.
        twin: As of `--twin`.
        say: Is given one line per cell.
        quiet: The cells' own progress is not shown.

    Raises:
        UsageError: The axes are wrong, or the recipe judges no answers.
        RunError: A cell on disk is of another comparison; cells differ in more than the axes.
        Interrupted: The same command goes on.
        DorakitError: A cell failed, with its exit code.
    """
    plan = Recipe.from_yaml(str(recipe), list(overrides), twin=twin)
    if plan.evaluation.metric == "none":
        raise UsageError(
            f"{recipe}: evaluation.metric is none, so cells have no accuracy to compare\n"
            "  --set evaluation.metric=exact_match (last_number, option, option_likelihood)"
        )
    if general is not None and not general.is_file():
        raise UsageError(f"--general {general}: no such file; name a plain text")
    place = (output or Path("runs") / f"{plan.origin.name}-comparison").absolute()
    cells = grid(plan, modes=modes, ranks=ranks, learning_rates=learning_rates, seeds=seeds)
    # All at once, so that a mistake in the last is known before the first is trained.
    recipes = {cell: cell_recipe(recipe, cell, place, overrides, twin=twin) for cell in cells}
    results: list[CellResult] = []
    runs: dict[Cell, Run] = {}
    for number, cell in enumerate(cells, 1):
        say(f"cell {number}/{len(cells)}: {cell.name}")
        run = train_cell(cell, recipes[cell], place, quiet=quiet)
        runs[cell] = run
        results.append(_measure(cell, run, general, quiet=quiet))
        write_report(run)  # with its evaluation in it
        say(f"  accuracy {results[-1].accuracy:.1%}, {results[-1].seconds:.0f} s")
    check_alike(list(runs.items()))
    rates = [cell.learning_rate for cell in cells]
    own = plan.optimizer.learning_rate
    findings = find(
        results, fixed_rate=own if own in rates else rates[0], tests_on_validation=plan.evaluation.path is None
    )
    notes = [*([_TWIN] if plan.origin.is_twin else []), *environment_notes(runs)]
    findings = replace(findings, notes=notes)
    write_json(place / "comparison.json", {"schema": 1, "recipe": plan.origin.name, **findings.as_dict()})
    write_comparison(Comparison(plan, place, findings, runs))
    return findings, place


def _measure(cell: Cell, run: Run, general: Path | None, *, quiet: bool) -> CellResult:
    measure_cell(cell, run, name="comparison", arguments=[], quiet=quiet)
    if general is not None:
        _measure_forgetting(cell, run, general.absolute(), quiet=quiet)
    return result_of(cell, run, with_general=general is not None)


def result_of(cell: Cell, run: Run, *, with_general: bool) -> CellResult:
    """What was measured of a finished cell, read from its run.

    Raises:
        RunError: It was not measured, or the files are damaged.
    """
    facts = run.read("run.json")
    forgotten = None
    if with_general:
        forgotten = float(run.read("eval/general.json")["loss"]) - float(run.read("eval/general-base.json")["loss"])
    return CellResult(
        cell=cell,
        right=right_or_wrong(run, "comparison"),
        unparsed=int(run.read("eval/comparison.json")["unparsed"]),
        validation_loss=facts["best_validation_loss"],
        seconds=float(facts["seconds"]),
        peak_memory_bytes=int(facts["peak_memory_bytes"]),
        trained_parameters=int(facts["trained_parameters"]),
        forgotten=forgotten,
    )


def _measure_forgetting(cell: Cell, run: Run, text: Path, *, quiet: bool) -> None:
    """The loss on a text that the training was not about, and that of the base that the cell began with."""
    settings = [*_AS_TEXT, f"data.train=[{{path: {_quoted(text)}, format: text}}]"]
    arguments = ["--data", str(text), *(part for setting in settings for part in ("--set", setting))]
    for name, base in (("general", []), ("general-base", ["--base"])):
        measure_cell(cell, run, name=name, arguments=[*arguments, *base], file=text, quiet=quiet)


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
