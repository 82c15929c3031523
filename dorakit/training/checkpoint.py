"""Checkpoints: a directory that exists if and only if it is complete.

    step-000000120/  adapter.safetensors (trained tensors) · optimizer.safetensors · state.json · manifest.json

Written beside its place, synced, renamed. manifest.json holds the size and sha256 of the others, which are checked
before anything parses them. No pickle.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dorakit.errors import ResourceError, RunError
from dorakit.files import whole_directory, write_json
from dorakit.model.source import sha256
from dorakit.run import Run

_NAME = re.compile(r"step-(\d{9})")
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
    """Write the checkpoint of `state["step"]`, then remove all but the newest `keep`, and best weights that none names.

    Raises:
        ResourceError: The disk is full; the previous checkpoint is untouched.
    """
    path = run.checkpoints / _name(state["step"])
    tensors = [*trained.values(), *optimizer.values()]
    try:
        with whole_directory(path) as staging:
            save_tensors(staging / "adapter.safetensors", trained)
            save_tensors(staging / "optimizer.safetensors", optimizer)
            write_json(staging / "state.json", state)
            files = {
                name: {"bytes": (staging / name).stat().st_size, "sha256": sha256(staging / name)} for name in _FILES
            }
            write_json(staging / "manifest.json", {"schema": 1, "step": state["step"], "files": files})
    except (OSError, SafetensorError) as error:
        needed = sum(t.numel() * t.element_size() for t in tensors)
        free = shutil.disk_usage(run.path).free
        raise ResourceError(
            f"{path} could not be written: {error}; it needs {needed:,} bytes, {free:,} are free.\n"
            f"  make room, then: dorakit train --resume {run.path}"
        ) from error
    for old in _checkpoints(run)[:-keep]:
        _remove(old)
    named = {best_weights(run, _best_step(kept)) for kept in _checkpoints(run)}
    for best in run.best.iterdir() if run.best.is_dir() else []:
        if best not in named:
            _remove(best)
    return path


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
            return _read(path), rejected
        except RunError as error:
            rejected.append(str(error))
    if rejected:
        raise RunError(f"no checkpoint of {run.path} can be used:\n  " + "\n  ".join(rejected))
    return None, []


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to a safetensors file that others may read."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)
    path.chmod(0o644)  # safetensors leaves 0600


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote, onto the CPU.

    Raises:
        RunError: It is missing or damaged.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}\n  put it back, or start a new run") from None
    return tensors


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _best_step(checkpoint: Path) -> int:
    try:
        return int(json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["best_step"])
    except (OSError, ValueError, KeyError):
        return 0  # damaged: it will not be resumed from


def _remove(directory: Path) -> None:
    """Remove a directory so that it is at any instant whole or gone."""
    trash = directory.with_name(f".trash-{directory.name}-{uuid.uuid4().hex[:8]}")
    directory.rename(trash)
    shutil.rmtree(trash)


def _checkpoints(run: Run) -> list[Path]:
    """Complete checkpoint directories, oldest first, by step and not by time."""
    if not run.checkpoints.is_dir():
        return []
    return sorted(path for path in run.checkpoints.iterdir() if _NAME.fullmatch(path.name))


def _read(path: Path) -> Checkpoint:
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        files = {name: manifest["files"][name] for name in _FILES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: manifest.json cannot be used ({type(error).__name__}: {error})") from None
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise RunError(f"{file} is missing")
        if (size := file.stat().st_size) != expected["bytes"]:
            raise RunError(f"{file} has {size:,} bytes, expected {expected['bytes']:,}")
        if sha256(file) != expected["sha256"]:
            raise RunError(f"{file} is damaged: its sha256 differs from the manifest's")
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return Checkpoint(
        step=int(state["step"]),
        trained=load_tensors(path / "adapter.safetensors"),
        optimizer=load_tensors(path / "optimizer.safetensors"),
        state=state,
    )
