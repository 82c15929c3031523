"""Seeded orders: every choice and every shuffle of rows is a pure function of a few integers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# First integer after the seed, so that no two kinds of draw ever share a stream.
EPOCH, WEIGHT, VALIDATION, MADE = 1, 2, 3, 4


def shuffled(count: int, *key: int) -> npt.NDArray[np.int64]:
    """The numbers 0 .. count-1 in an order that depends on `key` alone.

    numpy promises raw bits of a bit generator for ever, and `Generator.permutation` not; so the bits are sorted here.
    """
    keys = np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)
