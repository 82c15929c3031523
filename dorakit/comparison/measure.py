"""The measure of a comparison: accuracy where answers are judged, else the loss of held-out rows."""

from __future__ import annotations

from dataclasses import dataclass

from dorakit.errors import UsageError
from dorakit.recipe.schema import Recipe


@dataclass(frozen=True)
class Measure:
    """A figure that every run has on the same rows.

    Attributes:
        name: "accuracy", "validation loss" or "loss".
        rows: "test rows" or "validation rows".
        is_loss: In nats a token, and lower is better; else a share of rows, and higher is better.
    """

    name: str = "accuracy"
    rows: str = "test rows"
    is_loss: bool = False

    @property
    def key(self) -> str:
        """Its name in JSON."""
        return "loss" if self.is_loss else "accuracy"

    @property
    def is_on_validation(self) -> bool:
        """Whether the rows are those that a learning rate is chosen by."""
        return self.rows == "validation rows"

    @property
    def by(self) -> str:
        """For a sentence, where the measure is not the usual one."""
        return f"by their {self.name} " if self.is_loss else ""

    @property
    def unit(self) -> str:
        """Label of a chart's axis."""
        return "nats a token" if self.is_loss else "%"

    @property
    def as_sign(self) -> float:
        """1 where a higher value is better, else -1."""
        return -1.0 if self.is_loss else 1.0

    def drawn(self, value: float) -> float:
        """In the unit of a chart."""
        return round(value, 4) if self.is_loss else round(value * 100, 1)

    def told(self, value: float) -> str:
        """45.0%, or 0.4321."""
        return f"{value:.4f}" if self.is_loss else f"{value:.1%}"

    def told_difference(self, value: float) -> str:
        """+3.0%, or +0.0321."""
        return f"{value:+.4f}" if self.is_loss else f"{value:+.1%}"

    def with_unit(self, value: float) -> str:
        """3.0%, or 0.0321 nats a token."""
        return f"{self.told(value)} nats a token" if self.is_loss else self.told(value)


def measure_of(recipe: Recipe) -> Measure:
    """The measure that a recipe's runs can be compared by.

    Raises:
        UsageError: It neither judges answers nor names or holds out rows to take a loss of.
    """
    rows = "validation rows" if recipe.evaluation.path is None else "test rows"
    validation = recipe.data.validation
    if recipe.evaluation.path is None and not (validation.path or validation.rows or validation.fraction):
        raise UsageError(
            f"{recipe.origin.path}: neither evaluation.path nor data.validation names rows, so there is nothing to compare by\n"
            "  hold rows out: --set data.validation.rows=20, or name a file: --set evaluation.path=test.jsonl"
        )
    if recipe.evaluation.metric != "none":
        return Measure("accuracy", rows)
    return Measure("loss" if recipe.evaluation.path else "validation loss", rows, is_loss=True)
