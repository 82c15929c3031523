"""Accuracy, or whatever is compared, against rank and against learning rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from dorakit.comparison.findings import Findings
from dorakit.comparison.measure import Measure
from dorakit.comparison.methods import Method
from dorakit.report.charts import NUM_COLOURS, Series, line_chart


def accuracy_charts(found: Findings) -> list[Markup]:
    """One chart against rank, at each method's best rate, where several ranks were run; and against learning rate, one for
    each mode that has several ranks, where several rates were.
    """
    modes = list(dict.fromkeys(method.mode for method in found.methods))
    ranks = sorted({method.rank for method in found.methods if method.rank is not None})
    rates = sorted({method.learning_rate for method in found.methods})
    charts = []
    measure = found.measure
    name = measure.name.capitalize()
    if len(ranks) > 1:
        groups = [(mode, [m for m in found.best if m.mode == mode]) for mode in modes]
        series = _lines(measure, groups, lambda method: method.rank, ranks)
        charts.append(_chart(measure, f"{name} against rank", series, "rank", ranks, name="rank"))
    if len(rates) > 1 and len(ranks) > 1:
        for number, mode in enumerate(modes):
            of_mode = [m for m in found.methods if m.mode == mode]
            groups = [(_rank_told(rank), [m for m in of_mode if m.rank == rank]) for rank in _ranks(of_mode)]
            series = _lines(measure, groups, lambda method: method.learning_rate, rates)
            charts.append(
                _chart(
                    measure,
                    f"{mode}: {measure.name} against learning rate",
                    series,
                    "rate",
                    rates,
                    name=f"rate-{number}",
                )
            )
    elif len(rates) > 1:
        groups = [(mode, [m for m in found.methods if m.mode == mode]) for mode in modes]
        series = _lines(measure, groups, lambda method: method.learning_rate, rates)
        charts.append(_chart(measure, f"{name} against learning rate", series, "rate", rates, name="rate"))
    return charts


def _ranks(methods: Sequence[Method]) -> list[int | None]:
    return list(dict.fromkeys(method.rank for method in methods))


def _rank_told(rank: int | None) -> str:
    return "no rank" if rank is None else f"r = {rank}"


def _lines(
    measure: Measure,
    groups: Sequence[tuple[str, Sequence[Method]]],
    x_of: Callable[[Method], float | None],
    values: Sequence[float],
) -> list[Series]:
    """Of each group the line of its means, and behind it each seed as a point; what has no x lies across."""
    lines, seeds = [], []
    for colour, (name, methods) in enumerate(groups):
        is_second = colour >= NUM_COLOURS
        placed = [(x, method) for method in methods if (x := x_of(method)) is not None]
        placed.sort(key=lambda pair: pair[0])
        if not placed:
            across = [(x, measure.drawn(methods[0].score)) for x in (values[0], values[-1])]
            lines.append(Series(f"{name}, no rank", across, colour, is_dashed=True))
            continue
        means = [(x, measure.drawn(method.score)) for x, method in placed]
        lines.append(Series(name, means, colour, has_dots=True, is_dashed=is_second))
        points = [
            (x, measure.drawn(cell.score)) for x, method in placed for cell in method.cells if len(method.cells) > 1
        ]
        seeds.append(Series(name, points, colour, is_loose=True))
    return [*seeds, *lines]


def _chart(
    measure: Measure, title: str, series: Sequence[Series], x_name: str, values: Sequence[float], *, name: str
) -> Markup:
    return line_chart(title, series, name=name, unit=measure.unit, x_name=x_name, x_values=values)
