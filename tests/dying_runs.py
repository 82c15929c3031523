"""Runs of the command line that die, and the table of what was seen.

A case runs in a fork of the test process, which has torch loaded: a real process with real signals and limits, in a second
instead of ten. Three cases start the installed command anew (test_real_kills.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from dorakit import failpoints
from dorakit.training import loop  # noqa: F401  loaded before the forks

ROWS = [
    "One row to read.",
    "A second row, which is a good deal longer than the first one was.",
    "Third.",
    "The fourth row tells of rows before it.",
]
RECIPE = """\
version: 1
output_dir: {place}/run
model: {{base: "{base}", architecture: llama, dtype: float32}}
adapter: {{mode: qdora, rank: 4, alpha: 8, dropout: 0.1}}
data:
  root: {place}
  train: [{{path: rows.jsonl, format: completion}}]
  validation: {{rows: 8}}
  max_seq_len: 256
training: {{epochs: 1000, max_steps: {steps}, batch_size: 8, micro_batch_size: 4, log_every: 1, eval_every: 4, save_every: 2,
  sample_rows: 0}}
optimizer: {{name: adamw_8bit, learning_rate: 1e-2, schedule: cosine, warmup_steps: 1}}
"""
STEPS = 12


@dataclass(frozen=True)
class Ended:
    """How a process ended: exit code, or minus the signal's number, and what it wrote."""

    code: int
    out: str
    err: str


def be_a_child(function: Callable[[], int], out: IO[bytes], err: IO[bytes]) -> NoReturn:
    """Call `function` in a fork that writes into these files; its value is the exit code. Never comes back."""
    code = 70
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
        code = function()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


def forked(function: Callable[[], int]) -> Ended:
    """Run `function` in a fork; its value is the exit code."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            be_a_child(function, out, err)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
        return Ended(code, *texts)


def dorakit(*arguments: str | Path, failpoint: str = "", before: Callable[[], None] | None = None) -> Ended:
    """The command line in a fork. `before` is called there first, to set limits, say."""

    def run() -> int:
        from dorakit.cli.app import main

        failpoints.arm(failpoint)
        if before is not None:
            before()
        sys.argv = ["dorakit", *map(str, arguments)]
        main()
        return 0

    return forked(run)


@dataclass(frozen=True)
class Site:
    """A directory with rows and a recipe; `run` is where the recipe's run goes."""

    place: Path

    @property
    def run(self) -> Path:
        return self.place / "run"

    @property
    def recipe(self) -> Path:
        return self.place / "small.yaml"

    def train(self, *arguments: str, **options) -> Ended:
        return dorakit("train", self.recipe, *arguments, **options)

    def resume(self, *arguments: str, **options) -> Ended:
        return dorakit("train", "--resume", self.run, *arguments, **options)

    def checkpoints(self) -> list[Path]:
        return sorted((self.run / "checkpoints").glob("step-*"))

    def facts(self) -> dict:
        return json.loads((self.run / "run.json").read_text())

    def metrics(self) -> list[dict]:
        """Logged lines without what a clock or the process's memory says."""
        moving = ("train/tokens_per_s", "train/memory_bytes")
        lines = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key not in moving} for line in lines]


def moved_copy(place: Path, to: Path) -> Site:
    """A copy of a site, which knows its new place."""
    shutil.copytree(place, to, symlinks=True)
    site = Site(to)
    for file in (site.recipe, site.run / "recipe.resolved.yaml"):
        file.write_text(file.read_text().replace(str(place), str(to)))
    return site


def digest(run: Path) -> str:
    """sha256 of the trained weights."""
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def make_site(place: Path, *, base: str = "tiny:llama", steps: int = STEPS) -> Site:
    place.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"Say {i}: ", "completion": f"{ROWS[i % 4]} {i * i}"} for i in range(60)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    site = Site(place)
    site.recipe.write_text(RECIPE.format(place=place, base=base, steps=steps))
    return site
