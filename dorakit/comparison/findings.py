"""What a comparison found: methods at their best and at one learning rate, and which of them can be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dorakit.comparison.measure import Measure
from dorakit.comparison.methods import CellResult, Method, by_method, lead
from dorakit.comparison.sentence import closing_sentence
from dorakit.comparison.statistics import Difference
from dorakit.errors import RunError


@dataclass(frozen=True)
class Findings:
    """Of a whole comparison.

    Attributes:
        methods: All, in the order asked for.
        best: Of each mode and rank the learning rate that did best.
        fixed: Of each mode and rank the one at `fixed_rate`.
        chosen_by: What best means: "validation loss", or the measure on the test rows.
        against_best: For each method in `best` but the winner, by how much the winner is ahead.
        sentence: What to use here, or that they cannot be told apart.
        notes: What has to be known of how the cells were run.
        measure: What they are compared by.
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
    measure: Measure = field(default_factory=Measure)

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

        def rows(methods: Sequence[Method]) -> list[dict[str, Any]]:
            return [_method_row(method, self.measure) for method in methods]

        return {
            "measure": self.measure.name,
            "methods": rows(self.methods),
            "best_of_sweep": rows(self.best),
            "fixed_rate": {"learning_rate": self.fixed_rate, "methods": rows(self.fixed)},
            "chosen_by": self.chosen_by,
            "winner": self.winner.name,
            "winner_minus_other": {name: asdict(difference) for name, difference in self.against_best.items()},
            "sentence": self.sentence,
            "notes": self.notes,
        }


def find(results: Sequence[CellResult], *, fixed_rate: float, measure: Measure = Measure()) -> Findings:
    """Draw the conclusions from finished cells.

    Args:
        results: Every cell of the grid.
        fixed_rate: The learning rate of the column in which nothing is swept; one of the grid's.
        measure: What the rows of the cells hold.

    Raises:
        RunError: Two cells of one seed, or on test rows any two, were measured on other rows.
    """
    _check_same_rows(results, measure)
    methods = by_method(results)
    # The lowest loss along the way says less of the finished model than its own loss on the same rows.
    has_own = measure.is_loss and measure.is_on_validation
    by_loss = not has_own and None not in [method.mean(lambda cell: cell.validation_loss) for method in methods]

    def merit(method: Method) -> float:
        loss = method.mean(lambda cell: cell.validation_loss)
        return -loss if by_loss and loss is not None else measure.as_sign * method.score

    kinds = list(dict.fromkeys((method.mode, method.rank) for method in methods))
    best = [max((m for m in methods if (m.mode, m.rank) == kind), key=merit) for kind in kinds]
    fixed = [m for m in methods if m.learning_rate == fixed_rate]
    winner = max(best, key=lambda method: measure.as_sign * method.score)
    others = [method for method in best if method is not winner]
    # Of several intervals one misses by chance more often than of one.
    confidence = 1 - 0.05 / max(1, len(others))
    against = {method.name: lead(winner, method, measure, confidence) for method in others}
    swept = len({method.learning_rate for method in methods}) > 1
    chosen_by = "validation loss" if by_loss or has_own else f"{measure.name} on the test rows"
    optimistic = swept and (measure.is_on_validation or not by_loss)
    sentence = closing_sentence(winner, others, against, measure, optimistic=optimistic)
    return Findings(methods, best, fixed, fixed_rate, chosen_by, winner, against, sentence, measure=measure)


def _check_same_rows(results: Sequence[CellResult], measure: Measure) -> None:
    """Of one seed; test rows are those of all seeds."""
    first: dict[int, CellResult] = {}
    for result in results:
        one = first.setdefault(result.cell.seed if measure.is_on_validation else 0, result)
        if one.rows.keys() != result.rows.keys():
            raise RunError(
                f"{one.cell.name} and {result.cell.name} were measured on other rows\n  remove their eval/ and compare again"
            )


def _method_row(method: Method, measure: Measure) -> dict[str, Any]:
    return {
        "mode": method.mode,
        "rank": method.rank,
        "learning_rate": method.learning_rate,
        measure.key: method.score,
        f"{measure.key}_by_seed": {str(cell.cell.seed): cell.score for cell in method.cells},
        "spread_over_seeds": method.spread,
        "unparsed": sum(cell.unparsed for cell in method.cells),
        "rows": len(method.cells[0].rows),
        "rows_trained_on": max((cell.trained_on or 0 for cell in method.cells), default=0),
        "validation_loss": method.mean(lambda cell: cell.validation_loss),
        "seconds": method.mean(lambda cell: cell.seconds),
        "peak_memory_bytes": method.mean(lambda cell: float(cell.peak_memory_bytes)),
        "trained_parameters": method.cells[0].trained_parameters,
        "forgotten_nats": method.mean(lambda cell: cell.forgotten),
    }
