"""Checkpoints: a directory that exists if and only if it is complete.

    step-000000120/  adapter.safetensors (trained tensors) · optimizer.safetensors · state.json · manifest.json

Written beside its place, synced, renamed. manifest.json holds the size and sha256 of the others, which are checked
before anything parses them. No pickle.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dorakit.errors import ResourceError, RunError
from dorakit.failpoints import reach
from dorakit.files import FULL, discard, naming, whole_directory, write_json
from dorakit.model.source import sha256
from dorakit.model.weights_check import check_weights
from dorakit.run import Run

_NAME = re.compile(r"step-(\d{9})")
_SCHEMA = 2
_LARGEST_MANIFEST = 1 << 16  # bytes
_FILES = ("adapter.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, read and verified. `state` holds step, tokens seen, the best validation, fingerprints."""

    step: int
    trained: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def restore_trained(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Write saved parameters back in place.

    Raises:
        RunError: Names or shapes differ from the model's.
    """
    own = trained_tensors(model)
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise RunError(f"the checkpoint does not fit the model: {len(odd)} tensors differ, the first is {odd[0]}")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if parameter.shape != tensors[name].shape:
                raise RunError(
                    f"the checkpoint does not fit the model: {name} is {tuple(tensors[name].shape)}, "
                    f"expected {tuple(parameter.shape)}"
                )
            parameter.copy_(tensors[name])


def save_checkpoint(
    run: Run,
    *,
    trained: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write the checkpoint of `state["step"]`, read it back, and then remove all but the newest `keep`.

    Best weights that no checkpoint names go too.

    Raises:
        ResourceError: The disk is full; the previous checkpoint is untouched.
        RunError: What was written reads back as something else.
    """
    path = run.checkpoints / _name(state["step"])
    try:
        with whole_directory(path, what="checkpoint") as staging:
            save_tensors(staging / "adapter.safetensors", trained)
            reach("checkpoint.file")
            save_tensors(staging / "optimizer.safetensors", optimizer)
            reach("checkpoint.file")
            write_json(staging / "state.json", state)
            reach("checkpoint.file")
            files = {
                name: {"bytes": (staging / name).stat().st_size, "sha256": sha256(staging / name)} for name in _FILES
            }
            write_json(staging / "manifest.json", {"schema": _SCHEMA, "step": state["step"], "files": files})
            reach("checkpoint.file")
    except OSError as error:
        if error.errno not in FULL:
            raise
        needed = sum(t.numel() * t.element_size() for t in [*trained.values(), *optimizer.values()])
        raise ResourceError(_no_room(run, path, needed, error)) from error
    verify(path)  # before anything older goes
    # Newer ones may lie there that could not be used: they must not push out those that can.
    for old in [earlier for earlier in _checkpoints(run) if earlier.name <= path.name][:-keep]:
        discard(old)
    named = {best_weights(run, _best_step(kept)) for kept in _checkpoints(run)}
    for best in run.best.iterdir() if run.best.is_dir() else []:
        if best not in named:
            discard(best)
    return path


def _no_room(run: Run, path: Path, needed: int, error: OSError) -> str:
    whole = []
    for earlier in _checkpoints(run):
        with contextlib.suppress(RunError):
            verify(earlier)
            whole.append(earlier.name)
    left = f"{whole[-1]} is whole" if whole else "no checkpoint is there yet"
    return (
        f"{path} could not be written: {error.strerror}; it needs {needed:,} bytes, "
        f"{shutil.disk_usage(run.path).free:,} are free; {left}.\n"
        f"  make room, then: dorakit train --resume {run.path}"
    )


def best_weights(run: Run, step: int) -> Path:
    """Directory of the weights that had the lowest validation loss, which they had after `step`."""
    return run.best / _name(step)


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
            + f"\n  nothing is trained anew in silence: to begin again, rm -r {run.path}"
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
            aside = run.checkpoints / f"aside-{newer.name}"
            if aside.exists():
                discard(aside)
            newer.rename(aside)


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to a safetensors file that others may read."""
    with naming(path):
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)
    path.chmod(0o644)  # safetensors leaves 0600


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote, onto the CPU.

    Raises:
        RunError: It is missing or damaged.
    """
    try:
        check_weights(path, error=RunError, advice="put it back, or start a new run")
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}\n  put it back, or start a new run") from None
    return tensors


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _best_step(checkpoint: Path) -> int:
    try:
        return int(json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["best_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # damaged: it will not be resumed from


def _checkpoints(run: Run) -> list[Path]:
    """Complete checkpoint directories, oldest first, by step and not by time."""
    if not run.checkpoints.is_dir():
        return []
    return sorted(path for path in run.checkpoints.iterdir() if _NAME.fullmatch(path.name))


def read_checkpoint(path: Path) -> Checkpoint:
    """Verify a checkpoint, then read it.

    Raises:
        RunError: As `verify`; or a file holds something else than it should.
    """
    verify(path)
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        step = int(state["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: state.json cannot be used ({type(error).__name__}: {error})") from None
    return Checkpoint(
        step=step,
        trained=load_tensors(path / "adapter.safetensors"),
        optimizer=load_tensors(path / "optimizer.safetensors"),
        state=state,
    )


def verify(path: Path) -> None:
    """Compare a checkpoint's files with its manifest, before anything parses them.

    Raises:
        RunError: The manifest is missing, of another version or odd; or a file is missing, of another size, or changed.
    """
    manifest = path / "manifest.json"
    try:
        if manifest.stat().st_size > _LARGEST_MANIFEST:
            raise RunError(f"{manifest} has {manifest.stat().st_size:,} bytes: this is not one that dorakit wrote")
        stated = json.loads(manifest.read_text(encoding="utf-8"))
        schema, files = stated["schema"], stated["files"]
        if not isinstance(files, dict):
            raise TypeError(f"files is {type(files).__name__}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{manifest} cannot be used ({type(error).__name__}: {error})") from None
    if schema != _SCHEMA:
        raise RunError(f"{manifest} has schema {schema!r:.40}; this dorakit reads {_SCHEMA}")
    if odd := sorted(files.keys() ^ set(_FILES)):
        raise RunError(
            f"{manifest} should list {', '.join(_FILES)}; {odd[0]!r:.80} is {_too_many_or_few(odd[0], files)}"
        )
    for name in _FILES:
        file, expected = path / name, files[name]
        if not file.is_file():
            raise RunError(f"{file} is missing")
        if not isinstance(expected, dict) or expected.keys() != {"bytes", "sha256"}:
            raise RunError(f"{manifest} says {expected!r:.80} of {name}, expected its bytes and sha256")
        if (size := file.stat().st_size) != expected["bytes"]:
            raise RunError(f"{file} has {size:,} bytes, expected {expected['bytes']!r:.40}")
        try:
            found = sha256(file)
        except OSError as error:
            raise RunError(f"{file} cannot be read: {error.strerror}") from None
        if found != expected["sha256"]:
            raise RunError(
                f"{file} is damaged: its sha256 is {found[:12]}..., the manifest's {expected['sha256']!s:.12}..."
            )


def _too_many_or_few(name: str, files: dict[str, Any]) -> str:
    return "there and should not be" if name in files else "missing"
