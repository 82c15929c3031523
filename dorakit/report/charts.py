"""Charts as inline SVG: lines over steps, points with a fitted line.

Places are in percent of the plot and letters in pixels, so a chart is as wide as the page gives it and its text keeps its size;
lines are drawn in a stretched inner <svg> whose strokes do not stretch. Colours and margins are the page's: each series has
a class, s1 to s8. Every text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dorakit.report.numbers import figure
from dorakit.report.scales import Scale, scale_of, steps_scale, tick_texts, values_scale
from dorakit.report.text import LABEL, clipped

Points = Sequence[tuple[float, float]]
NUM_COLOURS = 8
_HEIGHT = 220
_LABEL_GAP = 14  # pixels between the values at the ends of lines
_MAX_LABELS = 4
_MAX_MARKS = 40
_MAX_TICKS = 8  # of an axis whose numbers are given


@dataclass(frozen=True)
class Series:
    """One line: its points in the order of x, its colour by number from 0, and how it is drawn.

    `faint` is drawn thin behind the others and has neither a name in the legend nor a value at its end; nor has `loose`, of
    which only the points are drawn.
    """

    name: str
    points: Points
    colour: int = 0
    has_dots: bool = False
    is_dashed: bool = False
    is_faint: bool = False
    is_loose: bool = False

    @property
    def is_named(self) -> bool:
        """Whether it is told of beside the lines."""
        return bool(self.points) and not self.is_faint and not self.is_loose

    @property
    def css(self) -> str:
        """Classes of its marks."""
        states = (("dashed", self.is_dashed), ("faint", self.is_faint), ("open", self.is_loose))
        return " ".join([f"s{self.colour % NUM_COLOURS + 1}", *(name for name, is_so in states if is_so)])


@dataclass(frozen=True)
class Dot:
    """One point of a scatter chart, with what is shown when the mouse rests on it."""

    x: float
    y: float
    name: str
    colour: int = 0


def thinned(points: Points, limit: int) -> Points:
    """At most `limit` of the points: the first, the last, and of each stretch between them the lowest and the highest."""
    if len(points) <= limit:
        return points
    kept = [points[0]]
    stretches = max(1, (limit - 2) // 2)
    for number in range(stretches):
        start, end = (1 + (len(points) - 2) * n // stretches for n in (number, number + 1))
        part = range(start, end)
        low = min(part, key=lambda i: points[i][1])
        high = max(part, key=lambda i: points[i][1])
        kept += [points[i] for i in sorted({low, high})]
    return [*kept, points[-1]]


def averaged(points: Points, width: int) -> Points:
    """Means of `width` points each, one after the other; the last may be of fewer."""
    parts = [points[start : start + width] for start in range(0, len(points), width)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    name: str,
    unit: str = "",
    x_name: str = "step",
    x_values: Sequence[float] = (),
    from_zero: bool = False,
    may_be_log: bool = False,
    has_legend: bool = True,
    marks: Sequence[float] = (),
    marks_name: str = "",
    height: int = _HEIGHT,
) -> Markup:
    """Lines over training steps, or over values of another kind, as a <figure>.

    Args:
        title: Heading of the figure.
        series: At least one point in all.
        name: Of the chart on its page; no other has it.
        unit: Of the values, behind the title.
        x_name: What the horizontal axis is.
        x_values: What is written at it, where it is logarithmic.
        from_zero: The axis of values begins at zero.
        may_be_log: The axis is logarithmic where values lie far apart.
        has_legend: Names of the series beside the title.
        marks: Steps to mark with a vertical line.
        marks_name: What the marks are.
        height: In pixels.
    """
    x_scale = values_scale(x_values) if x_values else steps_scale([*(x for s in series for x, _ in s.points), *marks])
    y_scale = scale_of((y for one in series for _, y in one.points), from_zero=from_zero, may_be_log=may_be_log)
    named = [one for one in series if one.is_named]
    parts = [_grid(x_scale, y_scale, height, x_name, x_ticks=x_values, whole=True)]
    parts += [
        Markup('<line class="mark" x1="{0}%" x2="{0}%" y1="0" y2="100%"/>').format(x_scale.percent(step))
        for step in marks[:_MAX_MARKS]
    ]
    stretched = Markup().join(_polyline(one, x_scale, y_scale) for one in series if not one.is_loose)
    parts.append(Markup('<svg viewBox="0 0 1000 1000" preserveAspectRatio="none">{}</svg>').format(stretched))
    for one in series:
        if one.has_dots or one.is_loose or len(one.points) == 1:
            parts += [_circle(x_scale.percent(x), 100 - y_scale.percent(y), one.css) for x, y in one.points]
    if len(named) <= _MAX_LABELS:
        parts.append(_end_labels(named, x_scale, y_scale, height))
    entries = [(one.css, one.name) for one in named] if has_legend and len(named) > 1 else []
    if marks:
        entries.append(("mark", marks_name))
    described = "; ".join(_told(one, x_name) for one in named[:NUM_COLOURS])
    notes = [unit, "logarithmic" if y_scale.is_log else ""]
    return _figure(title, ", ".join(filter(None, notes)), name, described, entries, parts, height)


def scatter_chart(
    title: str,
    dots: Sequence[Dot],
    *,
    name: str,
    x_name: str,
    y_name: str,
    line: tuple[float, float] | None = None,
    note: str = "",
    entries: Sequence[tuple[str, str]] = (),
    height: int = _HEIGHT,
) -> Markup:
    """Points, and where it is given the line fitted to them, as a <figure>.

    Args:
        title: Heading of the figure.
        dots: At least one.
        name: Of the chart on its page; no other has it.
        x_name: What the horizontal axis is.
        y_name: What the vertical axis is.
        line: Slope and intercept.
        note: Behind the title.
        entries: Of the legend: class of the colour, text.
        height: In pixels.
    """
    x_scale, y_scale = scale_of(dot.x for dot in dots), scale_of(dot.y for dot in dots)
    parts = [_grid(x_scale, y_scale, height, x_name, y_name)]
    if line is not None and (ends := _ends(*line, x_scale, y_scale)):
        (x1, y1), (x2, y2) = ((x_scale.percent(x), round(100 - y_scale.percent(y), 2)) for x, y in ends)
        parts.append(Markup('<line class="fit" x1="{}%" y1="{}%" x2="{}%" y2="{}%"/>').format(x1, y1, x2, y2))
    for dot in dots:
        css = f"s{dot.colour % NUM_COLOURS + 1} open"
        parts.append(_circle(x_scale.percent(dot.x), 100 - y_scale.percent(dot.y), css, dot.name))
    described = (
        f"{len(dots)} points; {x_name} from {figure(min(d.x for d in dots))} to {figure(max(d.x for d in dots))}, "
    )
    described += f"{y_name} from {figure(min(d.y for d in dots))} to {figure(max(d.y for d in dots))}. {note}"
    return _figure(title, note, name, described, entries, parts, height, " scatter")


def _ends(slope: float, intercept: float, x_scale: Scale, y_scale: Scale) -> list[tuple[float, float]]:
    """The ends of the part of a line that lies in the plot, from left to right; none where no part of it does."""
    left, right = x_scale.low, x_scale.high
    if slope:
        at = sorted((y - intercept) / slope for y in (y_scale.low, y_scale.high))
        left, right = max(left, at[0]), min(right, at[1])
    ends = [(x, intercept + slope * x) for x in (left, right)]
    return ends if left < right and all(-0.1 <= y_scale.percent(y) <= 100.1 for _, y in ends) else []


def _grid(
    x_scale: Scale,
    y_scale: Scale,
    height: int,
    x_name: str,
    y_name: str = "",
    *,
    x_ticks: Sequence[float] = (),
    whole: bool = False,
) -> Markup:
    """Horizontal lines, the numbers of both axes, and their names."""
    parts = []
    ticks = y_scale.ticks(max(2, height // 50))
    for value, text in zip(ticks, tick_texts(ticks), strict=True):
        place = round(100 - y_scale.percent(value), 2)
        line = Markup(
            '<line class="grid" x1="0" x2="100%" y1="{0}%" y2="{0}%"/><text x="-8" y="{0}%" dy=".32em" class="y">{1}</text>'
        )
        parts.append(line.format(place, text))
    ticks = list(x_ticks)[:: math.ceil(len(x_ticks) / _MAX_TICKS)] if x_ticks else x_scale.ticks(5, whole=whole)
    for value, text in zip(ticks, tick_texts(ticks), strict=True):
        parts.append(
            Markup('<text x="{}%" y="100%" dy="1.5em" class="x">{}</text>').format(x_scale.percent(value), text)
        )
    parts.append(Markup('<text x="100%" y="100%" dy="2.8em" class="axis">{}</text>').format(x_name))
    if y_name:
        parts.append(Markup('<text x="0" y="0" dy="-.6em" class="axis start">{}</text>').format(y_name))
    return Markup().join(parts)


def _polyline(one: Series, x_scale: Scale, y_scale: Scale) -> Markup:
    # Tenths of a thousandth of the plot: finer than a pixel.
    places = (f"{x_scale.percent(x) * 10:.1f},{1000 - y_scale.percent(y) * 10:.1f}" for x, y in one.points)
    return Markup('<polyline class="line {}" points="{}"/>').format(one.css, " ".join(places))


def _circle(x: float, y: float, css: str, name: str = "") -> Markup:
    title = Markup("<title>{}</title>").format(clipped(name, LABEL)) if name else ""
    return Markup('<circle class="dot {}" cx="{}%" cy="{}%" r="3">{}</circle>').format(css, x, round(y, 2), title)


def _end_labels(series: Sequence[Series], x_scale: Scale, y_scale: Scale, height: int) -> Markup:
    """The last value of each line at its end, moved apart where they would lie on each other, and kept above the axis."""
    ordered = sorted(series, key=lambda s: -y_scale.percent(s.points[-1][1]))
    places: list[float] = []
    for one in ordered:
        place = height * (1 - y_scale.percent(one.points[-1][1]) / 100)
        places.append(max(place, places[-1] + _LABEL_GAP) if places else place)
    places = [min(place, height - _LABEL_GAP * below) for below, place in enumerate(reversed(places))][::-1]
    label = Markup('<text x="{}%" y="{}" dx="7" dy=".32em" class="value {}">{}</text>')
    return Markup().join(
        label.format(x_scale.percent(one.points[-1][0]), round(place, 1), one.css, figure(one.points[-1][1]))
        for one, place in zip(ordered, places, strict=True)
    )


def _told(one: Series, x_name: str) -> str:
    (first_x, first), (last_x, last) = one.points[0], one.points[-1]
    lowest, highest = min(y for _, y in one.points), max(y for _, y in one.points)
    return (
        f"{one.name}: {figure(first)} at {x_name} {figure(first_x)}, {figure(last)} at {x_name} {figure(last_x)}, "
        f"lowest {figure(lowest)}, highest {figure(highest)}"
    )


def _figure(
    title: str,
    note: str,
    name: str,
    described: str,
    entries: Sequence[tuple[str, str]],
    parts: Sequence[Markup],
    height: int,
    css: str = "",
) -> Markup:
    legend = Markup().join(
        Markup('<span class="key {}">{}</span>').format(css, clipped(text, LABEL)) for css, text in entries
    )
    return Markup(
        '<figure class="chart"><figcaption><span class="title">{title}</span> <span class="note">{note}</span>'
        '<span class="legend">{legend}</span></figcaption>'
        '<svg class="plot{css}" height="{height}" role="img" aria-labelledby="{name}-title {name}-desc">'
        '<title id="{name}-title">{title}</title><desc id="{name}-desc">{described}</desc>{parts}</svg></figure>'
    ).format(
        title=clipped(title, LABEL),
        note=clipped(note, LABEL),
        legend=legend,
        name=name,
        height=height,
        css=css,
        described=clipped(described, 1000),
        parts=Markup().join(parts),
    )
