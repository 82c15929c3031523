"""Finished cells, and methods: the cells of all seeds together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dorakit.comparison.cells import Cell
from dorakit.comparison.measure import Measure
from dorakit.comparison.statistics import Difference, paired_difference


@dataclass(frozen=True)
class CellResult:
    """One finished cell.

    Attributes:
        rows: For each measured row, by its place, its value and how much it counts (`execution.row_scores`).
        validation_loss: Of the weights that were tested; None where the recipe holds no rows out.
        seconds: Of training.
        peak_memory_bytes: Of the training process.
        forgotten: Rise of the loss on a general text over the cell's own base, in nats a token; None if not measured.
        trained_on: How many of the rows are training rows too; None if not known.
    """

    cell: Cell
    rows: dict[str, tuple[float, int]]
    unparsed: int
    validation_loss: float | None
    seconds: float
    peak_memory_bytes: int
    trained_parameters: int
    forgotten: float | None
    trained_on: int | None = None

    @property
    def score(self) -> float:
        """Share of rows answered rightly, or the loss per token."""
        return math.fsum(value for value, _ in self.rows.values()) / sum(count for _, count in self.rows.values())


@dataclass(frozen=True)
class Method:
    """A mode at a rank and a learning rate: its cells of all seeds."""

    mode: str
    rank: int | None
    learning_rate: float
    cells: list[CellResult]

    @property
    def name(self) -> str:
        """As a person would say it."""
        return self.mode if self.rank is None else f"{self.mode} r={self.rank}"

    @property
    def score(self) -> float:
        """Mean over seeds."""
        return float(np.mean([cell.score for cell in self.cells]))

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None of one."""
        return float(np.std([cell.score for cell in self.cells], ddof=1)) if len(self.cells) > 1 else None

    def mean(self, of: Callable[[CellResult], float | None]) -> float | None:
        """Mean of something over seeds; None where a cell lacks it."""
        values = [of(cell) for cell in self.cells]
        return None if None in values else float(np.mean([value for value in values if value is not None]))


def by_method(results: Sequence[CellResult]) -> list[Method]:
    """Cells of all seeds together, in the order in which their methods come."""
    grouped: dict[tuple[str, int | None, float], list[CellResult]] = {}
    for result in results:
        grouped.setdefault((result.cell.mode, result.cell.rank, result.cell.learning_rate), []).append(result)
    return [Method(*key, sorted(cells, key=lambda result: result.cell.seed)) for key, cells in grouped.items()]


def lead(a: Method, b: Method, measure: Measure = Measure(), confidence: float = 0.95) -> Difference:
    """How far a is ahead of b, which have the same seeds and rows: above zero where it is better; see statistics.py."""
    orders = [list(cell.rows) for cell in a.cells]

    def of(method: Method, part: int) -> list[npt.NDArray[np.float64]]:
        return [
            np.array([cell.rows[row][part] for row in order], dtype=np.float64)
            for cell, order in zip(method.cells, orders, strict=True)
        ]

    ours, theirs = of(a, 0), of(b, 0)
    return paired_difference(
        *((theirs, ours) if measure.is_loss else (ours, theirs)),
        same_rows=all(order == orders[0] for order in orders),
        confidence=confidence,
        weights=of(a, 1),
        largest=None if measure.is_loss else 1.0,
    )
