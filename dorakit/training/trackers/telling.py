"""The trackers of one run: started, told and let go of, with no way for them to harm the run.

RUN/trackers.json keeps what each calls the run, and up to which step each figure was told by earlier processes: a resumed
run does steps again, and most trackers take nothing back.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dorakit.errors import shown
from dorakit.files import write_json
from dorakit.links import own
from dorakit.recipe.resolved import plain_settings
from dorakit.recipe.schema import Recipe
from dorakit.run import Run
from dorakit.training.trackers import TRACKERS
from dorakit.training.trackers.tracker import End, Tracked, Tracker


class Telling:
    """Tells the trackers that a recipe names.

    Args:
        run: What they are told of.
        recipe: Names them.
        start_step: Steps done before.
        last_steps: By figure, the last step that an earlier process logged.
        warn: Says and records one line.
    """

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        *,
        start_step: int,
        last_steps: Mapping[str, int],
        warn: Callable[[str], None],
    ):
        self._run, self._recipe, self._start_step, self._warn = run, recipe, start_step, warn
        self._trackers: dict[str, Tracker] = {}
        self._told: dict[str, dict[str, int]] = {}
        self._kept = _read_kept(run.trackers_file)
        for kept in self._kept.values():
            for figure, step in last_steps.items():
                kept["told"][figure] = max(step, kept["told"].get(figure, 0))
        if self._kept:  # now, since the lines that say it are removed from metrics.jsonl next
            self._keep()

    def start(self) -> None:
        """Start them. What they write in place here becomes the run's own first."""
        for file in (self._run.path / "mlflow.db", *self._run.path.glob("trackio/**/*")):
            own(file)
        for name in dict.fromkeys(self._recipe.logging.to):
            kept = self._kept.get(name, {"id": "", "told": {}})
            tracked = Tracked(
                directory=self._run.path,
                project=shown(Path(self._recipe.origin.path).stem),
                settings=plain_settings(self._recipe),
                start_step=self._start_step,
                kept_id=kept["id"],
            )
            with self._surviving(name, "did not start"):
                tracker = self._trackers[name] = TRACKERS[name](tracked)
                self._told[name] = kept["told"] if tracker.has_told else {}
                self._kept[name] = {"id": tracker.id, "told": self._told[name]}
        if self._trackers:
            self._keep()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Tell each the figures that it was not told of."""
        for name, tracker in list(self._trackers.items()):
            new = {figure: value for figure, value in figures.items() if step > self._told[name].get(figure, 0)}
            if new:
                with self._surviving(name, f"failed at step {step}"):
                    tracker.log(step, new)

    def finish(self, end: End) -> None:
        """Let go of them."""
        while self._trackers:
            name, tracker = self._trackers.popitem()
            with self._surviving(name, "did not finish"):
                tracker.finish(end)

    def _keep(self) -> None:
        with contextlib.suppress(OSError):  # of a full disk, which the next checkpoint says
            write_json(self._run.trackers_file, self._kept)

    @contextlib.contextmanager
    def _surviving(self, name: str, what: str) -> Iterator[None]:
        """Whatever a tracker raises, the run goes on without it; what it prints is not shown."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        except Exception as error:
            failed = self._trackers.pop(name, None)
            if failed:
                with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                    failed.finish("failed")  # its threads and processes
            told = shown(str(error)).strip().partition("\n")[0]
            with contextlib.suppress(OSError):  # the disk may be what failed the tracker
                self._warn(f"{name} {what}, and the run goes on without it: {type(error).__name__}: {told:.300}")


def _read_kept(file: Path) -> dict[str, dict[str, Any]]:
    """What earlier processes kept, as far as it can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {
            str(name): {"id": str(kept["id"]), "told": {str(key): int(step) for key, step in kept["told"].items()}}
            for name, kept in content.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
