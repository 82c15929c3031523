"""`evaluate_tasks`: accuracy of anything that a target may name, on tasks with a published protocol."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dorakit.evaluation.generation import ready_template_, summary
from dorakit.evaluation.harness import find_harness_tasks, measure_harness_tasks
from dorakit.evaluation.tasks.answering import answer_rows, check_lengths, questions_of, settings_of
from dorakit.evaluation.tasks.kept import KeptAnswers, finish, key_of, weights_digest
from dorakit.evaluation.tasks.rows import TaskRows, data_path, read_tasks
from dorakit.evaluation.tasks.table import HARNESS, check_processes
from dorakit.evaluation.written import beside, free_name, output_file
from dorakit.files import write_json
from dorakit.interruptions import explain_out_of_memory
from dorakit.parallel.environment import this_process
from dorakit.parallel.world import World, joined
from dorakit.place import find_target
from dorakit.progress import say
from dorakit.target import Target, open_target

if TYPE_CHECKING:
    from dorakit.recipe.schema import Recipe
    from dorakit.run import Run


@explain_out_of_memory("smaller at the same result: --batch-size 1")
def evaluate_tasks(
    target: str,
    names: str,
    *,
    scoring: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    base: bool = False,
    recipe: Recipe | None = None,
    batch_size: int | None = None,
    base_model: str | None = None,
    accept_changes: Sequence[str] = (),
    output: Path | str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure accuracy on tasks; the arguments are those of `evaluation.task.evaluate`, with `names` for its `task`.

    Answers are kept beside the result as they come. Where the same weights, rows and settings were measured before, in
    whole or in part, only the rest is answered. Of a target without a run, and without `output`, nothing is kept.
    Several ranks share the batches out; the first one writes, and all return the result.

    Returns:
        The result, as written. `accuracy` is the unweighted mean over `tasks`, each an object of its own.

    Raises:
        UsageError: An unknown task, a scoring that it has not, or no data.
        DataError: Rows that cannot be used.
        ModelError: The target cannot be loaded, or a row is longer than it has positions.
        RunError: Another evaluation writes the same result, or ranks have other weights or rows.
    """
    check_processes(names, this_process().size)
    quiet = quiet or not this_process().is_first
    harness = find_harness_tasks(names, data, scoring=scoring) if names.startswith(HARNESS) else None
    asked = read_tasks(names, data, scoring=scoring, limit=limit) if harness is None else []
    destination = output_file(output)
    run = find_target(target).run
    where = data_path(data)
    with joined() as world:  # before the model is loaded: each rank has a GPU of its own
        opened = open_target(
            target, recipe=recipe, base_only=base, base_model=base_model, accept_changes=accept_changes
        )
        ready_template_(opened)  # it tells which token ends an answer; no prompt goes through it
        for line in opened.notes:
            say(line, quiet=quiet)
        if destination is None and run is not None:
            scorings = dict.fromkeys(rows.scoring for rows in asked)
            destination = _place_in(run, [opened.variant, names, *scorings], limit, where)
        if harness is not None:
            parts = measure_harness_tasks(harness, opened, limit=limit, batch_size=batch_size, quiet=quiet)
            answers: list[KeptAnswers] = []
        else:
            parts, answers = _measure_all(opened, asked, destination, batch_size, world, quiet=quiet)
        result = {
            "target": target,
            "variant": opened.variant,
            "base": opened.base,
            "task": names,
            "data_path": where,
            "limit": limit,
            "tasks": parts,
            **mean(parts),
            "notes": opened.notes,
            "output": None if destination is None else str(destination),
        }
        if destination is not None:
            # The others wait, so that a disk that is full is not the first one's failure alone.
            world.from_first(partial(_write, destination, result, answers))
    return result


def mean(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The unweighted mean of tasks' accuracies with its standard error, and sums; None where a task has none."""
    accuracies = [part["accuracy"] for part in parts]
    errors = [part["accuracy_standard_error"] for part in parts]
    rows, unparsed = sum(part["rows"] for part in parts), [part["unparsed"] for part in parts]
    return {
        "rows": rows,
        "accuracy": None if None in accuracies else math.fsum(accuracies) / len(parts),
        "accuracy_standard_error": None if None in errors else math.hypot(*errors) / len(parts),
        "unparsed": None if None in unparsed else sum(unparsed),
        "unparsed_rate": None if None in unparsed else sum(unparsed) / rows,
        "unfinished": None if None in unparsed else sum(part["unfinished"] for part in parts),
        "seconds": round(sum(part["seconds"] for part in parts), 1),
    }


def _place_in(run: Run, parts: Sequence[str], limit: int | None, data: str | None) -> Path:
    """RUN/eval/VARIANT-TASKS-SCORING.json; of some rows only, a name of its own, so that it replaces no longer work."""
    stem = "-".join([*parts, *(() if limit is None else (f"first{limit}",))])
    return free_name(run.eval, [re.sub(r"[^\w.+-]", "-", stem.replace(",", "+").replace(" ", ""))], {"data_path": data})


def _measure_all(
    target: Target,
    asked: Sequence[TaskRows],
    destination: Path | None,
    batch_size: int | None,
    world: World,
    *,
    quiet: bool,
) -> tuple[list[dict[str, Any]], list[KeptAnswers]]:
    if destination is None:
        say("the answers are not kept; with --output, an evaluation that is stopped can go on", quiet=quiet)
    weights = "" if destination is None and world.size == 1 else weights_digest(target.model)
    world.agree({"the weights": weights})
    parts, answers = [], []
    for rows in asked:
        file = None if destination is None else beside(destination, rows.task.name if len(asked) > 1 else "")
        part, kept = _measure(target, rows, weights, file, batch_size, world, quiet=quiet)
        parts.append(part)
        answers.append(kept)
    return parts, answers


def _measure(
    target: Target,
    rows: TaskRows,
    weights: str,
    file: Path | None,
    batch_size: int | None,
    world: World,
    *,
    quiet: bool,
) -> tuple[dict[str, Any], KeptAnswers]:
    """One task's part of the result, and its answers."""
    questions = questions_of(target, rows)
    check_lengths(target, rows, questions)
    settings = settings_of(target, rows)
    kept = KeptAnswers([key_of(weights, settings, i, q.prompt_ids, q.answer) for i, q in enumerate(questions)])
    world.agree({f"rows and settings of {rows.task.name}": key_of(kept.keys)})
    with contextlib.ExitStack() as writing:
        if file is not None and world.is_first:
            writing.enter_context(kept.appending(_unfinished(file), before=file))
        kept.take(world.from_first(kept.as_list))
        reused = len(kept.found)
        if reused:
            say(f"{rows.task.name}: {reused} of {len(questions)} answers are there already, beside {file}", quiet=quiet)
        elif kept.stale:
            say(f"{rows.task.name}: the answers beside {file} are of other weights, rows or settings", quiet=quiet)
        answer_rows(target, rows, questions, kept, batch_size, world, quiet=quiet)
    found = [kept.found[number] for number in range(len(questions))]
    judged = summary([prediction for prediction, _ in found])
    part = {
        "task": rows.task.name,
        "scoring": rows.scoring,
        "data_path": rows.path,
        "rows": len(questions),
        **judged,
        "unparsed_rate": judged["unparsed"] / len(questions),
        "seconds": round(math.fsum(seconds for _, seconds in found), 1),
        "answered_before": reused,
        "settings": settings,
        "predictions": None if file is None else str(file),
    }
    return part, kept


def _write(destination: Path, result: dict[str, Any], answers: Sequence[KeptAnswers]) -> None:
    """All at the end: until then what an earlier evaluation wrote stays as it was."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    files = [Path(part["predictions"]) for part in result["tasks"] if part["predictions"]]
    for file, kept in zip(files, answers, strict=True):
        finish(file, kept)
    write_json(destination, result)
    for file in files:
        _unfinished(file).unlink()


def _unfinished(file: Path) -> Path:
    """Where answers lie until all are there."""
    return file.with_name(file.name.replace(".predictions.jsonl", ".unfinished.jsonl"))
