"""Whether two methods can be told apart on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_DRAWS = 4000
_AT_ONCE = 200  # samples held at a time
_SEED = 20240214
# Where fewer rows than this differ, resampling them alone gives intervals that are too narrow.
_ENOUGH = 20

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Mean of a - b, and the interval that holds it with the asked confidence.

    `is_bounded` is False where there are too few rows for an interval of values that have no largest one.
    """

    mean: float
    low: float
    high: float
    is_bounded: bool = True

    @property
    def is_told_apart(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


def paired_difference(
    a: Sequence[npt.NDArray[np.generic]],
    b: Sequence[npt.NDArray[np.generic]],
    *,
    same_rows: bool,
    confidence: float = 0.95,
    weights: Sequence[npt.NDArray[np.generic]] | None = None,
    largest: float | None = 1.0,
) -> Difference:
    """Bootstrap over rows and seeds of the difference of two means on the same rows.

    Rows are drawn in pairs, a row's value of `a` with its value of `b`, which takes out how hard it is. With several
    seeds these are drawn too, in pairs, so that the interval holds what another seed would change; with three of them it
    does so roughly.

    Rows that are all alike, or very few, would give an interval of no width: resampling them never shows another row.
    Where fewer than 20 rows differ, two rows are therefore added to those that are drawn from, one that speaks for `a`
    and one for `b`, as far as a row can (in the manner of Agresti and Min 2005, doi:10.1002/sim.1781, who add two pairs
    to a table of matched answers). So few rows that even all of them on one side may be chance (a sign test: five at
    95 %) tell nothing apart.

    Args:
        a: For each seed, the value of each row: whether it was answered rightly, or its summed loss.
        b: As `a`, the same rows in the same order.
        same_rows: All seeds have the same rows in the same order, so that they are drawn together.
        confidence: Of the interval.
        weights: As `a`, how much each row counts in the mean (its number of tokens); None: all alike.
        largest: How far one row can speak for one side, by its weight; None: as far as the rows at hand do.

    Raises:
        ValueError: The two do not have the same rows.
    """
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b, strict=True)) or not a:
        raise ValueError("a paired difference needs the same rows on both sides")
    by_seed = [x.astype(np.float64) - y.astype(np.float64) for x, y in zip(a, b, strict=True)]
    counted = [
        np.ones(len(d)) if weights is None else weights[seed].astype(np.float64) for seed, d in enumerate(by_seed)
    ]
    mean = float(np.mean([d.sum() / w.sum() for d, w in zip(by_seed, counted, strict=True)]))
    if same_rows:
        parts = [(np.stack(by_seed), np.stack(counted))]
    else:
        parts = [(d[None], w[None]) for d, w in zip(by_seed, counted, strict=True)]
    num_differing = sum(int(np.count_nonzero(values.any(axis=0))) for values, _ in parts)
    if num_differing < _ENOUGH:
        seen = (float(np.abs(d / w).max()) for d, w in zip(by_seed, counted, strict=True))
        far = max(seen) if largest is None else largest
        parts = [_with_one_for_each(values, weights, far) for values, weights in parts]
    num_rows = len(by_seed[0])
    random = np.random.default_rng(_SEED)
    means = np.concatenate([_drawn_means(*part, num_rows, random) for part in parts], axis=1)
    chosen = random.integers(len(by_seed), size=(_DRAWS, len(by_seed)))
    drawn = np.take_along_axis(means, chosen, axis=1).mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    if is_too_few := 2.0 ** (1 - num_differing) > 1 - confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    return Difference(mean, float(low), float(high), is_bounded=largest is not None or not is_too_few)


def _with_one_for_each(values: Values, weights: Values, far: float) -> tuple[Values, Values]:
    """(seeds, rows) with a row more for either side, of the mean weight."""
    mean = weights.mean(axis=1, keepdims=True)
    return np.hstack([values, mean * far, mean * -far]), np.hstack([weights, mean, mean])


def _drawn_means(values: Values, weights: Values, num_drawn: int, random: np.random.Generator) -> Values:
    """Weighted means over bootstrap samples of the columns of (seeds, rows): (draws, seeds)."""
    n = values.shape[1]
    samples = (
        random.multinomial(num_drawn, np.full(n, 1 / n), size=min(_AT_ONCE, _DRAWS - done))
        for done in range(0, _DRAWS, _AT_ONCE)
    )
    return np.concatenate([(drawn @ values.T) / (drawn @ weights.T) for drawn in samples])
