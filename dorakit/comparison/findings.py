"""What a comparison found: methods at their best and at one learning rate, and which of them can be told apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dorakit.comparison.cells import Cell
from dorakit.comparison.statistics import Difference, paired_difference
from dorakit.errors import RunError


@dataclass(frozen=True)
class CellResult:
    """One finished cell.

    Attributes:
        right: Of each test row, by its place, whether it was answered rightly.
        validation_loss: The lowest; None where the recipe holds no rows out.
        seconds: Of training.
        peak_memory_bytes: Of the training process.
        forgotten: Rise of the loss on a general text over the cell's own base, in nats a token; None if not measured.
    """

    cell: Cell
    right: dict[str, bool]
    unparsed: int
    validation_loss: float | None
    seconds: float
    peak_memory_bytes: int
    trained_parameters: int
    forgotten: float | None

    @property
    def accuracy(self) -> float:
        """Share of rows answered rightly."""
        return sum(self.right.values()) / len(self.right)


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
    def accuracy(self) -> float:
        """Mean over seeds."""
        return float(np.mean([cell.accuracy for cell in self.cells]))

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None of one."""
        return float(np.std([cell.accuracy for cell in self.cells], ddof=1)) if len(self.cells) > 1 else None

    def mean(self, of: Callable[[CellResult], float | None]) -> float | None:
        """Mean of something over seeds; None where a cell lacks it."""
        values = [of(cell) for cell in self.cells]
        return None if None in values else float(np.mean([value for value in values if value is not None]))


@dataclass(frozen=True)
class Findings:
    """Of a whole comparison.

    Attributes:
        methods: All, in the order asked for.
        best: Of each mode and rank the learning rate that did best.
        fixed: Of each mode and rank the one at `fixed_rate`.
        chosen_by: What best means: "validation loss" or "accuracy on the test rows".
        against_best: Of each method in `best` but the winner, the winner's accuracy minus its own.
        sentence: What to use here, or that they cannot be told apart.
        notes: What has to be known of how the cells were run.
    """

    methods: list[Method]
    best: list[Method]
    fixed: list[Method]
    fixed_rate: float
    chosen_by: str
    winner: Method
    against_best: dict[str, Difference]
    sentence: str
    notes: list[str] = field(default_factory=list)

    @property
    def is_swept(self) -> bool:
        """Whether there were several learning rates to choose from."""
        return len(self.methods) > len(self.best)

    @property
    def forgets(self) -> bool:
        """Whether it was measured what was forgotten."""
        return any(cell.forgotten is not None for method in self.best for cell in method.cells)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "methods": [_method_row(method) for method in self.methods],
            "best_of_sweep": [_method_row(method) for method in self.best],
            "fixed_rate": {"learning_rate": self.fixed_rate, "methods": [_method_row(method) for method in self.fixed]},
            "chosen_by": self.chosen_by,
            "winner": self.winner.name,
            "winner_minus_other": {name: asdict(difference) for name, difference in self.against_best.items()},
            "sentence": self.sentence,
            "notes": self.notes,
        }


def find(results: Sequence[CellResult], *, fixed_rate: float, tests_on_validation: bool = False) -> Findings:
    """Draw the conclusions from finished cells.

    Args:
        results: Every cell of the grid.
        fixed_rate: The learning rate of the column in which nothing is swept; one of the grid's.
        tests_on_validation: The test rows are those that the validation loss is of.

    Raises:
        RunError: Two cells of one seed were measured on other rows.
    """
    _check_same_rows(results)
    methods = by_method(results)
    losses = [method.mean(lambda cell: cell.validation_loss) for method in methods]
    by_loss = None not in losses

    def merit(method: Method) -> float:
        loss = method.mean(lambda cell: cell.validation_loss)
        return -loss if by_loss and loss is not None else method.accuracy

    kinds = list(dict.fromkeys((method.mode, method.rank) for method in methods))
    best = [max((m for m in methods if (m.mode, m.rank) == kind), key=merit) for kind in kinds]
    fixed = [m for m in methods if m.learning_rate == fixed_rate]
    winner = max(best, key=lambda method: method.accuracy)
    others = [method for method in best if method is not winner]
    # Of several intervals one misses by chance more often than of one.
    confidence = 1 - 0.05 / max(1, len(others))
    against = {method.name: accuracy_difference(winner, method, confidence) for method in others}
    swept = len({method.learning_rate for method in methods}) > 1
    chosen_by = "validation loss" if by_loss else "accuracy on the test rows"
    sentence = _sentence(winner, others, against, optimistic=swept and (tests_on_validation or not by_loss))
    return Findings(methods, best, fixed, fixed_rate, chosen_by, winner, against, sentence)


def _check_same_rows(results: Sequence[CellResult]) -> None:
    first: dict[int, CellResult] = {}
    for result in results:
        one = first.setdefault(result.cell.seed, result)
        if one.right.keys() != result.right.keys():
            raise RunError(
                f"{one.cell.name} and {result.cell.name} were measured on other rows\n  remove their eval/ and compare again"
            )


def by_method(results: Sequence[CellResult]) -> list[Method]:
    """Cells of all seeds together, in the order in which their methods come."""
    grouped: dict[tuple[str, int | None, float], list[CellResult]] = {}
    for result in results:
        grouped.setdefault((result.cell.mode, result.cell.rank, result.cell.learning_rate), []).append(result)
    return [Method(*key, sorted(cells, key=lambda result: result.cell.seed)) for key, cells in grouped.items()]


def accuracy_difference(a: Method, b: Method, confidence: float = 0.95) -> Difference:
    """Accuracy of a minus b, which have the same seeds and rows; see statistics.py."""
    rows = [list(cell.right) for cell in a.cells]
    return paired_difference(
        *(
            [np.array([cell.right[row] for row in order]) for cell, order in zip(method.cells, rows, strict=True)]
            for method in (a, b)
        ),
        same_rows=all(order == rows[0] for order in rows),
        confidence=confidence,
    )


def _sentence(winner: Method, others: list[Method], against: dict[str, Difference], *, optimistic: bool) -> str:
    seeds = len(winner.cells)
    ground = f"{len(winner.cells[0].right)} test rows and {seeds} seed{'s' * (seeds > 1)}"
    if not others:
        return f"{winner.name} reaches {winner.accuracy:.1%} on {ground}; there is nothing to compare it with."
    beside = [winner, *(method for method in others if not against[method.name].is_told_apart)]
    worse = [method for method in others if against[method.name].is_told_apart]
    caution = " Learning rates were chosen on the test rows, which flatters all." if optimistic else ""
    if len(beside) == 1:
        margin = min(against.values(), key=lambda difference: difference.low)
        return (
            f"Use {winner.name} here: on {ground} it is better than all others, by at least {margin.low:.1%} "
            f"(each interval corrected for {len(others)} comparison{'s' * (len(others) > 1)})."
            f"{_price(winner, others)}{caution}"
        )
    cheapest = min(beside, key=_seconds)
    names = ", ".join(method.name for method in beside)
    than = f" Worse than {winner.name}: {', '.join(method.name for method in worse)}." if worse else ""
    widest = max((against[method.name] for method in beside[1:]), key=lambda d: d.high)
    return (
        f"{names} cannot be told apart on {ground} "
        f"(a difference of up to {max(widest.high, -widest.low):.1%} is possible). "
        f"Of these, {cheapest.name} trains fastest ({_seconds(cheapest):.0f} s a run).{than}"
        f"{_price(cheapest, [method for method in (winner, *others) if method is not cheapest])}{caution}"
    )


def _price(chosen: Method, others: Sequence[Method]) -> str:
    """What the one that is recommended forgets, where that was measured and another forgets less."""
    known = {method.name: method.mean(lambda cell: cell.forgotten) for method in (chosen, *others)}
    forgotten = {name: nats for name, nats in known.items() if nats is not None}
    if chosen.name not in forgotten:
        return ""
    least = min(forgotten, key=lambda name: forgotten[name])
    if least == chosen.name:
        return f" It also forgets the least: {forgotten[least]:+.3f} nats a token of the general text."
    return (
        f" But it forgets {forgotten[chosen.name]:+.3f} nats a token of the general text, "
        f"{least} {forgotten[least]:+.3f}."
    )


def _seconds(method: Method) -> float:
    return method.mean(lambda cell: cell.seconds) or 0.0


def _method_row(method: Method) -> dict[str, Any]:
    return {
        "mode": method.mode,
        "rank": method.rank,
        "learning_rate": method.learning_rate,
        "accuracy": method.accuracy,
        "accuracy_by_seed": {str(cell.cell.seed): cell.accuracy for cell in method.cells},
        "spread_over_seeds": method.spread,
        "unparsed": sum(cell.unparsed for cell in method.cells),
        "rows": len(method.cells[0].right),
        "validation_loss": method.mean(lambda cell: cell.validation_loss),
        "seconds": method.mean(lambda cell: cell.seconds),
        "peak_memory_bytes": method.mean(lambda cell: float(cell.peak_memory_bytes)),
        "trained_parameters": method.cells[0].trained_parameters,
        "forgotten_nats": method.mean(lambda cell: cell.forgotten),
    }
