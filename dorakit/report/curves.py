"""Which charts a page shows of which runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from dorakit.report.charts import NUM_COLOURS, Dot, Points, Series, averaged, line_chart, scatter_chart, thinned
from dorakit.report.content import Change, Content, as_dict, as_list
from dorakit.report.numbers import figure, finite

_MEANS = 100  # of a noisy curve
_NOISY_FROM = 200  # logged steps
_NOISY = ("train/loss", "train/grad_norm", "train/tokens_per_s")
_DOTS = 60  # points of a curve up to which each is marked
_TALL = 280
_MAX_KINDS = 12


def curves(contents: Sequence[Content], names: Sequence[str], *, limit: int) -> list[Markup]:
    """Loss, learning rate, gradient norm, throughput and memory over steps; several runs lie in the same charts.

    Args:
        contents: The runs.
        names: What each is called on the page.
        limit: Points a series at most.
    """
    found: list[Markup | None] = [_loss(contents[0], limit)] if len(contents) == 1 else []
    found += losses(contents, names, limit=limit) if len(contents) > 1 else []
    found += [
        _plain(contents, names, "Learning rate", "train/learning_rate", limit, name="rate", from_zero=True),
        _plain(contents, names, "Gradient norm", "train/grad_norm", limit, name="norm", may_be_log=True),
        _plain(
            contents, names, "Throughput", "train/tokens_per_s", limit, name="speed", unit="tokens/s", from_zero=True
        ),
        _plain(
            contents,
            names,
            "Peak memory",
            "train/memory_bytes",
            limit,
            name="memory",
            unit="GB",
            from_zero=True,
            read=lambda points: [(x, y / 1e9) for x, y in points],
        ),
    ]
    return [chart for chart in found if chart]


def run_colour(index: int) -> str:
    """The classes of a run in charts, by its place: the second time round the colours are dashed."""
    return Series("", (), index, is_dashed=index >= NUM_COLOURS).css


def change_charts(content: Content, *, prefix: str, limit: int) -> list[Markup]:
    """How far magnitudes went against how far directions went: one chart per kind of matrix.

    Args:
        content: The run.
        prefix: Of the charts' names on the page.
        limit: Points a chart at most.
    """
    kinds: dict[str, list[Change]] = {}
    for change in content.changes:
        kinds.setdefault(change.kind, []).append(change)
    correlations = as_dict(content.analysis.get("kinds"))
    steps = sorted({change.step for change in content.changes})
    colours = {step: number * min(NUM_COLOURS, len(steps)) // len(steps) for number, step in enumerate(steps)}
    charts = []
    for number, (kind, changes) in enumerate(sorted(kinds.items())[:_MAX_KINDS]):
        known = as_dict(correlations.get(kind))
        every = math.ceil(len(changes) / limit)
        dots = [Dot(c.direction, c.magnitude, f"{c.module}, step {c.step}", colours[c.step]) for c in changes[::every]]
        charts.append(
            scatter_chart(
                kind or "all matrices",
                dots,
                name=f"{prefix}-{number}",
                x_name="ΔD, direction",
                y_name="ΔM, magnitude",
                line=_line(known),
                note=_correlation(known),
                entries=_step_entries(colours) if number == 0 and len(steps) > 1 else [],
            )
        )
    return charts


def changes_told(content: Content) -> list[tuple[str, str]]:
    """What the charts do not show: the correlation over all matrices, and which never moved."""
    rows = [("all matrices", _correlation(as_dict(content.analysis.get("all"))))]
    still = [str(name) for name in as_list(content.analysis.get("never_moved"))]
    rows.append((f"never moved: {len(still)}", ", ".join(still)))
    return [row for row in rows if row[1]]


def _correlation(known: dict[str, Any]) -> str:
    """Pearson's r with its interval, and over how many points."""
    r, low, high, number = (finite(known.get(key)) for key in ("r", "r_low", "r_high", "n"))
    if r is None:
        return ""
    told = f"r = {r:.2f}" + ("" if low is None or high is None else f" [{low:.2f}, {high:.2f}]")
    return told + ("" if number is None else f", n = {figure(number)}")


def _line(known: dict[str, Any]) -> tuple[float, float] | None:
    slope, intercept = finite(known.get("slope")), finite(known.get("intercept"))
    return None if slope is None or intercept is None else (slope, intercept)


def _step_entries(colours: dict[int, int]) -> list[tuple[str, str]]:
    """A legend of the colours of steps; a colour of several steps is named after the first and the last of them."""
    steps: dict[int, list[int]] = {}
    for step, colour in colours.items():
        steps.setdefault(colour, []).append(step)
    names = {c: f"step {s[0]:,}" if len(s) == 1 else f"steps {s[0]:,} to {s[-1]:,}" for c, s in steps.items()}
    return [(f"s{colour + 1} open", name) for colour, name in names.items()]


def _loss(content: Content, limit: int) -> Markup | None:
    """Training and validation loss of one run in one chart, with the steps that were not finite."""
    train, validation = content.series.get("train/loss", []), content.series.get("validation/loss", [])
    series = _with_means(Series("training", train), limit) if train else []
    if validation:
        series.append(Series("validation", thinned(validation, limit), 1, has_dots=len(validation) <= _DOTS))
    if not series:
        return None
    marks = [step for record in content.nonfinite if (step := finite(record.get("step"))) is not None]
    return line_chart(
        "Loss", series, name="loss", may_be_log=True, marks=marks, marks_name="not finite: no step taken", height=_TALL
    )


def losses(contents: Sequence[Content], names: Sequence[str], *, limit: int) -> list[Markup]:
    """Training and validation loss of several runs, as in `curves`."""
    found = (
        _plain(contents, names, "Training loss", "train/loss", limit, name="loss", may_be_log=True, height=_TALL),
        _plain(contents, names, "Validation loss", "validation/loss", limit, name="validation", may_be_log=True),
    )
    return [chart for chart in found if chart]


def _plain(
    contents: Sequence[Content],
    names: Sequence[str],
    title: str,
    key: str,
    limit: int,
    *,
    read: Callable[[Points], Points] = lambda points: points,
    **how: Any,
) -> Markup | None:
    """One series of every run that has it; None where none has."""
    series: list[Series] = []
    has_means = False
    for index, (content, name) in enumerate(zip(contents, names, strict=True)):
        if points := content.series.get(key):
            has_dots = key == "validation/loss" and len(points) <= _DOTS
            one = Series(name, read(points), index, has_dots, is_dashed=index >= NUM_COLOURS)
            drawn = _with_means(one, limit) if key in _NOISY else [replace(one, points=thinned(one.points, limit))]
            has_means = has_means or len(drawn) > 1
            series += drawn if len(contents) == 1 else drawn[-1:]  # several noisy curves would hide each other
    notes = [how.pop("unit", ""), "means of stretches" if has_means and len(contents) > 1 else ""]
    unit = ", ".join(filter(None, notes))
    return line_chart(title, series, unit=unit, has_legend=len(contents) == 1, **how) if series else None


def _with_means(one: Series, limit: int) -> list[Series]:
    """A long noisy curve faintly, and before it the means of its stretches."""
    if len(one.points) < _NOISY_FROM:
        return [replace(one, points=thinned(one.points, limit))]
    width = math.ceil(len(one.points) / min(_MEANS, limit))
    means = averaged(one.points, width)
    behind = replace(one, points=thinned(one.points, limit), is_faint=True)
    return [behind, replace(one, name=f"{one.name}, mean of {width:,} points", points=means)]
