"""Checkpoints: a directory that exists if and only if it is complete.

    checkpoints/step-000000120/  adapter.safetensors (trained tensors) · optimizer.safetensors · state.json · manifest.json
    best/step-000000080/         adapter.safetensors · manifest.json: the weights of the lowest validation loss

Written beside its place, synced, renamed. manifest.json holds the size and sha256 of the others, which are checked
before anything parses them. No pickle.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dorakit.errors import ResourceError, RunError
from dorakit.failpoints import reach
from dorakit.files import FULL, discard, whole_directory, write_json
from dorakit.run import Run
from dorakit.run_facts import Count, Maybe, check_shape
from dorakit.terminal import typed
from dorakit.training.manifest import verify, write_manifest
from dorakit.training.trained import load_tensors, save_tensors

_STATE = {
    "step": Count(),
    "num_tokens?": Count(),
    "summed_rate?": float,
    "best_loss?": Maybe(float),
    "best_step?": Count(),
    "seconds?": float,
    "skipped?": Count(),
    "is_exact?": bool,
    "optimizer": {str: float},
    "computing": {str: str},
    "facts": {"recipe": {str: str}, "base": {str: str}, "data": str, "template": str},
}
_NAME = re.compile(r"step-(\d{9})")
_NAME_ASIDE = re.compile(r"aside-(\d+-)?step-\d{9}")
CHECKPOINT_FILES = ("adapter.safetensors", "optimizer.safetensors", "state.json")
_BEST_FILES = ("adapter.safetensors",)


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, read and verified. `state` holds step, tokens seen, the best validation, fingerprints."""

    step: int
    trained: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    run: Run,
    *,
    trained: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write the checkpoint of `state["step"]`, read it back, and then remove all but the newest `keep` that are whole.

    Best weights that no checkpoint names go too.

    Raises:
        ResourceError: The disk is full; the previous checkpoint is untouched.
        RunError: What was written reads back as something else.
    """
    path = run.checkpoints / _name(state["step"])
    with disk_full_message(run, path, [*trained.values(), *optimizer.values()]):
        with whole_directory(path, what="checkpoint") as staging:
            save_tensors(staging / "adapter.safetensors", trained)
            reach("checkpoint.file")
            save_tensors(staging / "optimizer.safetensors", optimizer)
            reach("checkpoint.file")
            write_json(staging / "state.json", state)
            reach("checkpoint.file")
            write_manifest(staging, CHECKPOINT_FILES, state["step"])
            reach("checkpoint.file")
    verify(path, CHECKPOINT_FILES)  # before anything older goes
    _prune(run, path, keep)
    return path


def _prune(run: Run, newest: Path, keep: int) -> None:
    """Remove what is older than the `keep` newest whole ones, and best weights that nothing names.

    A damaged one is no older state to go back to, so it does not count. Nor do newer ones: they may lie there because
    they could not be used.
    """
    whole = 0
    for checkpoint in reversed([earlier for earlier in _checkpoints(run) if earlier.name <= newest.name]):
        if whole >= keep:
            discard(checkpoint)
        elif checkpoint == newest or _is_whole(checkpoint):
            whole += 1
    kept = [*_checkpoints(run), *_set_aside(run)]
    named = {best_weights(run, _best_step(checkpoint)) for checkpoint in kept}
    for best in run.best.iterdir() if run.best.is_dir() else []:
        if best not in named:
            discard(best)


@contextlib.contextmanager
def disk_full_message(run: Run, path: Path, tensors: Iterable[Tensor]) -> Iterator[None]:
    """A full disk within the block raises an error that says what was not written, the bytes needed, and what is safe.

    Raises:
        ResourceError: The disk, the quota or the limit on files is reached.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        whole = [earlier.name for earlier in _checkpoints(run) if _is_whole(earlier)]
        left = f"{whole[-1]} is whole" if whole else "no checkpoint is there yet"
        raise ResourceError(
            f"{error.filename or path} could not be written: {error.strerror}; it needs {needed:,} bytes, "
            f"{shutil.disk_usage(run.path).free:,} are free; {left}.\n"
            f"  make room, then: {_how_to_go_on(run, has_checkpoint=bool(whole))}"
        ) from error


def _how_to_go_on(run: Run, *, has_checkpoint: bool) -> str:
    start = run.read("run.json").get("from")
    if has_checkpoint or start is None:
        return f"dorakit train --resume {typed(run.path)}"
    return how_to_begin_again(run, start["adapter"])


def how_to_begin_again(run: Run, adapter: str) -> str:
    """The commands for a run that began with an adapter and has no checkpoint with it, which cannot be resumed."""
    return f"rm -r {typed(run.path)}, then: dorakit train RECIPE --from {typed(adapter)}"


def best_weights(run: Run, step: int) -> Path:
    """Directory of the weights that had the lowest validation loss, which they had after `step`."""
    return run.best / _name(step)


def save_best(run: Run, step: int, trained: dict[str, Tensor]) -> None:
    """Keep the weights of the lowest validation loss.

    Raises:
        ResourceError: The disk is full; the last checkpoint is untouched.
    """
    path = best_weights(run, step)
    with disk_full_message(run, path, trained.values()), whole_directory(path) as staging:
        save_tensors(staging / "adapter.safetensors", trained)
        write_manifest(staging, _BEST_FILES, step)


def check_best(run: Run, step: int) -> None:
    """Refuse best weights that are gone or damaged, before a run goes on for hours to end without them.

    Raises:
        RunError: They are.
    """
    path = best_weights(run, step)
    try:
        verify(path, _BEST_FILES)
    except RunError as error:
        raise RunError(
            f"the best weights so far, of step {step}, cannot be used: {error}\n"
            "  put them back, or go on without: --set training.keep_best=false --accept-change training.keep_best"
        ) from None


def load_best(run: Run, step: int) -> dict[str, Tensor]:
    """The weights of the lowest validation loss.

    Raises:
        RunError: They are gone or damaged.
    """
    check_best(run, step)
    return load_tensors(best_weights(run, step) / "adapter.safetensors")


def newest_checkpoint(run: Run) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and why newer ones do not; None when none was ever written.

    Raises:
        RunError: There are checkpoints and none verifies.
    """
    rejected: list[str] = []
    for path in reversed(_checkpoints(run)):
        try:
            return read_checkpoint(path), rejected
        except RunError as error:
            rejected.append(str(error))
    if rejected:
        raise RunError(
            f"no checkpoint of {run.path} can be used:\n  "
            + "\n  ".join(rejected)
            + f"\n  nothing is trained anew in silence: to begin again, rm -r {typed(run.path)}"
        )
    return None, []


def named_checkpoint(run: Run, name: str) -> Checkpoint:
    """The checkpoint `name` of a run.

    Raises:
        RunError: It is not there, or it is damaged: another one is never taken in its place.
    """
    if not _NAME.fullmatch(name) or not (run.checkpoints / name).is_dir():
        there = ", ".join(path.name for path in _checkpoints(run)) or "none"
        raise RunError(f"{run.path} has no checkpoint {name!r}; it has {there}")
    return read_checkpoint(run.checkpoints / name)


def set_newer_aside(run: Run, step: int) -> None:
    """Rename the checkpoints after `step`, so that pruning does not take the ones that a run writes anew for the oldest."""
    for newer in _checkpoints(run):
        if newer.name > _name(step):
            names = (
                f"aside-{number}{newer.name}" for number in itertools.chain([""], (f"{n}-" for n in itertools.count(2)))
            )
            newer.rename(next(place for name in names if not (place := run.checkpoints / name).exists()))


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _best_step(checkpoint: Path) -> int:
    try:
        return int(read_state(checkpoint).get("best_step", 0))
    except (OSError, RunError):
        return 0  # damaged: it will not be resumed from


def _checkpoints(run: Run) -> list[Path]:
    """Complete checkpoint directories, oldest first, by step and not by time."""
    if not run.checkpoints.is_dir():
        return []
    return sorted(path for path in run.checkpoints.iterdir() if _NAME.fullmatch(path.name))


def _set_aside(run: Run) -> list[Path]:
    if not run.checkpoints.is_dir():
        return []
    return [path for path in run.checkpoints.iterdir() if _NAME_ASIDE.fullmatch(path.name)]


def _is_whole(path: Path) -> bool:
    try:
        verify(path, CHECKPOINT_FILES)
    except RunError:
        return False
    return True


def read_state(path: Path) -> dict[str, Any]:
    """The state.json of a checkpoint, with every field that is used later.

    Raises:
        RunError: With what is missing or odd.
    """
    file = path / "state.json"
    try:
        state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{file} is not valid JSON: {error}") from None
    check_shape(file, state, _STATE)
    if state.get("best_step") and state.get("best_loss") is None:
        raise RunError(f"{file} is damaged: 'best_step' is {state['best_step']}, and it has no 'best_loss'")
    return state


def read_checkpoint(path: Path) -> Checkpoint:
    """Verify a checkpoint, then read it.

    Raises:
        RunError: As `manifest.verify`; or a file holds something else than it should.
    """
    verify(path, CHECKPOINT_FILES)
    state = read_state(path)
    return Checkpoint(
        step=state["step"],
        trained=load_tensors(path / "adapter.safetensors"),
        optimizer=load_tensors(path / "optimizer.safetensors"),
        state=state,
    )
