"""`analyze`: whether length and direction change together, from the changes of every matrix of a run.

The DoRA paper (arXiv:2402.09353, sec. 3.2) reads a method off the correlation of delta-D and delta-M over matrices and
checkpoints: positive for LoRA, negative for full fine-tuning and DoRA. It prints no interval; one is given here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dorakit.errors import RunError
from dorakit.files import write_json
from dorakit.report.decomposition import MatrixChange, decompose, find_snapshots
from dorakit.run import Run

SCHEMA = 1
_RESAMPLES = 2000
_FEWEST_POINTS = 3  # two points always lie on a line
_FEWEST_MODULES = 5  # fewer give so few different resamples that their spread says nothing


@dataclass(frozen=True)
class Correlation:
    """The line of delta-M over delta-D, and how well the points follow it.

    Attributes:
        n: Number of points: matrices that moved, once for each step.
        modules: Number of matrices among them.
        mean_delta_m: Mean of delta-M; None without a point.
        mean_delta_d: Mean of delta-D.
        slope: Least squares; None where r is.
        intercept: Of the same line.
        r: Pearson's; None for fewer than 3 points, or where one of the two does not vary.
        r_low: Lower end of the 95 % bootstrap interval of r; None for fewer than 5 matrices.
        r_high: Its upper end.
    """

    n: int
    modules: int
    mean_delta_m: float | None = None
    mean_delta_d: float | None = None
    slope: float | None = None
    intercept: float | None = None
    r: float | None = None
    r_low: float | None = None
    r_high: float | None = None


def correlation(changes: Sequence[MatrixChange], *, seed: int = 0) -> Correlation:
    """Correlate delta-D with delta-M over the changes that are any.

    The bootstrap draws whole matrices, with all their steps: the steps of one matrix lie on one path, and as points of
    their own they would make the interval too narrow. It takes the percentiles of 2,000 resamples.

    Args:
        changes: Points; those that did not move are left out.
        seed: Of the resampling.
    """
    points = [change for change in changes if change.moved]
    names = sorted({point.module for point in points})
    n, modules = len(points), len(names)
    if not points:
        return Correlation(0, 0)
    x = np.asarray([point.delta_d for point in points])
    y = np.asarray([point.delta_m for point in points])
    means = {"mean_delta_m": float(y.mean()), "mean_delta_d": float(x.mean())}
    if n < _FEWEST_POINTS or _is_flat(x) or _is_flat(y):
        return Correlation(n, modules, **means)
    # In units of their spread, so that sums of squares keep their digits.
    u, v = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    r = float((u * v).mean())
    slope = r * float(y.std() / x.std())
    low, high = None, None
    if modules >= _FEWEST_MODULES:
        place = {name: index for index, name in enumerate(names)}
        low, high = _interval(u, v, np.asarray([place[point.module] for point in points]), seed)
    intercept = means["mean_delta_m"] - slope * means["mean_delta_d"]
    return Correlation(n, modules, **means, slope=slope, intercept=intercept, r=r, r_low=low, r_high=high)


def analyze(run: Run | Path | str) -> dict[str, Any]:
    """Measure how far a run moved each matrix, correlate, and write RUN/analysis.json.

    Args:
        run: A finished run, or one that has a checkpoint.

    Returns:
        What was written: the run, correlations by kind (and in each by step), by layer and by step, matrices that never
        moved, and every matrix at every step.

    Raises:
        RunError: It is no run, has nothing to analyze, or its base changed since training.
    """
    run = run if isinstance(run, Run) else Run.open(Path(os.path.expanduser(run)))
    snapshots, notes = find_snapshots(run)
    changes = decompose(run, snapshots)
    if not changes:
        raise RunError(f"{run.path}: none of its matrices is a linear layer, so there is nothing to analyze")
    recipe = run.recipe
    kinds = {}
    for kind, members in _grouped(changes, lambda change: change.kind).items():
        kinds[kind] = {**asdict(correlation(members)), "steps": _by_step(members)}
    layered = [change for change in changes if change.layer is not None]
    moved = {change.module for change in changes if change.moved}
    content = {
        "schema": SCHEMA,
        "run": run.name,
        "mode": recipe.adapter.mode,
        "base": recipe.model.base,
        "steps": [snapshot.step for snapshot in snapshots],
        "notes": notes,
        "all": asdict(correlation(changes)),
        "kinds": kinds,
        "layers": _correlated(_grouped(layered, lambda change: change.layer)),
        "checkpoints": _by_step(changes),
        "never_moved": [name for name in dict.fromkeys(change.module for change in changes) if name not in moved],
        "matrices": [asdict(change) for change in changes],
    }
    write_json(run.analysis, content)
    return {**content, "output": str(run.analysis)}


def _is_flat(values: npt.NDArray[np.float64]) -> bool:
    return bool(values.std() <= 1e-12 * np.abs(values).max())


def _interval(
    u: npt.NDArray[np.float64], v: npt.NDArray[np.float64], owner: npt.NDArray[np.int64], seed: int
) -> tuple[float | None, float | None]:
    """The 95 % percentile interval of r over resamples of whole owners."""
    count = int(owner.max()) + 1
    sums = np.zeros((count, 6))
    np.add.at(sums, owner, np.stack([np.ones_like(u), u, v, u * u, v * v, u * v], axis=1))
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    n, su, sv, suu, svv, suv = (drawn @ sums).T
    spread_u, spread_v = suu - su * su / n, svv - sv * sv / n
    usable = (spread_u > 1e-9 * n) & (spread_v > 1e-9 * n)  # not a single point drawn again and again
    if not usable.any():
        return None, None
    r = (suv - su * sv / n)[usable] / np.sqrt(spread_u[usable] * spread_v[usable])
    low, high = np.quantile(r, [0.025, 0.975])
    return float(low), float(high)


def _grouped(changes: Iterable[MatrixChange], key: Callable[[MatrixChange], Hashable]) -> dict[str, list[MatrixChange]]:
    groups: dict[str, list[MatrixChange]] = {}
    for change in changes:
        groups.setdefault(str(key(change)), []).append(change)
    return groups


def _correlated(groups: dict[str, list[MatrixChange]]) -> dict[str, Any]:
    return {name: asdict(correlation(members)) for name, members in groups.items()}


def _by_step(changes: Iterable[MatrixChange]) -> dict[str, Any]:
    groups = _grouped(changes, lambda change: change.step)
    return _correlated({step: groups[step] for step in sorted(groups, key=int)})
