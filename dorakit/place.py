"""What a target is, from names and files alone: a run, an adapter, a model directory, or the name of a base."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dorakit.errors import ModelError, RunError, UsageError
from dorakit.files import names_a_place, nearby
from dorakit.run import Run
from dorakit.terminal import typed

Kind = Literal["run", "adapter", "model"]
# Directories of a finished run, and the command that makes each.
_MAKERS = {
    "merged": "merge",
    "quantized": "quantize",
    "peft": "export --to peft",
    "gguf": "export --to gguf",
    "lora": "export --to lora",
}
_RESULTS = ("adapter", "model")


@dataclass(frozen=True)
class Place:
    """What a target's text names, before anything is loaded.

    `path` is its directory, None for a hub id, `pkg:`, `tiny:` or a .gguf file. `run` is the run that it is or lies in.
    `kind` is run for a run and its adapter/ or model/, adapter for any other adapter, else model.
    """

    text: str
    kind: Kind
    path: Path | None
    run: Run | None

    @property
    def is_absent(self) -> bool:
        """Whether nothing of this name is on this machine: it can only be a hub id."""
        is_named = self.text.startswith(("tiny:", "pkg:"))
        return self.path is None and not is_named and not Path(os.path.expanduser(self.text)).is_file()

    def refuse_absent(self, why: str = "", hint: str = "") -> None:
        """For what takes no hub id: refuse a target that is not on this machine.

        Raises:
            RunError: It is not.
        """
        if self.is_absent:
            raise RunError(f"{why}no such run or directory: {self.text}" + (f"\n  {hint}" if hint else ""))


def find_target(text: str) -> Place:
    """Say what a target is, from the files alone.

    Raises:
        UsageError: A recipe.
        RunError: A checkpoint, or a run that is not there.
        ModelError: A directory that is neither a run, an adapter nor a model.
    """
    path = Path(os.path.expanduser(text))
    if path.is_file():
        if path.suffix in (".yaml", ".yml"):
            raise UsageError(
                f"{text} is a recipe file, not a run or a model\n  `dorakit train {typed(text)}` makes a run of it: name that"
            )
        return Place(text, "model", None, None)
    if not path.is_dir():
        if "/" in text and (run := run_around(text)) is not None:
            raise RunError(f"no such directory: {text}{_how_to_make(run, path.name)}")
        beside = sorted(file.parent.name for file in path.parent.glob("*/run.json") if not file.parent.is_symlink())
        if "/" in text and beside:
            raise RunError(f"no such run: {text}\n  {path.parent} holds {', '.join(beside[:8])}")
        # Where a directory of a hub id's first name is here, it is what is meant.
        is_named = text.startswith(("tiny:", "pkg:"))
        if names_a_place(text) or ("/" in text and not is_named and path.parent.is_dir()):
            raise RunError(f"no such run or directory: {text}\n  {nearby(path)}")
        return Place(text, "model", None, None)
    if (path / "run.json").is_file():
        return Place(text, "run", path, Run.open(path))
    run = run_around(text)
    if run is not None and path.resolve().is_relative_to(run.checkpoints.resolve()):
        raise RunError(
            f"{text} is a checkpoint, which only `dorakit train --resume {typed(run.path)}` reads\n"
            f"  when training has finished, point at {run.path}"
        )
    if (path / "adapter_config.json").is_file():
        is_own = run is not None and path.resolve() == run.adapter.resolve()
        return Place(text, "run" if is_own else "adapter", path, run if is_own else None)
    if (path / "config.json").is_file():
        is_own = run is not None and path.resolve() == run.model.resolve()
        return Place(text, "run" if is_own else "model", path, run)
    inside = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
    raise ModelError(
        f"{text} is not a run (run.json), an adapter (adapter_config.json) or a model (config.json); it holds {inside}"
    )


def _how_to_make(run: Run, name: str) -> str:
    if name not in (*_MAKERS, *_RESULTS):
        return ""
    if run.state != "finished":
        return f"\n  training did not finish: `dorakit train --resume {typed(run.path)}`"
    if name in _RESULTS or (run.model.is_dir() and name in ("merged", "peft", "lora")):
        return f"\n  the result is {run.result}"
    return f"\n  `dorakit {_MAKERS[name]} {typed(run.path)}` makes it"


def run_around(text: str) -> Run | None:
    """The run that a path is, or lies in; None for any other place."""
    path = Path(os.path.expanduser(text))
    if not path.exists() and not path.parent.exists():
        return None
    # As typed first, so that messages and results name the run as its user does.
    found = next((p for p in (path, *path.parents, *path.resolve().parents) if (p / "run.json").is_file()), None)
    return None if found is None else Run.open(found)
