"""Cells are trained and measured one after the other, each by the command line in a process of its own.

So a cell is a run like any other, its peak memory is its own, and what is finished is never done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dorakit.comparison.cells import Cell, check_same
from dorakit.comparison.measure import Measure
from dorakit.digests import sha256
from dorakit.errors import DorakitError, Interrupted, RunError
from dorakit.evaluation.written import beside, losses_beside
from dorakit.files import write_whole
from dorakit.recipe.resolved import dump_resolved
from dorakit.recipe.schema import Recipe
from dorakit.run import Run
from dorakit.terminal import typed


def train_cell(cell: Cell, recipe: Recipe, output: Path, *, quiet: bool) -> Run:
    """Train a cell, go on with one that was interrupted, or find it finished.

    Raises:
        RunError: A run is there that is not this cell's.
        DorakitError: The training failed, with its exit code.
        Interrupted: A signal came; the cell saved a checkpoint.
    """
    place = output / cell.name
    if (place / "run.json").is_file():
        run = Run.open(place)
        check_same(run, recipe)
        if run.state == "finished":
            return run
        _command(cell, "train", "--resume", str(place), quiet=quiet)
    else:
        # The whole recipe as it is meant, so that the run does not hang on a file that may change.
        plan = output / "recipes" / f"{cell.name}.yaml"
        if plan.parent.is_symlink():
            raise RunError(f"{plan.parent} is a link, and a comparison is not followed out of its directory: remove it")
        plan.parent.mkdir(parents=True, exist_ok=True)
        write_whole(plan, dump_resolved(recipe))
        twin = ["--twin"] if recipe.origin.is_twin else []
        _command(cell, "train", str(plan), *twin, quiet=quiet)
    return Run.open(place)


def measure_cell(
    cell: Cell, run: Run, *, name: str, arguments: list[str], quiet: bool, file: Path | None = None
) -> dict[str, Any]:
    """Evaluate a finished cell into eval/NAME.json, unless that was done with the same arguments; the result.

    Args:
        cell: Which.
        run: Its run.
        name: Of the result.
        arguments: Of `dorakit eval`.
        quiet: No progress is shown.
        file: What the arguments name; with other bytes in it, the cell is measured anew.

    Raises:
        DorakitError: The evaluation failed, with its exit code.
        Interrupted: A signal came.
    """
    result, asked = run.eval / f"{name}.json", run.eval / f"{name}.arguments"  # a .json there is a result
    digest = "" if file is None else sha256(file)
    wanted = json.dumps([*arguments, digest])
    with contextlib.suppress(OSError):
        if asked.read_text(encoding="utf-8") == wanted and result.is_file():
            return run.read(f"eval/{name}.json")
    _command(cell, "eval", str(run.path), "--output", str(result), *arguments, quiet=quiet)
    write_whole(asked, wanted)
    return run.read(f"eval/{name}.json")


def row_scores(run: Run, name: str, measure: Measure) -> dict[str, tuple[float, int]]:
    """For each row of an evaluation, by its place and a digest of it, its value and how much it counts.

    The value is 1.0 for a right answer and 0.0 for a wrong one, which count once; or the summed loss of a row's tokens, which
    counts as often as there are tokens.

    Raises:
        RunError: The file of the rows is gone or damaged.
    """
    file = (losses_beside if measure.is_loss else beside)(run.eval / f"{name}.json")
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if measure.is_loss:
            return {f"{line['row']} {line['digest']}": (float(line["nats"]), int(line["tokens"])) for line in lines}
        return {f"{line['row']} {_digest(line)}": (float(bool(line["correct"])), 1) for line in lines}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} cannot be used ({error})\n  rm -r {typed(run.eval)}, and compare again") from None


def _digest(line: dict[str, Any]) -> str:
    """Of question and answer: the file may have been another one when another cell was measured."""
    return hashlib.sha256(json.dumps([line["prompt"], line["answer"]]).encode()).hexdigest()[:16]


def _command(cell: Cell, *arguments: str, quiet: bool) -> None:
    code = _exit_code([*arguments, *(["--quiet"] if quiet else [])])
    if code in (130, 143, -signal.SIGINT, -signal.SIGTERM):
        number = signal.SIGTERM if code in (143, -signal.SIGTERM) else signal.SIGINT
        raise Interrupted(f"stopped in {cell.name}; the same command goes on from there", number)
    if code != 0:
        error = DorakitError(
            f"{cell.name}: `dorakit {arguments[0]}` ended with exit code {code}\n"
            "  finished cells are kept, and the same command goes on"
        )
        error.exit_code = code if 0 < code < 6 else 1
        raise error


def _exit_code(arguments: list[str]) -> int:
    """Run the command line; minus the signal's number where one ended it."""
    command = [sys.executable, "-m", "dorakit", *arguments]
    # A group of its own: Ctrl-C reaches it once, through us, and not a second time from the terminal.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, process_group=0)
    with _forwarding(process):
        return process.wait()


@contextlib.contextmanager
def _forwarding(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hand SIGINT and SIGTERM on to the process, and wait for its end."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda received, _: process.send_signal(received)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
