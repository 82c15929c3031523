"""Intervals of paired differences: they hold what they promise."""

import numpy as np
import pytest

from dorakit.comparison.statistics import paired_difference


def answers(rng, n, seeds, *, p, hard):
    """For each seed which rows are answered rightly: each row has a difficulty of its own, shared by all seeds."""
    return [rng.random(n) < np.clip(p + hard, 0, 1) for _ in range(seeds)]


def test_the_mean_is_the_difference_of_accuracies():
    """Planted bug caught: b - a."""
    a, b = [np.array([1, 1, 0, 1], bool)], [np.array([1, 0, 0, 0], bool)]
    found = paired_difference(a, b, same_rows=True)
    assert found.mean == 0.5 and 0 <= found.low <= 0.5 <= found.high <= 1


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
