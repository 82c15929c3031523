"""Tasks of lm-evaluation-harness (EleutherAI), measured by the harness itself on a model that is loaded and adapted here.

Its task files are programs: their templates run outside a sandbox, and they may name Python functions. A directory of
them is something that its user trusts.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dorakit.errors import DataError, DorakitError, MachineError, ResourceError, UsageError, is_out_of_memory
from dorakit.evaluation.tasks.table import HARNESS, unknown_task
from dorakit.target import Target

# Of a task's measures, the first that there is becomes its accuracy.
_ACCURACIES = ("acc", "exact_match")
_BATCH_SIZE = 8


@dataclass(frozen=True)
class HarnessTasks:
    """Names of tasks, groups or tags, and the harness's index in which they are."""

    names: list[str]
    manager: Any


def find_harness_tasks(names: str, data: str | None, *, scoring: str | None = None) -> HarnessTasks:
    """Find tasks before a model is loaded.

    Args:
        names: lm-eval:NAME, or several names after it, separated by commas.
        data: A directory of task files (.yaml), searched before the harness's own.
        scoring: Nothing: these tasks say themselves how they are scored.

    Raises:
        MachineError: The harness is not installed.
        UsageError: An unknown task, or a scoring.
        DataError: `data` is no directory, or a task file in it cannot be read.
    """
    if scoring is not None:
        raise UsageError(f"--scoring {scoring}: tasks of {HARNESS} say themselves how they are scored")
    directory = None if data is None else Path(os.path.expanduser(data))
    if directory is not None and not directory.is_dir():
        raise DataError(f"--data {data}: no such directory; with {HARNESS} it is one of task files (.yaml)")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise MachineError(
            f"--task {names}: lm-evaluation-harness is not installed\n  pip install 'dorakit[eval]'"
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    wanted = [name.strip() for name in names.removeprefix(HARNESS).split(",")]
    with _as_data_errors(names):
        # Its own tasks are thousands of files: they are left out where the directory has all that is asked for.
        manager = None if directory is None else TaskManager(include_path=directory, include_defaults=False)
        if manager is None or not set(wanted) <= set(manager.all_tasks):
            manager = TaskManager(include_path=directory)
    for name in wanted:
        if name not in manager.all_tasks:
            known = list(manager.all_tasks)
            raise unknown_task(name, known, f"{HARNESS} has {len(known)}; `lm_eval ls tasks` lists its own")
    return HarnessTasks(wanted, manager)


def measure_harness_tasks(
    tasks: HarnessTasks, target: Target, *, limit: int | None, batch_size: int | None, quiet: bool
) -> list[dict[str, Any]]:
    """Measure tasks; gives an object for each, of the form of other tasks', with all measures in `measures`.

    A task of another measure than accuracy or exact match has accuracy None.

    Raises:
        DataError: The harness cannot carry a task out: its rows are not here, or its file is wrong.
        ResourceError: A hub cannot be reached.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from dorakit.model.stops import stop_token_ids

    began = time.monotonic()
    with _as_data_errors(",".join(tasks.names)), _on_stderr(quiet=quiet):
        form = target.model.generation_config  # which the harness generates by
        form.eos_token_id = stop_token_ids(target.tokenizer, form)
        model = HFLM(pretrained=target.model, tokenizer=target.tokenizer, batch_size=batch_size or _BATCH_SIZE)
        found = lm_eval.simple_evaluate(
            model=model, tasks=list(tasks.names), task_manager=tasks.manager, limit=limit, log_samples=False
        )
    assert found is not None  # None is for other processes of a distributed evaluation
    names = [name for name in tasks.names if name in found["results"]]
    if len(names) < len(tasks.names):  # a tag is no result of its own
        names += [name for name in found["n-samples"] if name not in names]
    seconds = round((time.monotonic() - began) / len(names), 1)
    return [_part(name, found, seconds) for name in names]


def _part(name: str, found: dict[str, Any], seconds: float) -> dict[str, Any]:
    measures = {
        key: value for key, value in found["results"][name].items() if isinstance(value, (int, float)) and "," in key
    }
    samples = found["n-samples"].get(name)
    children = found.get("group_subtasks", {}).get(name, [])
    rows = samples["effective"] if samples else sum(found["n-samples"][child]["effective"] for child in children)
    accuracy, error = None, None
    for key, value in measures.items():
        measure, _, way = key.partition(",")
        if measure in _ACCURACIES and accuracy is None:
            accuracy, error = float(value), measures.get(f"{measure}_stderr,{way}")
    return {
        "task": f"{HARNESS}{name}",
        "scoring": "lm-eval",
        "rows": rows,
        "accuracy": accuracy,
        "accuracy_standard_error": error,
        "unparsed": None,
        "unparsed_rate": None,
        "seconds": seconds,
        "measures": measures,
        "version": found.get("versions", {}).get(name),
        "predictions": None,
    }


@contextlib.contextmanager
def _as_data_errors(names: str) -> Iterator[None]:
    """Within the block, what a task raises is an error of that task: it is a program of its own."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DorakitError) or is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        kind = ResourceError if isinstance(error, ConnectionError) else DataError
        raise kind(f"{names}: lm-evaluation-harness stopped: {type(error).__name__}: {reason}") from error


@contextlib.contextmanager
def _on_stderr(*, quiet: bool) -> Iterator[None]:
    """Within the block nothing is printed to stdout, and with `quiet` no bar to stderr either."""
    with contextlib.ExitStack() as stack:
        if quiet:
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield
