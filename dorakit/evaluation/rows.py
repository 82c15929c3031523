"""Held-out rows of a recipe, as documents to take the loss of and as questions to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from dorakit.data.sources import Row, like_first, read_rows
from dorakit.data.tokens import Document, Question, encode, encode_prompts, encode_rows
from dorakit.errors import DataError
from dorakit.recipe.schema import Recipe, SourceSection


@dataclass
class HeldOut:
    """Rows to measure on.

    Attributes:
        name: A file name, or `validation`.
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


def file_rows(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    path: str,
    *,
    prompt: str | None = None,
    offset: int = 0,
    limit: int | None = None,
    as_questions: bool = False,
) -> HeldOut:
    """Rows of a file in the form of the recipe's first training source; a relative path starts from data.root.

    With `as_questions`, rows that have an answer and no text to train on are welcome: there is then no document.

    Raises:
        DataError: Rows that cannot be read or used.
    """
    source = like_first(recipe.data, path, prompt=prompt, offset=offset, limit=limit)
    rows, notes = read_rows(source, recipe.data.root, seed=recipe.training.seed, twin=recipe.origin.is_twin)
    held_out = HeldOut(Path(path).name, 0, [], [], list(notes))
    _add(held_out, rows, source, recipe, tokenizer, as_questions=as_questions)
    return held_out


def validation_rows(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, limit: int | None = None, as_questions: bool = False
) -> HeldOut:
    """The rows that training held out by data.validation.

    Raises:
        DataError: The recipe holds none out.
    """
    validation = recipe.data.validation
    if validation.path is not None:
        held_out = file_rows(recipe, tokenizer, validation.path, limit=limit, as_questions=as_questions)
        held_out.name = "validation"
        return held_out
    if not (validation.fraction or validation.rows):
        raise DataError(
            "there are no rows to measure on: the recipe has neither evaluation.path nor data.validation\n"
            "  name a file with --data, or add one of them"
        )
    seed, twin = recipe.training.seed, recipe.origin.is_twin
    chosen = encode(recipe.data, tokenizer, seed=seed, twin=twin).held_out[:limit]
    held_out = HeldOut("validation", 0, [], [])
    for index, source in enumerate(recipe.data.train):
        rows = [row for origin, row in chosen if origin == index]
        if rows:
            _add(held_out, rows, source, recipe, tokenizer, as_questions=as_questions)
    return held_out


def _add(
    held_out: HeldOut,
    rows: Sequence[Row],
    source: SourceSection,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    as_questions: bool,
) -> None:
    held_out.num_rows += len(rows)
    if as_questions:
        held_out.questions += encode_prompts(rows, source, recipe.data, tokenizer)
    try:
        documents = encode_rows(rows, source, recipe.data, tokenizer, twin=recipe.origin.is_twin)
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
