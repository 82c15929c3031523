"""The run directory: the only module that knows its file names.

run.json                schema version, state (training | finished | failed), what it was trained on, notes
recipe.yaml             the user's file, byte for byte
recipe.resolved.yaml    every value and where it came from
environment.json        machine and library versions
metrics.jsonl           one object per logged step, validation or sample
rows/                   a digest of each row, by which a resumed run finds the first that changed
run.lock                who writes, while somebody does
trackers.json           what trackers were told; tensorboard/  wandb/  mlflow.db  trackio/  what they keep here
nonfinite.jsonl         steps whose loss or gradient was not finite, and their rows
checkpoints/step-N/     complete or absent (training/checkpoint.py)
initial.safetensors     what a start took out of the base (adapters/initial.py)
best/step-N/            the weights of the lowest validation loss that a checkpoint names, with keep_best
adapter/ or model/      the result; exists only when training finished
analysis.json           how far each matrix moved (report/analysis.py)
eval/  merged/  quantized/  peft/  gguf/  lora/  report.html
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dorakit.errors import RunError
from dorakit.files import check_writable, naming, remove_rubbish, write_json, write_whole
from dorakit.links import refuse_links
from dorakit.lock import hold, refuse_held
from dorakit.machine import machine_facts
from dorakit.recipe.resolved import dump_resolved, with_first_sources
from dorakit.recipe.schema import Recipe
from dorakit.run_facts import SCHEMA_VERSION, check_facts, field_of
from dorakit.terminal import typed

_LOCK = "run.lock"


class Run:
    """One training run on disk.

    Attributes:
        path: The run directory. Everything inside is named relative to it, so it can be moved.
    """

    def __init__(self, path: Path):
        self.path = path
        self.metrics_file = path / "metrics.jsonl"
        self.log_file = path / "log.txt"
        self.trackers_file = path / "trackers.json"
        self.nonfinite_file = path / "nonfinite.jsonl"
        self.checkpoints = path / "checkpoints"
        self.best = path / "best"
        self.rows = path / "rows"
        self.initial = path / "initial.safetensors"
        self.adapter = path / "adapter"
        self.model = path / "model"
        self.analysis = path / "analysis.json"
        self.eval = path / "eval"
        self.merged = path / "merged"
        self.quantized = path / "quantized"
        self.peft = path / "peft"
        self.gguf = path / "gguf"
        self.lora = path / "lora"
        self.report = path / "report.html"

    @classmethod
    def place(cls, recipe: Recipe) -> Path:
        """Where a new run of this recipe goes: NAME, or NAME-2, NAME-3 ... beside finished ones.

        Raises:
            RunError: An unfinished run is there, with the line that resumes it, or with who is writing it; or something
                that is no run; or nothing can be made there.
        """
        wanted = cls.wanted(recipe)
        check_writable(wanted)
        path, number = wanted, 1
        while path.exists():
            if not (path / "run.json").exists():
                if path.is_dir() and not any(path.iterdir()):
                    break
                raise RunError(f"{path} exists and is not a run directory.\n  set output_dir to another place")
            found = cls.open(path)
            refuse_held(path / _LOCK, of=path)
            if found.state != "finished":
                raise RunError(
                    f"{path} holds an unfinished run.\n"
                    f"  go on with it:             dorakit train --resume {typed(path)}\n"
                    f"  or remove it:              rm -r {typed(path)}\n"
                    "  or a new run beside it:    dorakit train RECIPE -o DIR"
                )
            number += 1
            path = wanted.with_name(f"{wanted.name}-{number}")
        return path

    @staticmethod
    def wanted(recipe: Recipe) -> Path:
        """NAME: where a new run of this recipe goes if nothing is there yet."""
        return Path(os.path.expanduser(recipe.output_dir.replace("{name}", recipe.origin.name)))

    @classmethod
    def launched(cls, recipe: Recipe, launch: str) -> Run | None:
        """The run of this recipe that the processes of `launch` began, if there is one (parallel/environment.py)."""
        wanted = cls.wanted(recipe)
        for path in (wanted, *wanted.parent.glob(f"{glob.escape(wanted.name)}-*")):
            if (path / "run.json").is_file() and (run := cls.open(path)).read("run.json").get("launch") == launch:
                return run
        return None

    @classmethod
    def create(cls, recipe: Recipe, *, base: dict[str, Any] | None = None, start: dict[str, Any] | None = None) -> Run:
        """Make the directory of a new run.

        Args:
            recipe: What it will do.
            base: What it starts from: name, resolved revision, and sha256 of its files.
            start: The adapter that it begins with (training/upgrade.py), recorded as `from`.

        Raises:
            RunError: As `place`.
        """
        path = cls.place(recipe)
        # Assembled beside its place and renamed, so that a kill here leaves no half-made run.
        staging = path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")
        with naming(path):
            staging.mkdir(parents=True)
            try:
                (staging / "recipe.yaml").write_text(recipe.origin.text, encoding="utf-8")
                (staging / "recipe.resolved.yaml").write_text(dump_resolved(recipe), encoding="utf-8")
                write_json(staging / "environment.json", machine_facts())
                write_json(
                    staging / "run.json",
                    {
                        "schema": SCHEMA_VERSION,
                        "state": "training",
                        "is_twin": recipe.origin.is_twin,
                        "base": base or {},
                        **({"from": start} if start else {}),
                        "notes": list(recipe.origin.notes),
                    },
                )
                if path.exists():
                    path.rmdir()
                staging.rename(path)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            _point_latest_to(path)
        return cls(path)

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Open an existing run directory.

        Raises:
            RunError: The path holds no run, one made by a newer dorakit, one whose run.json is damaged, or one with links.
        """
        path = Path(path)
        if not path.exists():
            raise RunError(f"no such run directory: {path}")
        run = cls(path)
        if not (path / "run.json").is_file():
            above = next((p for p in path.resolve().parents if (p / "run.json").is_file()), None)
            hint = f"\n  did you mean {above}?" if above else "\n  `dorakit train RECIPE` makes one"
            raise RunError(f"{path} is not a run directory: it has no run.json{hint}")
        for place in (path, *path.absolute().parents):
            if (place / "run.json").is_file():  # also a run that this one lies in, by a link
                refuse_links(place)
        run.read("run.json")
        return run

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.path.name

    @property
    def state(self) -> str:
        """`training`, `finished` or `failed`."""
        return str(self.read("run.json")["state"])

    @property
    def recipe(self) -> Recipe:
        """The recipe as it was resolved when the run began; the revision of its base is the commit that was loaded."""
        return self.recipe_with([])

    def recipe_with(self, overrides: list[str]) -> Recipe:
        """The run's recipe with `section.key=value` overrides.

        The revision of its base is the commit that was loaded, unless an override names another revision, or another
        base: that is the one of its branch main.
        """
        facts = self.read("run.json")
        file = str(self.path / "recipe.resolved.yaml")
        recipe = with_first_sources(Recipe.from_yaml(file, overrides, twin=bool(facts.get("is_twin"))))
        keys = {override.partition("=")[0].strip() for override in overrides}
        if "model.revision" in keys:
            return recipe
        base = facts.get("base", {})
        # A branch may have moved on since. A process killed while it recorded another base left that of the one before.
        commit = base.get("revision") if base.get("name") == recipe.model.base else None
        revision = "main" if "model.base" in keys else commit or recipe.model.revision
        return recipe.model_copy(update={"model": recipe.model.model_copy(update={"revision": revision})})

    def refuse_finished(self) -> None:
        """Refuse to train what is finished.

        Raises:
            RunError: It is.
        """
        if self.state == "finished":
            raise RunError(f"{self.path} is finished; `dorakit train RECIPE` starts another")

    @property
    def result(self) -> Path:
        """Directory of the trained weights: adapter/, or model/ for full fine-tuning.

        Raises:
            RunError: Training has not finished, or the result was removed.
        """
        if found := [directory for directory in (self.adapter, self.model) if directory.is_dir()]:
            return found[0]
        if self.state == "finished":
            raise RunError(f"{self.path} has lost its result, {self.adapter.name}/ or {self.model.name}/; train anew")
        command = f"dorakit train --resume {typed(self.path)}"
        raise RunError(f"{self.path} has no result yet: training did not finish.\n  {command}")

    def row_digests(self, fingerprint: str) -> Path:
        """File with the digests of the rows of the data that has this fingerprint."""
        name = "".join(c for c in fingerprint if c.isalnum())  # it may come from a file, and stays inside the run
        return self.rows / f"{name[:16]}.safetensors"

    def read(self, name: str) -> dict[str, Any]:
        """Read one of the run's JSON files."""
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.path / name} is missing") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{self.path / name} is not valid JSON: {error}") from None
        if not isinstance(content, dict):
            raise RunError(f"{self.path / name} holds {type(content).__name__}, expected an object")
        if name == "run.json":
            check_facts(self.path / name, content)
        return content

    def fact(self, name: str) -> Any:
        """A field of run.json, as `run_facts.field_of` gives it."""
        return field_of(self.path / "run.json", self.read("run.json"), name)

    def update(self, **fields: Any) -> None:
        """Change fields of run.json."""
        write_json(self.path / "run.json", {**self.read("run.json"), **fields})

    def note(self, line: str) -> None:
        """Record an adjustment or remark in run.json; printing it is the caller's business."""
        notes = list(self.read("run.json")["notes"])
        if line not in notes:
            self.update(notes=[*notes, line])

    @contextlib.contextmanager
    def writing(self) -> Iterator[str]:
        """Hold the run's lock: one writer at a time. What a process that was killed here had begun is removed.

        Gives what the lock says of an earlier writer that did not let go of it: one that was killed. Else "".

        Raises:
            RunError: Another process holds it.
        """
        with hold(self.path / _LOCK, of=self.path) as vanished:
            with naming(self.path):
                for directory in (self.path, self.checkpoints, self.best, self.rows):
                    if directory.is_dir():
                        remove_rubbish(directory)
            yield vanished

    def record(self, recipe: Recipe) -> None:
        """Put another recipe in the place of the one that the run began with, which recipe.yaml still is."""
        write_whole(self.path / "recipe.resolved.yaml", dump_resolved(recipe))


def _point_latest_to(path: Path) -> None:
    link = path.parent / "latest"
    if link.exists() and not link.is_symlink():
        return
    staging = path.parent / f".tmp-latest-{uuid.uuid4().hex[:8]}"
    staging.symlink_to(path.name)
    try:
        staging.replace(link)
    except OSError:
        staging.unlink()
        raise
