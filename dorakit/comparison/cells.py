"""The cells of a comparison: a recipe's mode, rank, learning rate and seed varied, and nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dorakit.errors import RunError, UsageError
from dorakit.methods import UPDATES
from dorakit.recipe.resolved import settings
from dorakit.recipe.schema import MODES, Recipe
from dorakit.run import Run
from dorakit.terminal import typed

# A run on disk may differ in these: its place, the commit that a branch pointed to, and answers that are only shown.
_MAY_DIFFER = ("output_dir", "model.revision", "training.sample_rows")


@dataclass(frozen=True)
class Cell:
    """One training of a comparison. `rank` is None in mode full."""

    mode: str
    rank: int | None
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Name of its run directory."""
        rank = "" if self.rank is None else f"-r{self.rank}"
        rate = f"{self.learning_rate:g}"
        if float(rate) != self.learning_rate:  # of two that are equal to six digits, each has its own name
            rate = repr(self.learning_rate)
        return f"{self.mode}{rank}-lr{rate}-seed{self.seed}"

    def overrides(self, scale: float | None, output: Path) -> list[str]:
        """What makes the recipe this cell's; `scale` is alpha / rank, the same in all cells, None for an update without alpha."""
        lines = [
            f"adapter.mode={self.mode}",
            f"optimizer.learning_rate={self.learning_rate!r}",
            f"training.seed={self.seed}",
            f"output_dir={output / self.name}",
        ]
        if self.rank is not None:
            lines.append(f"adapter.rank={self.rank}")
            if scale is not None:
                lines.append(f"adapter.alpha={scale * self.rank!r}")
        return lines


def grid(
    recipe: Recipe, *, modes: Sequence[str], ranks: Sequence[int], learning_rates: Sequence[float], seeds: int
) -> list[Cell]:
    """All cells, those of one seed together; an axis that is not asked for keeps the recipe's value.

    Raises:
        UsageError: An unknown mode, a rank or a rate that is none, a value named twice.
    """
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise UsageError(f"--modes: {unknown[0]!r} is no mode; there are {', '.join(MODES)}")
    for flag, values in (("--modes", modes), ("--ranks", ranks), ("--learning-rates", learning_rates)):
        if twice := next((value for value in values if list(values).count(value) > 1), None):
            raise UsageError(f"{flag}: {twice} is named twice")
    if any(rank < 1 for rank in ranks) or any(rate <= 0 for rate in learning_rates):
        raise UsageError("--ranks and --learning-rates: expected numbers above 0")
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: at least one")
    cells = itertools.product(
        range(recipe.training.seed, recipe.training.seed + seeds),
        modes or [recipe.adapter.mode],
        ranks or [recipe.adapter.rank],
        learning_rates or [recipe.optimizer.learning_rate],
    )
    # Full fine-tuning has no rank, so its cells of several ranks are one.
    return list(
        dict.fromkeys(Cell(mode, None if mode == "full" else rank, rate, seed) for seed, mode, rank, rate in cells)
    )


def cell_recipe(path: Path, cell: Cell, output: Path, overrides: Sequence[str], *, twin: bool) -> Recipe:
    """The recipe of one cell."""
    plain = Recipe.from_yaml(str(path), list(overrides), twin=twin)
    has_alpha = "adapter.alpha" not in UPDATES[plain.adapter.update].ignores
    scale = plain.adapter.alpha / plain.adapter.rank if has_alpha else None
    return Recipe.from_yaml(str(path), [*overrides, *cell.overrides(scale, output)], twin=twin)


def check_same(run: Run, recipe: Recipe) -> None:
    """Refuse a run, left there by an earlier comparison, that is not this cell's.

    Raises:
        RunError: It was trained with other settings; the first three are named.
    """
    then, now = settings(run.recipe), settings(recipe)
    then["--twin"], now["--twin"] = str(run.fact("is_twin")), str(recipe.origin.is_twin)
    then["--from"], now["--from"] = "an adapter" if run.read("run.json").get("from") else "none", "none"
    different = [
        f"{key}: {then.get(key, 'absent')} there, {now.get(key, 'absent')} asked for"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and key not in _MAY_DIFFER
    ]
    if different:
        more = f"\n  and {len(different) - 3} more" if len(different) > 3 else ""
        raise RunError(
            f"{run.path} is of another comparison:\n  "
            + "\n  ".join(different[:3])
            + f"{more}\n  give another --output, or remove it: rm -r {typed(run.path)}"
        )


def check_alike(runs: Sequence[tuple[Cell, Run]]) -> None:
    """Refuse finished cells that saw other rows in the same seed, began with another base or computed in another dtype.

    Raises:
        RunError: Two cells differ in more than what they are compared by.
    """
    seen: dict[tuple[str, int], tuple[Cell, object]] = {}
    for cell, run in runs:
        for what, seed, value in (
            ("base", 0, run.fact("base.files")),
            ("rows", cell.seed, run.fact("data.fingerprint")),
            ("dtype", 0, run.read("run.json").get("computing", {}).get("dtype")),
        ):
            first, known = seen.setdefault((what, seed), (cell, value))
            if known != value:
                raise RunError(
                    f"{cell.name} and {first.name} cannot be compared: their {what} differ\n"
                    f"  something changed in between; remove one of them and run the comparison again: rm -r {typed(run.path)}"
                )


def environment_notes(runs: Mapping[Cell, Run]) -> list[str]:
    """A line where cells were not all trained on the same device, processor, threads and library versions."""
    seen: dict[str, dict[str, list[Cell]]] = {}
    for cell, run in runs.items():
        for what, value in run.read("run.json").get("computing", {}).items():
            seen.setdefault(what, {}).setdefault(str(value), []).append(cell)
    differing = [
        f"{what} {' or '.join(f'{value} ({_told(cells)})' for value, cells in values.items())}"
        for what, values in seen.items()
        if len(values) > 1
    ]
    if not differing:
        return []
    return [f"Runs were not all trained alike, so their seconds and memory cannot be compared: {'; '.join(differing)}."]


def _told(cells: Sequence[Cell]) -> str:
    return cells[0].name if len(cells) == 1 else f"{len(cells)} runs, the first is {cells[0].name}"
