"""Whether two methods can be told apart on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_DRAWS = 4000
_AT_ONCE = 200  # samples held at a time
_SEED = 20240214


@dataclass(frozen=True)
class Difference:
    """Mean of a - b, and the interval that holds it with the asked confidence."""

    mean: float
    low: float
    high: float

    @property
    def is_told_apart(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


def paired_difference(
    a: Sequence[npt.NDArray[np.bool_]],
    b: Sequence[npt.NDArray[np.bool_]],
    *,
    same_rows: bool,
    confidence: float = 0.95,
) -> Difference:
    """Bootstrap over rows and seeds of the difference of two accuracies on the same rows.

    Rows are drawn in pairs, a row's answer of `a` with its answer of `b`, which takes out how hard it is. With several
    seeds these are drawn too, in pairs, so that the interval holds what another seed would change; with three of them it
    does so roughly.

    Args:
        a: For each seed, whether each row was answered rightly.
        b: As `a`, the same rows in the same order.
        same_rows: All seeds have the same rows in the same order, so that they are drawn together.
        confidence: Of the interval.

    Raises:
        ValueError: The two do not have the same rows.
    """
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b, strict=True)) or not a:
        raise ValueError("a paired difference needs the same rows on both sides")
    by_seed = [x.astype(np.float64) - y.astype(np.float64) for x, y in zip(a, b, strict=True)]
    random = np.random.default_rng(_SEED)
    if same_rows:
        means = _drawn_means(np.stack(by_seed), random)
    else:
        means = np.concatenate([_drawn_means(d[None], random) for d in by_seed], axis=1)
    chosen = random.integers(len(by_seed), size=(_DRAWS, len(by_seed)))
    drawn = np.take_along_axis(means, chosen, axis=1).mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Difference(float(np.mean([d.mean() for d in by_seed])), float(low), float(high))


def _drawn_means(values: npt.NDArray[np.float64], random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Means over bootstrap samples of the columns of (seeds, rows): (draws, seeds)."""
    n = values.shape[1]
    weights = (
        random.multinomial(n, np.full(n, 1 / n), size=min(_AT_ONCE, _DRAWS - done))
        for done in range(0, _DRAWS, _AT_ONCE)
    )
    return np.concatenate([w @ values.T / n for w in weights])
