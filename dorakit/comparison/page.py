"""The page about a comparison: one HTML file of the kind of a report, beside the cells, to whose reports it leads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dorakit.comparison.cells import Cell
from dorakit.comparison.charts import accuracy_charts
from dorakit.comparison.findings import Findings
from dorakit.comparison.measure import Measure
from dorakit.comparison.methods import CellResult, Method
from dorakit.errors import UsageError, shown
from dorakit.files import write_whole
from dorakit.methods import UPDATES
from dorakit.recipe.schema import Recipe
from dorakit.report.content import as_dict, read_content
from dorakit.report.curves import losses, run_colour
from dorakit.report.numbers import count, duration, figure, percent, size
from dorakit.report.page import MAX_BYTES
from dorakit.report.templates import fill
from dorakit.run import Run

_MAX_DRAWN = 16  # methods whose loss curves can still be told apart
# In place, since not every reader of a page has met it.
_NAT = "Nats are the unit of the loss: minus the natural logarithm of the probability that the model gave to a token."
_POINTS = (500, 200, 60)  # of a curve; the first with which the page is small enough


@dataclass(frozen=True)
class Comparison:
    """A finished comparison: what it was about, where its cells are, and what was found."""

    recipe: Recipe
    output: Path
    findings: Findings
    runs: dict[Cell, Run]

    @property
    def page(self) -> Path:
        """The page about it."""
        return self.output / "comparison.html"


def write_comparison(comparison: Comparison) -> Path:
    """Write OUTPUT/comparison.html, smaller than a megabyte.

    Raises:
        UsageError: The comparison is too large for that.
    """
    write_whole(comparison.page, render(comparison))
    return comparison.page


def render(comparison: Comparison) -> str:
    """The page as text.

    Raises:
        UsageError: It is too large.
    """
    found = comparison.findings
    drawn = found.best[:_MAX_DRAWN]
    firsts = [comparison.runs[method.cells[0].cell] for method in drawn]
    contents = [read_content(run) for run in firsts]
    for points in _POINTS:
        page = fill(
            "dorakit.comparison",
            text=2000,
            title=f"{comparison.recipe.origin.name}, compared",
            sentence=found.sentence,
            notes=found.notes,
            methods=_method_rows(found),
            measure=found.measure.name,
            is_loss=found.measure.is_loss,
            swept=found.is_swept,
            forgets=found.forgets,
            fixed_rate=f"{found.fixed_rate:g}",
            winner=found.winner.name,
            span=_span_told(found),
            methods_note=_methods_note(found),
            reading=_reading(found),
            charts=accuracy_charts(found),
            charts_note="lines are means over seeds, circles single seeds" if _num_seeds(found) > 1 else "",
            losses=losses(contents, [method.name for method in drawn], limit=points),
            losses_note=f"each method at its best, seed {drawn[0].cells[0].cell.seed}",
            drawn=[{"name": method.name, "colour": run_colour(number)} for number, method in enumerate(drawn)],
            trainings=[_run_row(cell, comparison) for method in found.methods for cell in method.cells],
            trainings_note="one for each method, learning rate and seed; the name leads to its report",
            compared=_compared(comparison),
        )
        if len(page.encode()) < MAX_BYTES:
            return page
    raise UsageError(f"{len(comparison.runs)} cells do not fit in one page; comparison.json holds them all")


def _num_seeds(found: Findings) -> int:
    return len(found.winner.cells)


def _span(found: Findings) -> tuple[float, float]:
    """The ends of the scale that methods are drawn on: around all of their seeds."""
    values = [cell.score for method in found.best for cell in method.cells]
    if found.measure.is_loss:
        room = 0.1 * (max(values) - min(values)) or 0.05
        return max(0.0, min(values) - room), max(values) + room
    low, high = math.floor(min(values) * 20) / 20, math.ceil(max(values) * 20) / 20  # to the next 5 %
    if high - low < 0.1:
        low, high = max(0.0, low - 0.05), min(1.0, high + 0.05)
    return low, high


def _span_told(found: Findings) -> str:
    low, high = _span(found)
    if found.measure.is_loss:
        return f"{figure(low)} to {figure(high)}"
    return f"{low * 100:.0f} to {high * 100:.0f}\N{NO-BREAK SPACE}%"


def _told(measure: Measure, value: float) -> str:
    return figure(value) if measure.is_loss else percent(value)


def _method_rows(found: Findings) -> list[dict[str, Any]]:
    fixed = {method.name: method for method in found.fixed}
    return [
        {
            "name": method.name,
            "colour": run_colour(number),
            "score": _told(found.measure, method.score),
            "spread": None if method.spread is None else _spread(found.measure, method.spread),
            **_placed(method, *_span(found)),
            "rate": f"{method.learning_rate:g}",
            "fixed": _told(found.measure, fixed[method.name].score) if method.name in fixed else "–",
            **_ahead(method, found),
            "seconds": duration(method.mean(lambda cell: cell.seconds)),
            "memory": size(method.mean(lambda cell: float(cell.peak_memory_bytes))),
            "trained": count(method.cells[0].trained_parameters),
            "forgotten": _nats(method.mean(lambda cell: cell.forgotten)),
        }
        for number, method in enumerate(found.best)
    ]


def _spread(measure: Measure, spread: float) -> str:
    return figure(spread) if measure.is_loss else f"{spread * 100:.1f}"


def _placed(method: Method, low: float, high: float) -> dict[str, Any]:
    """Mean, and lowest and highest seed, in percent of the way from low to high."""

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 1)

    values = [cell.score for cell in method.cells]
    return {
        "middle": place(method.score),
        "range": (place(min(values)), place(max(values))) if len(values) > 1 else None,
    }


def _ahead(method: Method, found: Findings) -> dict[str, str]:
    difference = found.against_best.get(method.name)
    if difference is None:
        return {"ahead": "–", "interval": ""}
    scale, digits, unit = (1, 4, "") if found.measure.is_loss else (100, 1, "\N{NO-BREAK SPACE}%")
    mean, low, high = (f"{value * scale:+.{digits}f}" for value in (difference.mean, difference.low, difference.high))
    return {"ahead": f"{mean}{unit}", "interval": f"[{low}, {high}]" if difference.is_bounded else "[too few rows]"}


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _methods_note(found: Findings) -> str:
    return f"best of the learning rates by {found.chosen_by}" if found.is_swept else ""


def _reading(found: Findings) -> list[str]:
    """How to read the table."""
    lines = []
    if _num_seeds(found) > 1:
        lines.append("± is the standard deviation over seeds; the bar spans the seeds, the dot is their mean.")
    if others := len(found.against_best):
        corrected = f", corrected for {others} comparisons," if others > 1 else ""
        lines.append(
            f"[…] is a 95 % interval{corrected} over rows and seeds: where it holds 0, the two cannot be told apart."
        )
    if found.measure.is_loss:
        lines.append(f"{found.measure.name.capitalize()} is in nats a token, and lower is better. {_NAT}")
    if found.forgets:
        told = "Forgotten: how far the loss on the general text rose over the model before training, in nats a token."
        lines.append(told if found.measure.is_loss else f"{told} {_NAT}")
    return lines


def _run_row(result: CellResult, comparison: Comparison) -> dict[str, str]:
    run = comparison.runs[result.cell]
    return {
        "name": result.cell.name,
        "link": f"{quote(result.cell.name)}/{run.report.name}" if run.report.is_file() else "",
        "score": _told(comparison.findings.measure, result.score),
        "unparsed": count(result.unparsed),
        "loss": figure(result.validation_loss),
        "seconds": duration(result.seconds),
        "memory": size(result.peak_memory_bytes),
        "forgotten": _nats(result.forgotten),
    }


def _compared(comparison: Comparison) -> list[tuple[str, str]]:
    found, recipe = comparison.findings, comparison.recipe
    cells = list(comparison.runs)
    facts = comparison.runs[cells[0]].read("run.json")
    evaluation = as_dict(comparison.runs[cells[0]].read("eval/comparison.json"))
    return [
        ("recipe", shown(recipe.origin.path)),
        ("base", str(as_dict(facts.get("base")).get("name"))),
        ("modes", _listed(cell.mode for cell in cells)),
        ("ranks", _listed(cell.rank for cell in cells if cell.rank is not None)),
        ("learning rates", _listed(f"{cell.learning_rate:g}" for cell in cells)),
        ("seeds", _listed(cell.seed for cell in cells)),
        ("update", recipe.adapter.update),
        *(
            [("alpha / rank", f"{recipe.adapter.alpha / recipe.adapter.rank:g}")]
            if "adapter.alpha" not in UPDATES[recipe.adapter.update].ignores
            else []
        ),
        ("trained on", ", ".join(str(source.path) for source in recipe.data.train)),
        (
            "measured on",
            f"{len(found.winner.cells[0].rows):,} rows of {evaluation.get('data')}, "
            f"{'loss' if found.measure.is_loss else evaluation.get('metric')}",
        ),
    ]


def _listed(values: Any) -> str:
    return ", ".join(str(value) for value in dict.fromkeys(values)) or "–"
