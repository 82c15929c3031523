"""The rows of a task, answered: generated and judged, or chosen by likelihood; each answer is kept as it comes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

from dorakit import __version__
from dorakit.data.encoder import Encoder
from dorakit.data.tokens import Question
from dorakit.errors import ModelError
from dorakit.evaluation.generation import Prediction, judged
from dorakit.evaluation.likelihood import choose_options
from dorakit.evaluation.metrics import option_judge
from dorakit.evaluation.tasks.kept import KeptAnswers
from dorakit.evaluation.tasks.rows import TaskRows
from dorakit.model.generate import check_prompts, generate_ids
from dorakit.model.stops import stop_token_ids
from dorakit.parallel.world import World
from dorakit.progress import progress, say
from dorakit.target import Target

# Rows at once; with beams each is several sequences.
_BATCH_SIZES = {"beam": 8, "greedy": 16, "logprob": 8}
_VERSIONS = ("torch", "transformers", "tokenizers")


def questions_of(target: Target, rows: TaskRows) -> list[Question]:
    """The rows' prompts as token ids: BOS first where the tokenizer has the habit, and no chat template."""
    ids = Encoder(target.tokenizer).beginnings([passage.prompt for passage in rows.passages])
    return [
        Question(prompt.tolist(), passage.answer, passage.row, passage.prompt)
        for prompt, passage in zip(ids, rows.passages, strict=True)
    ]


def check_lengths(target: Target, rows: TaskRows, questions: Sequence[Question]) -> None:
    """Refuse rows that the model cannot answer, before any is.

    Raises:
        ModelError: A row is longer than the model has positions.
    """
    more = 1 if rows.scoring == "logprob" else rows.task.max_new_tokens
    for question in questions:
        try:
            check_prompts(target.model, [question.prompt_ids], more)
        except ModelError as error:
            raise ModelError(f"{question.row}: {error}") from None


def settings_of(target: Target, rows: TaskRows) -> dict[str, Any]:
    """All that an answer depends on, but weights, row and the number of rows in a batch."""
    task, model = rows.task, target.model
    if rows.scoring == "logprob":
        form: dict[str, Any] = {"response": task.response, "options": list(task.options)}
    else:
        stops = sorted(stop_token_ids(target.tokenizer, model.generation_config))
        form = {"num_beams": task.num_beams, "max_new_tokens": task.max_new_tokens, "stop_ids": stops}
        form |= {"pattern": task.pattern.pattern, "takes": task.takes, "part": task.part, "metric": task.metric}
    return {
        "task": task.name,
        "scoring": rows.scoring,
        **form,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "attention": str(getattr(model.config, "_attn_implementation", "")),
        "versions": {"dorakit": __version__, **{name: metadata.version(name) for name in _VERSIONS}},
    }


def answer_rows(
    target: Target,
    rows: TaskRows,
    questions: Sequence[Question],
    kept: KeptAnswers,
    batch_size: int | None,
    world: World,
    *,
    quiet: bool,
) -> None:
    """Answer the rows that `kept` has no answer for, and add each answer to it: on every rank, whoever gave it."""
    rest = [number for number in range(len(questions)) if number not in kept.found]
    size = batch_size or _BATCH_SIZES[rows.scoring]
    if rest and rows.scoring == "logprob":
        _choose(target, rows, questions, rest, kept, size, world, quiet=quiet)
    elif rest:
        _generate(target, rows, questions, rest, kept, size, world, quiet=quiet)


def _generate(
    target: Target,
    rows: TaskRows,
    questions: Sequence[Question],
    rest: Sequence[int],
    kept: KeptAnswers,
    batch_size: int,
    world: World,
    *,
    quiet: bool,
) -> None:
    task = rows.task
    order = sorted(rest, key=lambda number: -len(questions[number].prompt_ids))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def of_batch(chosen: Sequence[int]) -> list[dict[str, Any]]:
        answers = generate_ids(
            target.model,
            target.tokenizer,
            [questions[number].prompt_ids for number in chosen],
            max_new_tokens=task.max_new_tokens,
            batch_size=batch_size,
            num_beams=task.num_beams,
        )
        return [
            judged(questions[number], new, target.tokenizer, task.judge, max_new_tokens=task.max_new_tokens).as_dict()
            for number, new in zip(chosen, answers, strict=True)
        ]

    last, done = time.monotonic(), 0
    with progress(task.name, len(order), quiet=quiet) as tell:
        for a_round in world.in_rounds(batches, of_batch):
            now, num_answers = time.monotonic(), sum(len(chosen) for chosen, _ in a_round)
            for chosen, predictions in a_round:
                for number, fields in zip(chosen, predictions, strict=True):
                    kept.add(number, Prediction(**fields), (now - last) / num_answers)
            kept.flush()
            last, done = now, done + num_answers
            tell(done)


def _choose(
    target: Target,
    rows: TaskRows,
    questions: Sequence[Question],
    rest: Sequence[int],
    kept: KeptAnswers,
    batch_size: int,
    world: World,
    *,
    quiet: bool,
) -> None:
    options, response = list(rows.task.options), rows.task.response
    last = time.monotonic()

    def keep(place: int, prediction: Prediction) -> None:
        nonlocal last
        now = time.monotonic()  # the first answer of a round carries the time of all
        kept.add(rest[place], prediction, now - last)
        kept.flush()
        last = now

    say(f"{rows.task.name}:", quiet=quiet)
    choose_options(
        target.model,
        target.tokenizer,
        [replace(questions[n], answer=response.replace("{answer}", questions[n].answer)) for n in rest],
        option_judge(options),
        options=options,
        batch_size=batch_size,
        quiet=quiet,
        keep=keep,
        world=world,
    )
