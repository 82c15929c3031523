"""Held-out rows of a recipe, as documents to take the loss of and as questions to answer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dorakit.data.rendering import template_date
from dorakit.data.sources import Row, like_first, read_rows
from dorakit.data.tokens import Document, Encoded, Question, encode, encode_prompts, encode_rows
from dorakit.errors import DataError, RunError
from dorakit.recipe.schema import Recipe, SourceSection
from dorakit.run import Run
from dorakit.words import counted


@dataclass
class HeldOut:
    """Rows to measure on.

    Attributes:
        name: A file name, or `validation`.
        path: Where the rows lie: an absolute path, or a hub id; None for rows held out of the training rows.
        split: The split that was asked for, of a data set.
        num_rows: Rows chosen.
        documents: As training would see them; fewer than the rows where some are too long.
        questions: One per row; empty unless asked for.
        notes: Lines to print and record.
    """

    name: str
    num_rows: int
    documents: list[Document]
    questions: list[Question]
    notes: list[str] = field(default_factory=list)
    path: str | None = None
    split: str | None = None


def file_rows(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    path: str,
    *,
    split: str | None = None,
    otherwise: str = "test",
    prompt: str | None = None,
    offset: int = 0,
    limit: int | None = None,
    as_questions: bool = False,
    run: Run | None = None,
) -> HeldOut:
    """Rows of a file or data set in the form of the recipe's first training source, with the date of `run` in their template.

    A relative path starts from data.root. Of a data set `split` is read; the split `otherwise`, where that is None.
    With `as_questions`, rows that have an answer and no text to train on are welcome: there is then no document.

    Raises:
        DataError: Rows that cannot be read or used.
    """
    source = like_first(recipe.data, path, split=split, prompt=prompt, offset=offset, limit=limit)
    seed, twin = recipe.training.seed, recipe.origin.is_twin
    rows, notes = read_rows(source, recipe.data.root, split=otherwise, seed=seed, twin=twin)
    place = Path(recipe.data.root, os.path.expanduser(path))
    held_out = HeldOut(Path(path).name, 0, [], [], list(notes), str(place.resolve()) if place.exists() else path, split)
    _add(held_out, rows, source, recipe, tokenizer, as_questions=as_questions, run=run)
    return held_out


def validation_rows(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    run: Run | None = None,
    prompt: str | None = None,
    offset: int = 0,
    limit: int | None = None,
    as_questions: bool = False,
) -> HeldOut:
    """The rows that training held out by data.validation; those of `run`, where one is given.

    `prompt` is instead of the sources' own.

    Raises:
        DataError: The recipe holds none out, or `offset` skips them all.
        RunError: The recipe and its data no longer give the rows that `run` was trained on.
    """
    validation = recipe.data.validation
    if validation.path is not None:
        held_out = file_rows(
            recipe,
            tokenizer,
            validation.path,
            split=validation.split,
            otherwise="validation",
            prompt=prompt,
            offset=offset,
            limit=limit,
            as_questions=as_questions,
            run=run,
        )
        held_out.name = "validation"
        return held_out
    if not (validation.fraction or validation.rows):
        raise DataError(
            "there are no rows to measure on: the recipe has neither evaluation.path nor data.validation\n"
            "  name a file with --data, or add one of them"
        )
    seed, twin = recipe.training.seed, recipe.origin.is_twin
    today = None if run is None else template_date(run)
    encoded = encode(recipe.data, tokenizer, seed=seed, twin=twin, today=today)
    held_out = HeldOut("validation", 0, [], [], [] if run is None else _check_unchanged(run, encoded))
    if offset >= len(encoded.held_out):
        raise DataError(
            f"evaluation.offset {offset} skips all of the {counted(len(encoded.held_out), 'validation row')}"
        )
    chosen = encoded.held_out[offset:][:limit]
    for index, source in enumerate(recipe.data.train):
        if prompt is not None and source.format == "instruction":
            source = source.model_copy(update={"prompt": prompt})
        rows = [row for origin, row in chosen if origin == index]
        if rows:
            _add(held_out, rows, source, recipe, tokenizer, as_questions=as_questions, run=run)
    return held_out


def settings_of(recipe: Recipe, rows: HeldOut, limit: int | None, *, of_recipe: bool) -> dict[str, Any]:
    """Facts by which two results are told apart; `rows` is a digest of the rows as the model sees them."""
    section = recipe.evaluation
    digest = hashlib.sha256()
    for document in rows.documents:
        digest.update(document.digest)
    for question in rows.questions:
        digest.update(json.dumps([question.prompt_ids, question.answer]).encode())
    is_judged = section.metric != "none"
    own_limit = section.limit if of_recipe else None
    return {
        "rows": digest.hexdigest()[:16],
        "offset": section.offset if of_recipe else 0,
        "limit": min((n for n in (limit, own_limit) if n is not None), default=None),
        "metric": section.metric,
        "options": section.options,
        "max_new_tokens": section.max_new_tokens if is_judged and section.metric != "option_likelihood" else None,
        "dtype": recipe.model.dtype,
        "attention": recipe.model.attention,
    }


def _check_unchanged(run: Run, encoded: Encoded) -> list[str]:
    """Refuse rows that another seed, recipe or file has drawn: the run may have been trained on them."""
    then = run.read("run.json").get("data", {}).get("fingerprint")
    what = f"whether the validation rows are those that {run.path} held out is not known"
    if then is None:
        return [f"{what}: its run.json has no fingerprint of the data"]
    if then == encoded.fingerprint:
        return []
    if encoded.date is not None and template_date(run) is None:
        return [f"{what}: the chat template writes the date, and the run did not keep that of its beginning"]
    raise RunError(
        f"the data of {run.path} changed since training, so the rows that it held out cannot be drawn again:\n"
        f"  then {then}\n  now  {encoded.fingerprint}\n"
        "  put files and settings (data, training.seed) back, or measure on rows of a file: --data FILE"
    )


def _add(
    held_out: HeldOut,
    rows: Sequence[Row],
    source: SourceSection,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    as_questions: bool,
    run: Run | None,
) -> None:
    today = None if run is None else template_date(run)
    held_out.num_rows += len(rows)
    if as_questions:
        held_out.questions += encode_prompts(rows, source, recipe.data, tokenizer, today=today)
    try:
        documents = encode_rows(rows, source, recipe.data, tokenizer, twin=recipe.origin.is_twin, today=today)
    except DataError as error:
        # Rows with an answer alone can be asked, not trained on. Without questions there would be nothing to measure.
        if not as_questions:
            raise
        held_out.notes.append(f"no loss of these rows: {str(error).splitlines()[0]}")
        return
    held_out.documents += documents
    if len(documents) < len(rows):
        held_out.notes.append(
            f"{len(rows) - len(documents)} of {len(rows)} rows are not in the loss: longer than data.max_seq_len "
            f"{recipe.data.max_seq_len}, or without a supervised token"
        )
