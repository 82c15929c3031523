"""A recipe's rows, read and tokenised: documents to train on, rows held out, and prompts to answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from transformers import PreTrainedTokenizerBase

from dorakit.data.chat import ChatRenderer, install_template_, try_template_of
from dorakit.data.documents import TWIN_STRETCH, Document, Tally, make_documents
from dorakit.data.encoder import Encoder
from dorakit.data.formats import Conversation, Passage, read_samples
from dorakit.data.order import VALIDATION, shuffled
from dorakit.data.sources import Row, like_first, num_copies, read_rows
from dorakit.data.unread import unread_fields
from dorakit.errors import DataError
from dorakit.recipe.schema import DataSection, SourceSection
from dorakit.words import counted

__all__ = ["Document", "Encoded", "Question", "encode", "encode_prompts", "encode_rows"]


@dataclass(frozen=True)
class Question:
    """A prompt to answer. `text` is the prompt as text, `answer` what to compare with, `reply` the text that is trained."""

    prompt_ids: list[int]
    answer: str
    row: str
    text: str
    reply: str = ""


@dataclass(frozen=True)
class Encoded:
    """All documents of a recipe.

    Attributes:
        train: A document as often as its row is trained on.
        validation: Held-out documents.
        held_out: For each validation document the index of its training source and its row; empty where validation
            rows have a file of their own.
        notes: Lines to print and record.
        fingerprint: A sha256 over ids and masks.
        date: What the chat template was told to be today; None where it does not ask.
    """

    train: list[Document]
    validation: list[Document]
    held_out: list[tuple[int, Row]]
    notes: list[str]
    fingerprint: str
    date: datetime | None


def encode(
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    twin: bool = False,
    today: datetime | None = None,
) -> Encoded:
    """Read and tokenise all of a recipe's rows.

    Held-out rows are chosen among the distinct rows, before weights repeat any, so that none is trained on as well; the
    choice depends on the seed and the number of rows alone.

    Args:
        data: The recipe's section.
        tokenizer: The base's; `data.chat_template` is put into it.
        seed: Of the choice of rows.
        twin: Make rows where data is absent, and allow for a tokenizer with a token per byte.
        today: What a chat template is told that asks for the date; now where it is None.

    Raises:
        DataError: Rows that cannot be used, or nothing to learn from.
        ResourceError: A hub data set cannot be reached.
    """
    install_template_(tokenizer, data)
    today = today or datetime.now().replace(microsecond=0)
    notes = (
        [f"--twin: a token per byte, so documents may have {TWIN_STRETCH} x {data.max_seq_len} tokens"] if twin else []
    )
    taken: list[tuple[SourceSection, list[Row], list[int]]] = []
    for index, source in enumerate(data.train):
        rows, remarks = read_rows(source, data.root, seed=seed, twin=twin)
        copies = num_copies(len(rows), source.weight, seed, index)
        if not copies.any():
            raise DataError(f"{source.path}: weight {source.weight} of {counted(len(rows), 'row')} leaves none")
        kept = np.flatnonzero(copies)
        taken.append((source, [rows[i] for i in kept.tolist()], copies[kept].tolist()))
        notes += remarks
        if (num_taken := int(copies.sum())) != len(rows):
            notes.append(f"{source.path}: {counted(len(rows), 'row')}, {num_taken:,} with weight {source.weight:g}")
    num_rows = sum(len(rows) for _, rows, _ in taken)
    chosen, remarks = choose_held_out(data, num_rows, seed, twin=twin)
    notes += remarks

    train: list[Document] = []
    validation: list[Document] = []
    held_out: list[tuple[int, Row]] = []
    seen = 0
    tally = Tally()
    for index, (source, rows, counts) in enumerate(taken):
        documents = make_documents(read_samples(rows, source), data, tokenizer, tally, twin=twin, today=today)
        notes += unread_fields(rows, source, str(tokenizer.chat_template))
        for document, row, count in zip(documents, rows, counts, strict=True):
            if document is not None and seen in chosen:
                validation.append(document)
                held_out.append((index, row))
            elif document is not None:
                train += [document] * count
            seen += 1
    notes += tally.notes(num_rows, data, tokenizer)
    if not train:
        raise tally.nothing_left(data, "training")
    if chosen and not validation:
        raise tally.nothing_left(data, "validation")
    if data.validation.path is not None:
        validation, remarks = _validation_file(data, data.validation.path, tokenizer, seed, twin=twin, today=today)
        notes += remarks
    notes += _overlap(train, validation)
    fingerprint = _fingerprint(train, validation)
    return Encoded(train, validation, held_out, notes, fingerprint, today if tally.is_dated(tokenizer) else None)


def encode_rows(
    rows: Sequence[Row],
    source: SourceSection,
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    *,
    twin: bool = False,
    today: datetime | None = None,
) -> list[Document]:
    """Tokenise rows as training does; overlong ones go by `data.overlength`, so there may be fewer documents.

    `today` is the date given to chat templates that ask for it.

    Raises:
        DataError: Rows that cannot be used, or no supervised token in any of them.
    """
    install_template_(tokenizer, data)
    tally = Tally()
    documents = make_documents(read_samples(rows, source), data, tokenizer, tally, twin=twin, today=today)
    kept = [document for document in documents if document is not None]
    if not kept:
        raise tally.nothing_left(data, source.path)
    return kept


def encode_prompts(
    rows: Sequence[Row],
    source: SourceSection,
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    *,
    today: datetime | None = None,
) -> list[Question]:
    """Tokenise rows up to where the (last) answer starts, generation prompt included; `today` as in `encode_rows`.

    Raises:
        DataError: Rows or a chat template that cannot be used, or rows of format text, which asks nothing.
    """
    if source.format == "text":
        raise DataError(f"{source.path}: rows of format text have no prompts to answer; set evaluation.metric: none")
    install_template_(tokenizer, data)
    try_template_of(tokenizer, data)  # of any format: generation looks up in it which token ends a turn
    samples = read_samples(rows, source, evaluation=True)
    encoder = Encoder(tokenizer)
    if any(isinstance(sample, Conversation) for sample in samples):
        renderer = ChatRenderer(tokenizer, data, today=today)
        talks = [sample for sample in samples if isinstance(sample, Conversation)]
        texts = [renderer.prompt(talk) for talk in talks]
        replies = [renderer.reply(talk, text) for talk, text in zip(talks, texts, strict=True)]
        ids = encoder.texts(texts)  # the template writes BOS itself
    else:
        texts = [sample.prompt for sample in samples if isinstance(sample, Passage)]
        replies = [sample.reply for sample in samples]
        ids = encoder.beginnings(texts)
    return [
        Question(prompt.tolist(), sample.answer, sample.row, text, reply)
        for prompt, sample, text, reply in zip(ids, samples, texts, replies, strict=True)
    ]


def choose_held_out(data: DataSection, num_rows: int, seed: int, *, twin: bool = False) -> tuple[set[int], list[str]]:
    """Which of all sources' distinct rows are held out, by their index, and lines to print and record.

    Raises:
        DataError: Nothing would be left to train on.
    """
    wanted = data.validation.rows
    if data.validation.fraction > 0:
        wanted = max(1, round(data.validation.fraction * num_rows))
    notes = []
    if wanted >= num_rows and wanted > 0:
        if not twin:
            raise DataError(
                f"data.validation holds out {counted(wanted, 'row')} of {num_rows}: nothing is left to train on"
            )
        notes = [
            f"--twin: {num_rows // 4} validation rows instead of {wanted}, for there are only {counted(num_rows, 'row')}"
        ]
        wanted = num_rows // 4
    return set(shuffled(num_rows, seed, VALIDATION)[:wanted].tolist()), notes


def _validation_file(
    data: DataSection, path: str, tokenizer: PreTrainedTokenizerBase, seed: int, *, twin: bool, today: datetime
) -> tuple[list[Document], list[str]]:
    source = like_first(data, path, split=data.validation.split)
    rows, remarks = read_rows(source, data.root, split="validation", seed=seed, twin=twin)
    tally = Tally()
    documents = make_documents(read_samples(rows, source), data, tokenizer, tally, twin=twin, today=today)
    kept = [document for document in documents if document is not None]
    if not kept:
        raise tally.nothing_left(data, "validation")
    notes = remarks + unread_fields(rows, source, str(tokenizer.chat_template))
    return kept, notes + [f"{path}: {line}" for line in tally.notes(len(rows), data, tokenizer)]


def _overlap(train: list[Document], validation: list[Document]) -> list[str]:
    trained = {document.input_ids.tobytes() for document in train} if validation else set()
    same = sum(document.input_ids.tobytes() in trained for document in validation)
    return [f"{same} of {len(validation)} validation documents are in the training rows too"] if same else []


def _fingerprint(train: list[Document], validation: list[Document]) -> str:
    digest = hashlib.sha256()
    for documents in (train, validation):
        digest.update(len(documents).to_bytes(8, "little"))
        for document in documents:
            digest.update(len(document).to_bytes(8, "little"))
            digest.update(document.input_ids.astype("<i4").tobytes())
            digest.update(np.packbits(document.mask).tobytes())
    return digest.hexdigest()
