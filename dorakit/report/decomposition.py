"""How far training moved each weight matrix, in length and in direction (DoRA, arXiv:2402.09353, sec. 3.2, eq. 3 and 4).

With w a row of the matrix, one per output, before training (0) and at a step (t):

    delta-M = mean | |w_t| - |w_0| |        delta-D = mean (1 - cos(w_t, w_0))

LoRA and DoRA need no dense B A. With d = w_t - w_0 = s B A of a row (DoRA turns into the same direction, and its length
is m), p what w_t measures along w_0 and q across it:

    w_0 d = s rowsum((W A^T) * B)        p = |w_0| + w_0 d / |w_0|
    |d|^2 = s^2 rowsum((B A A^T) * B)    q^2 = |d|^2 - (w_0 d / |w_0|)^2

    |w_t| = sqrt(p^2 + q^2)        1 - cos = q^2 / (|w_t| (|w_t| + p))

1 - cos, which is about 1e-4, is never a difference of numbers near 1; all sums are float64. A row that is zero, before
or after, has no direction and counts 0 in delta-D.

Shapes: O out, I in, R rank.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from dorakit.adapters.attach import adapter_layers, target_names
from dorakit.adapters.foreign_names import PREFIX
from dorakit.adapters.original import change_factors, original_weight
from dorakit.adapters.peft_format import WEIGHTS, check_adapter
from dorakit.build import build_base, build_model, find_files_to_train
from dorakit.digests import changes
from dorakit.errors import RunError
from dorakit.model.linear import dense_weight
from dorakit.model.weights_check import check_weights
from dorakit.run import Run
from dorakit.starting import saved_initial
from dorakit.target import check_base
from dorakit.terminal import typed
from dorakit.training.checkpoint import CHECKPOINT_FILES
from dorakit.training.manifest import verify
from dorakit.training.upgrade import begins_with_ties

_ROWS_AT_ONCE = 1024  # bounds the float64 copies of a matrix
_SAME_MAGNITUDE = 1e-6  # relative; another device or thread count sums a float32 row norm to within this


@dataclass(frozen=True)
class MatrixChange:
    """What training did to one matrix up to one step.

    Attributes:
        module: Its name in the model.
        layer: The first number in that name; None outside of numbered layers.
        kind: The last part of that name, as q_proj.
        step: Optimizer steps taken.
        delta_m: Mean change of the row norms, in units of the weight.
        delta_d: Mean of 1 - cos between a row and what it was: 0 the same direction, 1 at right angles, 2 the opposite.
        moved: Whether anything of it is other than it was before training.
    """

    module: str
    layer: int | None
    kind: str
    step: int
    delta_m: float
    delta_d: float
    moved: bool


@dataclass(frozen=True)
class Snapshot:
    """The trained weights after a step, on disk: those of a checkpoint, or the run's result."""

    step: int
    files: tuple[Path, ...]
    is_result: bool


@dataclass(frozen=True)
class LowRankUpdate:
    """A (R, I) and B (O, R) at a step; of a DoRA also m (O,), now and as it was at the start."""

    lora_A: Tensor
    lora_B: Tensor
    magnitude: tuple[Tensor, Tensor] | None = None

    @property
    def moved(self) -> bool:
        """Whether the layer does anything else than its base."""
        if bool(self.lora_A.any()) and bool(self.lora_B.any()):
            return True
        return self.magnitude is not None and not torch.allclose(*self.magnitude, rtol=_SAME_MAGNITUDE, atol=0.0)


def find_snapshots(run: Run) -> tuple[list[Snapshot], list[str]]:
    """The weights that a run kept, oldest first, and lines about those that cannot be used.

    The result counts where no checkpoint has its step: at the end of training both hold the same weights.

    Raises:
        RunError: The run has neither a checkpoint nor a result that can be used.
    """
    found: dict[int, Snapshot] = {}
    notes: list[str] = []
    for path in sorted(run.checkpoints.glob("step-" + "[0-9]" * 9)):
        try:
            verify(path, CHECKPOINT_FILES)
        except RunError as error:
            notes.append(f"passed over: {error}")
            continue
        step = int(path.name.removeprefix("step-"))
        found[step] = Snapshot(step, (path / "adapter.safetensors",), is_result=False)
    if run.state == "finished":
        kept_best = run.recipe.training.keep_best and run.fact("best_step")
        step = int(run.fact("best_step" if kept_best else "steps"))
        if step not in found:
            found[step] = Snapshot(step, _result_files(run, notes), is_result=True)
    if not found:
        why = "".join(f"\n  {note}" for note in notes)
        raise RunError(
            f"{run.path} has no checkpoint and no result yet, so there is nothing to analyze{why}\n"
            f"  go on with it: dorakit train --resume {typed(run.path)}"
        )
    return [found[step] for step in sorted(found)], notes


def _result_files(run: Run, notes: list[str]) -> tuple[Path, ...]:
    directory = run.result
    notes += changes(directory, {}).values()
    if directory == run.adapter:
        check_adapter(directory)
        return (directory / WEIGHTS,)
    files = tuple(sorted(directory.glob("*.safetensors")))
    dtypes = {tensor.dtype for file in files for tensor in check_weights(file, error=RunError).values()}
    if dtypes != {"F32"}:
        notes.append(
            f"the last step is read from {directory.name}/, which is rounded to {', '.join(sorted(dtypes))}: "
            "that rounding counts as change"
        )
    return files


@torch.no_grad()
def decompose(run: Run, snapshots: Sequence[Snapshot] | None = None) -> list[MatrixChange]:
    """Measure every adapted matrix of a run, or of a full fine-tuning all that `all-linear` would adapt, at every snapshot.

    The base is loaded once and each of its matrices gone through once; beside it one matrix is in memory at a time.

    Args:
        run: Finished, or with a checkpoint.
        snapshots: Of `find_snapshots`; None for all.

    Returns:
        In model order, then by step.

    Raises:
        RunError: There is no snapshot, or the base's files changed since training.
    """
    snapshots = find_snapshots(run)[0] if snapshots is None else snapshots
    recipe = run.recipe
    measured = _measure_adapters if not recipe.trains_whole else _measure_whole
    base = (
        build_model(recipe, keeps_ties=begins_with_ties(run), initial=saved_initial(run))
        if not recipe.trains_whole
        else build_base(recipe, found=find_files_to_train(recipe))
    )
    check_base(run, base.identity)
    with contextlib.ExitStack() as opened:
        weights = [_Weights(snapshot, opened) for snapshot in snapshots]
        return list(measured(base.model, weights))


def low_rank_change(weight_OI: Tensor, update: LowRankUpdate, *, scaling: float) -> tuple[float, float]:
    """(delta-M, delta-D) of W + s B A, with the lengths m where the update has magnitudes."""
    a_RI, b_OR = update.lora_A.double(), update.lora_B.double()
    gram_RR = a_RI @ a_RI.T
    parts = []
    for rows in _slices(weight_OI):
        w_OI, b_rows = weight_OI[rows].double(), b_OR[rows]
        norm = w_OI.square().sum(dim=1).sqrt()
        dot = scaling * ((w_OI @ a_RI.T) * b_rows).sum(dim=1)
        square = scaling**2 * ((b_rows @ gram_RR) * b_rows).sum(dim=1)
        across = (square - (dot / _nonzero(norm)).square()).clamp_min_(0.0)
        parts.append(_row_changes(norm, dot, across))
    longer, turned = _joined(parts)
    if update.magnitude is not None:
        now, start = update.magnitude
        longer = now.double() - start.double()
    return float(longer.abs().mean()), float(turned.mean())


def dense_change(before_OI: Tensor, after_OI: Tensor) -> tuple[float, float]:
    """(delta-M, delta-D) between two matrices."""
    parts = []
    for rows in _slices(before_OI):
        w_OI = before_OI[rows].double()
        d_OI = after_OI[rows].to(w_OI.device).double() - w_OI
        square, dot = w_OI.square().sum(dim=1), (w_OI * d_OI).sum(dim=1)
        # Made explicitly, so that a row that only grew turns by nothing.
        across = (d_OI - (dot / _nonzero(square))[:, None] * w_OI).square().sum(dim=1)
        parts.append(_row_changes(square.sqrt(), dot, across))
    longer, turned = _joined(parts)
    return float(longer.abs().mean()), float(turned.mean())


def _row_changes(norm: Tensor, dot: Tensor, across: Tensor) -> tuple[Tensor, Tensor]:
    """Change of length, and 1 - cos, per row: from |w_0|, w_0 d and q^2."""
    step = dot / _nonzero(norm)  # what d measures along w_0
    along = norm + step
    length = (along.square() + across).sqrt()
    longer = (step * (2 * norm + step) + across) / _nonzero(length + norm)
    near = across / _nonzero(length * (length + along))
    turned = torch.where(along >= 0, near, 1 - along / _nonzero(length))
    return longer, turned.masked_fill((norm == 0) | (length == 0), 0.0)


def _nonzero(values: Tensor) -> Tensor:
    """Fit to divide by; what is divided by a former zero is zero itself, or not looked at."""
    return values.masked_fill(values == 0, 1.0)


def _slices(weight_OI: Tensor) -> list[slice]:
    return [slice(start, start + _ROWS_AT_ONCE) for start in range(0, weight_OI.shape[0], _ROWS_AT_ONCE)]


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([longer for longer, _ in parts]), torch.cat([turned for _, turned in parts])


class _Weights:
    """The tensors of a snapshot, each read when asked for."""

    def __init__(self, snapshot: Snapshot, opened: contextlib.ExitStack):
        self.step, self.is_result = snapshot.step, snapshot.is_result
        self._source = snapshot.files[0].parent
        self._homes: dict[str, Any] = {}
        for file in snapshot.files:
            content = opened.enter_context(safe_open(file, framework="pt"))
            self._homes |= dict.fromkeys(content.keys(), content)

    def trained(self, module: str, *names: str) -> Tensor:
        """The tensor of a module by the first of these names that is there, in an adapter with PEFT's prefix."""
        for key in (f"{prefix}{module}.{name}" for prefix in ("", PREFIX) for name in names):
            if (home := self._homes.get(key)) is not None:
                tensor: Tensor = home.get_tensor(key)
                return tensor
        raise RunError(
            f"{self._source} has no {module}.{names[0]}: it holds {len(self._homes)} tensors under other names\n"
            "  checkpoints have the names that are looked for: train with save_every and keep_checkpoints"
        )


def _measure_adapters(model: torch.nn.Module, weights: list[_Weights]) -> Iterator[MatrixChange]:
    for name, layer in adapter_layers(model):
        base = original_weight(layer)
        # The layer is fresh from its base: its magnitude is the one that training began with.
        start = None if layer.lora_magnitude_vector is None else layer.lora_magnitude_vector.detach().clone()
        for at in weights:
            for own, parameter in layer.trained().items():
                parameter.copy_(at.trained(name, own, layer.disk_key(own), f"{layer.disk_key(own)}.weight"))
            if not layer.has_factors:
                yield _change(name, at.step, dense_change(base, layer.merged_weight()), not layer.changes_nothing())
                continue
            magnitude = None
            if layer.lora_magnitude_vector is not None and start is not None:
                magnitude = layer.lora_magnitude_vector, start
            update = LowRankUpdate(*change_factors(layer), magnitude)
            moved = update.moved if layer.initial is None else not layer.changes_nothing()
            yield _change(name, at.step, low_rank_change(base, update, scaling=layer.scaling), moved)


def _measure_whole(model: Any, weights: list[_Weights]) -> Iterator[MatrixChange]:
    for name in target_names(model, "all-linear"):
        base = dense_weight(model.get_submodule(name))
        for at in weights:
            now = at.trained(name, "weight").to(base.device)
            yield _change(name, at.step, dense_change(base, now), not torch.equal(base, now.to(base.dtype)))


def _change(module: str, step: int, deltas: tuple[float, float], moved: bool) -> MatrixChange:
    number = re.search(r"(?:^|\.)(\d+)\.", module)
    layer = int(number[1]) if number else None
    return MatrixChange(module, layer, module.rpartition(".")[2], step, *deltas, moved)
