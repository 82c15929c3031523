"""Charts show the numbers that they are given, at their places."""

import itertools
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dorakit.report.charts import Dot, Series, averaged, line_chart, scatter_chart, thinned
from dorakit.report.scales import Scale, scale_of, tick_texts


def points_of(svg: str) -> list[tuple[float, float]]:
    """The places of the first line in percent of the plot, y from below."""
    places = re.search(r'points="([^"]*)"', svg)[1].split()
    return [(float(x) / 10, 100 - float(y) / 10) for x, y in (place.split(",") for place in places)]


def y_ticks(svg: str) -> list[tuple[float, float]]:
    """(place in percent from below, number written) of the axis of values."""
    found = re.findall(r'<text x="-8" y="([\d.]+)%"[^>]*>([^<]*)<', svg)
    return [(100 - float(place), float(text.replace(",", "").replace("k", "e3"))) for place, text in found]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(4, 60))
@settings(max_examples=60, deadline=None)
def test_thinning_keeps_ends_and_extremes(values, limit):
    """Planted bug caught: every n-th point, which loses the spike that a person looks for."""
    points = list(enumerate(values))
    kept = thinned(points, limit)
    assert len(kept) <= limit
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert list(kept) == sorted(kept) and set(kept) <= set(points)
    for extreme in (min, max):
        assert extreme(y for _, y in kept) == extreme(values)


def test_means_are_of_neighbours_and_lose_none():
    """Planted bug caught: the last, shorter stretch left out."""
    assert averaged([(1, 2.0), (2, 4.0), (3, 6.0), (4, 8.0), (5, 100.0)], 2) == [(1.5, 3.0), (3.5, 7.0), (5.0, 100.0)]


@pytest.mark.parametrize("values", [[2.0, 1.5, 0.25, 0.75], [200.0, 3.0, 0.5, 0.002]])
def test_a_line_can_be_read_off_its_axis(values):
    """Planted bugs caught: the axis upside down; numbers of another scale beside it (a logarithm on one side only)."""
    svg = line_chart("Loss", [Series("training", list(enumerate(values, 1)))], name="loss", may_be_log=True)
    assert ("logarithmic" in svg) == (max(values) / min(values) > 30)
    (low, first), (high, second) = y_ticks(svg)[0], y_ticks(svg)[-1]
    for (x, y), (step, value) in zip(points_of(svg), enumerate(values, 1), strict=True):
        share = (y - low) / (high - low)
        read = first * (second / first) ** share if "logarithmic" in svg else first + share * (second - first)
        assert read == pytest.approx(value, rel=0.02, abs=0.01 * min(values))
        assert x == pytest.approx((step - 1) / 3 * 100, abs=0.1)


@given(st.lists(st.floats(-1e150, 1e150), min_size=1, max_size=6), st.booleans(), st.booleans())
@example([5e-324], True, False)
@example([5e-324, 1.0], False, True)
@settings(max_examples=200, deadline=None)
def test_any_numbers_have_an_axis(values, from_zero, may_be_log):
    """Planted bugs caught: a division by zero for values all alike; an axis without a number, or with numbers off it."""
    scale = scale_of(values, from_zero=from_zero, may_be_log=may_be_log)
    assert all(-0.01 <= scale.percent(value) <= 100.01 for value in values)
    ticks = scale.ticks(4)
    assert 1 <= len(ticks) <= 12
    assert all(-0.01 <= scale.percent(tick) <= 100.01 for tick in ticks)
    assert len(tick_texts(ticks)) == len(ticks)


def test_steps_are_whole():
    """Planted bug caught: a tick at step 1.5."""
    assert Scale(1, 3).ticks(5, whole=True) == [1, 2, 3]


def test_values_at_line_ends_do_not_cover_each_other():
    """Planted bug caught: labels at the places of their lines, on top of each other where runs end alike."""
    series = [Series(f"run {n}", [(1, 2.0), (2, 1.0 + n / 1e4)], n) for n in range(3)]
    svg = line_chart("Loss", series, name="loss")
    places = [float(y) for y in re.findall(r'<text x="[\d.]+%" y="([\d.]+)" dx="7"', svg)]
    assert len(places) == 3
    assert all(after - before >= 14 for before, after in itertools.pairwise(places))


def test_values_at_line_ends_stay_above_the_axis():
    """Planted bug caught: three lines that end at the bottom, the last value of which lies on the numbers of the axis."""
    flat = [Series(name, [(1, 5.0), (2, 5.0)], n) for n, name in enumerate("abc")]
    svg = line_chart("Accuracy", [*flat, Series("d", [(1, 9.0), (2, 9.0)], 3)], name="accuracy")
    places = [float(place) for place in re.findall(r'y="([\d.]+)" dx="7"', svg)]
    assert len(places) == 4 and max(places) <= 220
    assert min(b - a for a, b in itertools.pairwise(places)) >= 14


def test_numbers_of_an_axis_are_of_one_form():
    """Planted bug caught: 3.00e-4 beside 0.001."""
    assert tick_texts([3e-4, 1e-3, 3e-2]) == ["3e-4", "1e-3", "3e-2"]
    assert tick_texts([1e-3, 3e-3, 1e-1]) == ["0.001", "0.003", "0.1"]


def test_values_of_a_horizontal_axis_are_written_and_lie_logarithmically():
    """Planted bugs caught: ranks at 10, 20, 30; 4 and 8 on each other; so many rates that none can be read."""
    svg = line_chart("Accuracy", [Series("a", [(4, 1.0), (64, 2.0)])], name="a", x_name="rank", x_values=[4, 16, 64])
    ticks = re.findall(r'<text x="([\d.]+)%" y="100%" dy="1.5em" class="x">([^<]*)<', svg)
    assert [text for _, text in ticks] == ["4", "16", "64"]
    left, middle, right = (float(place) for place, _ in ticks)
    assert middle - left == pytest.approx(right - middle, abs=0.02) and right - left > 80
    svg = line_chart("Accuracy", [Series("a", [(1, 1.0)])], name="a", x_values=[float(2**n) for n in range(20)])
    assert len(re.findall(r'dy="1.5em" class="x"', svg)) <= 8


def test_the_description_says_the_numbers():
    """Planted bug caught: a chart that says nothing to whoever cannot see it."""
    svg = line_chart("Loss", [Series("training", [(1, 2.5), (4, 0.5), (7, 0.75)])], name="loss")
    assert '<title id="loss-title">Loss</title>' in svg
    assert "training: 2.5 at step 1, 0.75 at step 7, lowest 0.5, highest 2.5" in svg
    assert 'role="img" aria-labelledby="loss-title loss-desc"' in svg


def fit_of(svg: str) -> list[float] | None:
    """Ends of the fitted line in percent of the plot, y from above."""
    found = re.search(r'class="fit" x1="(.*?)%" y1="(.*?)%" x2="(.*?)%" y2="(.*?)%"', svg)
    return found and [float(number) for number in found.groups()]


def test_the_fitted_line_has_its_slope_and_intercept():
    """Planted bugs caught: no intercept, a slope in percent of the plot instead of the axes, dots upside down."""
    dots = [Dot(0.0, 1.0, "a"), Dot(2.0, 2.0, "b"), Dot(4.0, 6.0, "c")]
    svg = scatter_chart("q_proj", dots, name="q", x_name="x", y_name="y", line=(1.25, 0.5))
    x_scale, y_scale = scale_of([0.0, 2.0, 4.0]), scale_of([1.0, 2.0, 6.0])
    ends = fit_of(svg)
    assert all(-0.01 <= end <= 100.01 for end in ends)
    for x, y in (ends[:2], ends[2:]):
        x = x_scale.low + x / 100 * (x_scale.high - x_scale.low)
        y = y_scale.high - y / 100 * (y_scale.high - y_scale.low)
        assert y == pytest.approx(0.5 + 1.25 * x, abs=1e-2)
    assert ends[2] > ends[0] + 50
    cy = re.findall(r'<circle class="dot s1 open" cx="[\d.]+%" cy="([\d.]+)%"', svg)
    assert [float(y) for y in cy] == pytest.approx([100 - y_scale.percent(y) for y in (1.0, 2.0, 6.0)], abs=0.01)


@pytest.mark.parametrize("line", [(1e199, 0.0), (0.0, 50.0), (-1e-9, -3.0), (1e-300, 1e150), (0.1, 1.0)])
def test_a_fitted_line_stays_in_its_plot(line):
    """Planted bug caught: a line across the page, from numbers that somebody put into a file."""
    dots = [Dot(0.0, 1.0, "a"), Dot(1.0, 1.1, "b")]
    ends = fit_of(scatter_chart("q", dots, name="q", x_name="x", y_name="y", line=line))
    assert ends is not None or line != (0.1, 1.0)
    assert ends is None or all(-0.11 <= end <= 100.11 for end in ends)


def test_names_in_charts_are_text():
    """Planted bug caught: a name of a module or a run put into SVG as it is."""
    nasty = "</svg><script>alert(1)</script>\x1b[2J"
    svg = line_chart(nasty, [Series(nasty, [(1, 1.0)]), Series("b", [(1, 2.0)])], name="a", unit=nasty)
    svg += scatter_chart(nasty, [Dot(1, 1, nasty)], name="b", x_name="x", y_name="y", note=nasty)
    assert "<script" not in svg and "\x1b" not in svg
    assert svg.count("</svg>") == 3
