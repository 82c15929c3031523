"""`evaluate`: loss, perplexity and accuracy of anything that a target may name, on held-out rows."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dorakit.data.documents import check_documents_fit
from dorakit.data.precheck import check_test_rows
from dorakit.errors import Gate, GateError, ModelError, UsageError
from dorakit.evaluation.generation import Prediction, answer_questions, summary
from dorakit.evaluation.likelihood import choose_options
from dorakit.evaluation.metrics import judge_of
from dorakit.evaluation.perplexity import perplexity, row_losses
from dorakit.evaluation.rows import HeldOut, file_rows, settings_of, validation_rows
from dorakit.evaluation.taught import check_taught, expected_of, in_one_frame
from dorakit.evaluation.written import beside, losses_beside, output_file, place_of
from dorakit.files import write_json, write_whole
from dorakit.interruptions import explain_out_of_memory
from dorakit.model.generate import check_prompts
from dorakit.parallel.environment import this_process
from dorakit.parallel.world import World, joined
from dorakit.place import find_target
from dorakit.progress import say
from dorakit.recipe.schema import Recipe
from dorakit.run import Run
from dorakit.target import Target, open_target
from dorakit.training.device import as_found
from dorakit.training.resume import rows_trained_on
from dorakit.words import counted

NUM_SAMPLES = 5
_TAIL = 200


@as_found()
@explain_out_of_memory("smaller, with the same result up to rounding: --batch-size 1 --set training.micro_batch_size=1")
def evaluate(
    target: Run | Path | str,
    *,
    task: str | None = None,
    scoring: str | None = None,
    base: bool = False,
    data: str | None = None,
    limit: int | None = None,
    recipe: Recipe | None = None,
    batch_size: int | None = None,
    base_model: str | None = None,
    accept_changes: Sequence[str] = (),
    output: Path | str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure a run, an adapter or a model on test rows.

    With `task`, what is measured is accuracy by a published protocol (evaluation/tasks, evaluation/harness.py), and no
    recipe is needed. Else the rows are `data`, else the recipe's evaluation.path, else what data.validation held out. Loss
    and perplexity are over supervised tokens; with evaluation.metric set, answers are generated greedily, or chosen among
    options by their likelihood, and judged.

    Args:
        target: A run, an adapter directory, a model directory, or a base as in `model.base`.
        task: Names of tasks or groups, separated by commas; after "lm-eval:" those of lm-evaluation-harness.
        scoring: beam or logprob, where the tasks' options allow both.
        base: Measure the base without the adapter; for a run in mode full, the base that it began with.
        data: File or data set of rows, relative to the working directory. The recipe's offset and limit are not read.
            For tasks, a directory that holds theirs.
        limit: At most this many rows.
        recipe: Names rows and metric where the target belongs to no run; instead of the run's own where it does.
        batch_size: Rows per generation batch, instead of the recipe's.
        base_model: Base of an adapter directory, instead of the one that it names.
        accept_changes: Files of the target that may have changed since they were written, each DIRECTORY/FILE.
        output: File for the result. Without it, a result that belongs to a run goes to RUN/eval/NAME.json, or to a
            longer name where NAME.json was measured on other rows or with other settings. Predictions and the loss of
            each row go beside it, into NAME.predictions.jsonl and NAME.losses.jsonl.
        quiet: No progress, no notes.

    Returns:
        The result, as written; `output`, `predictions` and `losses` say where.

    Raises:
        UsageError: No recipe tells what rows to measure on, the target has no base, or `output` cannot be written.
        DataError: Rows that cannot be used, or expected answers that cannot be judged.
        ModelError: The target cannot be loaded, or a row is longer than it has positions.
        RunError: The rows that the run held out cannot be drawn again.
        GateError: The loss is not finite.
    """
    text = str(target.path if isinstance(target, Run) else target)
    if task is not None:
        from dorakit.evaluation.tasks.measure import evaluate_tasks

        return evaluate_tasks(
            text,
            task,
            scoring=scoring,
            data=data,
            limit=limit,
            base=base,
            recipe=recipe,
            batch_size=batch_size,
            base_model=base_model,
            accept_changes=accept_changes,
            output=output,
            quiet=quiet,
        )
    if scoring is not None:
        raise UsageError(f"--scoring {scoring} goes with --task; a recipe's rows are scored by its evaluation.metric")
    place = find_target(text)
    if recipe is None and "/" not in text:
        place.refuse_absent(hint="a model of the hub needs a recipe for its rows: --recipe FILE")
    if recipe is None and place.run is None:
        raise UsageError(
            f"{text} belongs to no run, so nothing says what rows to measure on\n  name a recipe: --recipe FILE"
        )
    destination = output_file(output)
    quiet = quiet or not this_process().is_first
    known = recipe if recipe is not None else place.run.recipe  # type: ignore[union-attr]
    tested = check_test_rows(known, None if data is None else os.path.abspath(os.path.expanduser(data)))
    check_taught(tested, known.evaluation)  # before the model is loaded
    with joined() as world:  # before the model is loaded: each rank has a GPU of its own
        opened = open_target(text, recipe=recipe, base_only=base, base_model=base_model, accept_changes=accept_changes)
        assert opened.recipe is not None
        rows = rows_to_measure(opened.recipe, opened.tokenizer, run=opened.run, data=data, limit=limit)
        trained_on = None if opened.run is None else rows_trained_on(opened.run, rows.documents)
        if trained_on:
            rows.notes.append(f"{trained_on} of {len(rows.documents)} rows are in the training rows too")
        measured = {
            "data_path": rows.path,
            "data_split": rows.split,
            "settings": settings_of(opened.recipe, rows, limit, of_recipe=data is None),
        }
        if destination is None and place.run is not None:
            destination, lines = place_of(place.run.eval, opened.variant, rows.name, measured)
            rows.notes += lines
        for line in (*opened.notes, *rows.notes):
            say(line, quiet=quiet)
        started = time.monotonic()
        result, predictions, losses = _measure(opened, rows, batch_size, world, quiet=quiet)
    result = {
        "target": text,
        "variant": opened.variant,
        "base": opened.base,
        "data": rows.name,
        **measured,
        "rows_trained_on": trained_on,
        **result,
        "seconds": round(time.monotonic() - started, 1),
        "notes": [*opened.notes, *rows.notes],
    }
    if not world.is_first:
        return result
    result["output"] = None if destination is None else str(destination)
    result["predictions"] = str(beside(destination)) if destination is not None and predictions else None
    result["losses"] = str(losses_beside(destination)) if destination is not None and losses else None
    if destination is not None:
        _write(destination, result, predictions, losses)
    return result


def rows_to_measure(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    run: Run | None = None,
    data: str | None = None,
    limit: int | None = None,
) -> HeldOut:
    """The rows that a recipe is measured on: `data`, else evaluation.path, else what data.validation held out.

    Raises:
        DataError: There are none, or they cannot be used.
        RunError: The rows that `run` held out cannot be drawn again.
    """
    section = recipe.evaluation
    path: str | None
    asked: dict[str, Any] = {"prompt": section.prompt, "as_questions": section.metric != "none"}
    unread = []
    if data is not None:
        path, asked["limit"] = os.path.abspath(os.path.expanduser(data)), limit
        for key in ("offset", "limit"):
            if value := getattr(section, key):
                unread.append(f"evaluation.{key} {value} (of the recipe's own rows, not of --data; see --limit)")
    else:
        path, asked["offset"] = section.path, section.offset
        asked["limit"] = min((n for n in (limit, section.limit) if n is not None), default=None)
    if path is None:
        rows = validation_rows(recipe, tokenizer, run=run, **asked)
    else:
        rows = file_rows(recipe, tokenizer, path, split=section.split, run=run, **asked)
    if section.split is not None and (path is None or Path(str(rows.path)).is_file()):
        unread.append(f"evaluation.split {section.split} ({rows.name} has no splits)")
    rows.notes += [f"not read: {setting}" for setting in unread]
    rows.notes += check_taught(rows.questions, section)
    rows.questions = [replace(question, answer=expected_of(question, section)) for question in rows.questions]
    rows.questions, lines = in_one_frame(rows.questions, section)
    rows.notes += lines
    return rows


def _measure(
    target: Target, rows: HeldOut, batch_size: int | None, world: World, *, quiet: bool
) -> tuple[dict[str, Any], list[Prediction], list[dict[str, Any]]]:
    """The figures; the judged answers; the loss of each row."""
    assert target.recipe is not None
    section = target.recipe.evaluation
    chooses = section.metric == "option_likelihood"
    check_documents_fit(rows.documents, target.model.config)
    for question in rows.questions:
        try:
            check_prompts(target.model, [question.prompt_ids], 1 if chooses else section.max_new_tokens)
        except ModelError as error:
            raise ModelError(f"{question.row}: {error}") from None
    loss, tokens = None, sum(document.num_labels for document in rows.documents)
    losses: list[dict[str, Any]] = []
    if rows.documents:
        size = target.recipe.training.micro_batch_size
        some = world.share(rows.documents)
        sums = world.collected(
            row_losses(target.model, target.tokenizer, some, micro_batch_size=size, quiet=quiet) if some else []
        )
        loss = math.fsum(sums) / tokens
        if not math.isfinite(loss):
            raise GateError(
                f"the loss over {counted(tokens, 'token')} of {rows.name} is {loss}: the model computes no finite number",
                Gate("loss", loss),
            )
        losses = [
            {"row": document.row, "digest": document.digest.hex(), "tokens": document.num_labels, "nats": nats}
            for document, nats in zip(rows.documents, sums, strict=True)
        ]
    result: dict[str, Any] = {
        "rows": rows.num_rows,
        "tokens": tokens,
        "loss": loss,
        "perplexity": None if loss is None else perplexity(loss),
        "metric": section.metric,
        "accuracy": None,
        "accuracy_standard_error": None,
        "correct": None,
        "answered": 0,
        "unparsed": None,
        "unfinished": None,
        "samples": [],
    }
    judge = judge_of(section)
    if judge is None:
        return result, [], losses
    whose = target.model, target.tokenizer
    how: dict[str, Any] = {"batch_size": batch_size or section.batch_size, "quiet": quiet}
    if chooses:
        predictions = choose_options(*whose, rows.questions, judge, options=section.options, world=world, **how)
    else:
        share = world.share(rows.questions)
        own = answer_questions(*whose, share, judge, max_new_tokens=section.max_new_tokens, **how) if share else []
        predictions = [Prediction(**fields) for fields in world.collected([answer.as_dict() for answer in own])]
    result |= summary(predictions)
    result["samples"] = [
        {"prompt_tail": p.prompt[-_TAIL:], "answer": p.answer, "generated": p.generated, "correct": p.correct}
        for p in predictions[:NUM_SAMPLES]
    ]
    return result, predictions, losses


def _write(
    path: Path, result: dict[str, Any], predictions: Sequence[Prediction], losses: Sequence[dict[str, Any]]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {beside(path): [prediction.as_dict() for prediction in predictions], losses_beside(path): losses}
    for file, entries in rows.items():
        if entries:
            write_whole(file, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
    write_json(path, result)
