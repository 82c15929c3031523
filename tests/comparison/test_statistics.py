"""Intervals of paired differences: they hold what they promise."""

import numpy as np
import pytest

from dorakit.comparison.statistics import paired_difference


def answers(rng, n, seeds, *, p, hard):
    """For each seed which rows are answered rightly: each row has a difficulty of its own, shared by all seeds."""
    return [rng.random(n) < np.clip(p + hard, 0, 1) for _ in range(seeds)]


def test_the_mean_is_the_difference_of_accuracies():
    """Planted bug caught: b - a."""
    a, b = [np.array([1, 1, 0, 1] * 10, bool)], [np.array([1, 0, 0, 0] * 10, bool)]
    found = paired_difference(a, b, same_rows=True)
    assert found.mean == 0.5 and 0 < found.low <= 0.5 <= found.high <= 1


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("value", [False, True])
def test_rows_that_are_all_alike_leave_room(n, value):
    """All wrong or all right tells little, and the less the fewer there are. Planted bug caught: an interval of no width."""
    alike = [np.full(n, value)]
    found = paired_difference(alike, alike, same_rows=True)
    assert found.mean == 0 and found.low <= -1 / n and found.high >= 1 / n
    if n < 3:
        assert (found.low, found.high) == (-1, 1)
    several = paired_difference(alike * 3, alike * 3, same_rows=True)
    assert several.low < 0 < several.high


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_few_rows_tell_nothing_apart(n):
    """Even if all are on one side. Planted bugs caught: one row, two or five told as a proof; a loss likewise."""
    all_right, all_wrong = [np.ones(n, bool)], [np.zeros(n, bool)]
    found = paired_difference(all_right, all_wrong, same_rows=True)
    assert found.mean == 1 and not found.is_told_apart
    losses = [np.linspace(9, 11, n)], [np.linspace(1, 3, n)]
    loss = paired_difference(*losses, same_rows=True, weights=[np.full(n, 4)], largest=None)
    assert loss.mean == pytest.approx(2) and not loss.is_told_apart
    assert loss.is_bounded == (n == 6) and found.is_bounded, "a loss has no largest difference, an accuracy has"
    many = paired_difference([np.ones(40, bool)], [np.zeros(40, bool)], same_rows=True)
    assert many.is_told_apart


def test_rows_count_by_their_weight():
    """A loss is of tokens. Planted bugs caught: a mean of the rows' means; the weights of other rows."""
    rng = np.random.default_rng(5)
    tokens = rng.integers(1, 50, 300)
    a, b = tokens * rng.normal(2.0, 0.3, 300), tokens * rng.normal(1.5, 0.3, 300)
    found = paired_difference([a], [b], same_rows=True, weights=[tokens], largest=None)
    assert found.mean == pytest.approx(a.sum() / tokens.sum() - b.sum() / tokens.sum())
    # The linear approximation of the variance of a ratio.
    error = np.sqrt(np.sum((a - b - found.mean * tokens) ** 2)) / tokens.sum()
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """Of two methods that are equally good, nineteen of twenty. Planted bug caught: rows drawn apart, not in pairs."""
    rng = np.random.default_rng(1)
    missed, widths = 0, []
    for _ in range(200):
        hard = rng.normal(0, 0.35, 150)
        a, b = answers(rng, 150, 1, p=0.5, hard=hard), answers(rng, 150, 1, p=0.5, hard=hard)
        found = paired_difference(a, b, same_rows=True)
        missed += found.is_told_apart
        widths.append(found.high - found.low)
    assert 2 <= missed <= 22  # 10 expected
    unpaired = 2 * 1.96 * np.sqrt(2 * 0.25 / 150)
    assert np.mean(widths) < 0.95 * unpaired


def test_seeds_that_disagree_widen_it():
    """Planted bug caught: seeds averaged first, as if another seed could change nothing."""
    rows = np.arange(400) % 2 == 0
    steady = paired_difference([rows] * 3, [~rows | rows] * 3, same_rows=True)
    a = [np.ones(400, bool), np.ones(400, bool), np.zeros(400, bool)]
    b = [np.zeros(400, bool), np.zeros(400, bool), np.ones(400, bool)]
    torn = paired_difference(a, b, same_rows=True)
    assert steady.is_told_apart and not torn.is_told_apart
    assert torn.low == -1 and torn.high == 1


def test_rows_that_all_seeds_share_are_drawn_together():
    """Planted bug caught: three seeds over the same rows counted as three times the rows."""
    rng = np.random.default_rng(2)
    a, b = rng.random(200) < 0.6, rng.random(200) < 0.5
    shared = paired_difference([a] * 3, [b] * 3, same_rows=True)
    once = paired_difference([a], [b], same_rows=True)
    apart = paired_difference([a] * 3, [b] * 3, same_rows=False)
    assert shared.high - shared.low == pytest.approx(once.high - once.low, rel=0.1)
    assert apart.high - apart.low < 0.9 * (once.high - once.low)


@pytest.mark.parametrize("b", [[], [np.ones(3, bool)], [np.ones(2, bool), np.ones(2, bool)]])
def test_other_rows_are_no_pairs(b):
    """Planted bug caught: numpy broadcasts, and something is compared with something."""
    with pytest.raises(ValueError, match="same rows"):
        paired_difference([np.ones(2, bool)], b, same_rows=True)
