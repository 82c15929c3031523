"""`compare`: every cell trained and measured, then what they say together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dorakit.comparison.cells import Cell, cell_recipe, check_alike, environment_notes, grid
from dorakit.comparison.data_files import check_files
from dorakit.comparison.execution import measure_cell, row_scores, train_cell
from dorakit.comparison.findings import Findings, find
from dorakit.comparison.measure import Measure, measure_of
from dorakit.comparison.methods import CellResult
from dorakit.comparison.page import Comparison, write_comparison
from dorakit.data.first_look import look
from dorakit.data.precheck import check_rows, check_test_rows
from dorakit.errors import UsageError
from dorakit.evaluation.taught import check_first_rows
from dorakit.files import write_json
from dorakit.recipe.schema import Recipe
from dorakit.report.content import read_content
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
        recipe: The recipe; its evaluation section says how cells are measured. Where that names no metric, they are
            measured by their loss.
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
        UsageError: The axes are wrong, or there are no rows to compare by.
        DataError: A file of rows is not there, or holds rows that cannot be used.
        RunError: A cell on disk is of another comparison; cells differ in more than the axes.
        Interrupted: The same command goes on.
        DorakitError: A cell failed, with its exit code.
    """
    plan = Recipe.from_yaml(str(recipe), list(overrides), twin=twin)
    measure = measure_of(plan)
    for note in check_first_rows(plan, look(plan)):
        say(f"note: {note}")
    if general is not None and not general.is_file():
        raise UsageError(f"--general {general}: no such file; name a plain text")
    place = (output or Path("runs") / f"{plan.origin.name}-comparison").absolute()
    if "{name}" in str(place):
        raise UsageError(
            f"--output {output}: {{name}} stands for a recipe's name in output_dir only; write the name itself"
        )
    cells = grid(plan, modes=modes, ranks=ranks, learning_rates=learning_rates, seeds=seeds)
    check_rows(plan)
    check_test_rows(plan)
    # All at once, so that a mistake in the last is known before the first is trained.
    recipes = {cell: cell_recipe(recipe, cell, place, overrides, twin=twin) for cell in cells}
    check_files(place, plan)
    results: list[CellResult] = []
    runs: dict[Cell, Run] = {}
    for number, cell in enumerate(cells, 1):
        say(f"cell {number}/{len(cells)}: {cell.name}")
        run = train_cell(cell, recipes[cell], place, quiet=quiet)
        runs[cell] = run
        results.append(_measure(cell, run, measure, general, quiet=quiet))
        write_report(run)  # with its evaluation in it
        say(f"  {measure.name} {measure.told(results[-1].score)}, {results[-1].seconds:.0f} s")
    check_alike(list(runs.items()))
    rates = [cell.learning_rate for cell in cells]
    own = plan.optimizer.learning_rate
    findings = find(results, fixed_rate=own if own in rates else rates[0], measure=measure)
    twin_note = [_TWIN] if plan.origin.is_twin else []
    notes = [*twin_note, *_by_loss_note(measure), *_trained_on_note(results, measure), *environment_notes(runs)]
    findings = replace(findings, notes=notes)
    write_json(place / "comparison.json", {"schema": 1, "recipe": plan.origin.name, **findings.as_dict()})
    write_comparison(Comparison(plan, place, findings, runs))
    return findings, place


def _by_loss_note(measure: Measure) -> list[str]:
    if not measure.is_loss:
        return []
    return [
        f"The recipe has no evaluation.metric, so runs are compared by their loss on the {measure.rows}, in nats a token: lower "
        "is better."
    ]


def _trained_on_note(results: Sequence[CellResult], measure: Measure) -> list[str]:
    most = max(results, key=lambda result: result.trained_on or 0)
    if not most.trained_on:
        return []
    return [
        f"{most.trained_on} of {len(most.rows)} {measure.rows} are training rows too: on those, {measure.name} says what was "
        "remembered and not what was learned."
    ]


def _measure(cell: Cell, run: Run, measure: Measure, general: Path | None, *, quiet: bool) -> CellResult:
    measure_cell(cell, run, name="comparison", arguments=[], quiet=quiet)
    if general is not None:
        _measure_forgetting(cell, run, general.absolute(), quiet=quiet)
    return result_of(cell, run, measure, with_general=general is not None)


def result_of(cell: Cell, run: Run, measure: Measure = Measure(), *, with_general: bool) -> CellResult:
    """What was measured of a finished cell, read from its run.

    Raises:
        RunError: It was not measured, or the files are damaged.
    """
    measured = run.read("eval/comparison.json")
    forgotten = None
    if with_general:
        forgotten = float(run.read("eval/general.json")["loss"]) - float(run.read("eval/general-base.json")["loss"])
    return CellResult(
        cell=cell,
        rows=row_scores(run, "comparison", measure),
        unparsed=int(measured["unparsed"] or 0),
        validation_loss=_validation_loss(run),
        seconds=float(run.fact("seconds")),
        peak_memory_bytes=int(run.fact("peak_memory_bytes")),
        trained_parameters=int(run.fact("trained_parameters")),
        forgotten=forgotten,
        trained_on=measured.get("rows_trained_on"),  # absent in results of an earlier dorakit
    )


def _validation_loss(run: Run) -> float | None:
    """Validation loss of the tested weights: the last step's, or with keep_best the best ones."""
    if run.recipe.training.keep_best:
        best: float | None = run.fact("best_validation_loss")
        return best
    return read_content(run).last("validation/loss")


def _measure_forgetting(cell: Cell, run: Run, text: Path, *, quiet: bool) -> None:
    """The loss on a text that the training was not about, and that of the base that the cell began with."""
    settings = [*_AS_TEXT, f"data.train=[{{path: {_quoted(text)}, format: text}}]"]
    arguments = ["--data", str(text), *(part for setting in settings for part in ("--set", setting))]
    for name, base in (("general", []), ("general-base", ["--base"])):
        measure_cell(cell, run, name=name, arguments=[*arguments, *base], file=text, quiet=quiet)


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
