"""Samples to documents: token ids, and a mask over the tokens that carry the loss. Also the choice of held-out rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from dorakit.data.batches import IGNORE_INDEX
from dorakit.data.chat import ChatRenderer, install_template_
from dorakit.data.encoder import Encoder, Ids, Mask
from dorakit.data.formats import Conversation, Passage, Sample, read_samples
from dorakit.data.order import VALIDATION, shuffled
from dorakit.data.sources import Row, like_first, num_copies, read_rows
from dorakit.errors import DataError
from dorakit.recipe.schema import DataSection, SourceSection

# The tiny bases of --twin have a token per byte, where other tokenizers have one per three or four.
_TWIN_STRETCH = 4


@dataclass(frozen=True, eq=False)
class Document:
    """One training document: ids (T,) int32, mask (T,) bool (True: the token carries loss), and the place of its row.

    The first token never carries loss: there is nothing to predict it from.
    """

    input_ids: Ids
    mask: Mask
    row: str

    @property
    def labels(self) -> Ids:
        """The ids where the mask is true, -100 elsewhere; unshifted."""
        return np.where(self.mask, self.input_ids, np.int32(IGNORE_INDEX)).astype(np.int32)

    @property
    def num_labels(self) -> int:
        """Number of tokens that carry loss."""
        return int(self.mask.sum())

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Question:
    """A prompt to answer. `text` is the prompt as text, `answer` what to compare with."""

    prompt_ids: list[int]
    answer: str
    row: str
    text: str


@dataclass(frozen=True)
class Encoded:
    """All documents of a recipe. `notes` are lines to print and record, `fingerprint` a sha256 over ids and masks."""

    train: list[Document]
    validation: list[Document]
    notes: list[str]
    fingerprint: str


@dataclass
class _Tally:
    """What became of the rows that did not simply become documents."""

    over: list[str] = field(default_factory=list)
    unsupervised: list[str] = field(default_factory=list)
    cut_bare: int = 0
    open_ended: int = 0


def encode(data: DataSection, tokenizer: PreTrainedTokenizerBase, *, seed: int, twin: bool = False) -> Encoded:
    """Read and tokenise all of a recipe's rows.

    Held-out rows are chosen among the distinct rows, before weights repeat any, so that none is trained on as well; the
    choice depends on the seed and the number of rows alone.

    Args:
        data: The recipe's section.
        tokenizer: The base's; `data.chat_template` is put into it.
        seed: Of the choice of rows.
        twin: Make rows where data is absent, and allow for a tokenizer with a token per byte.

    Raises:
        DataError: Rows that cannot be used, or nothing to learn from.
    """
    install_template_(tokenizer, data)
    notes: list[str] = []
    sources = []
    for index, source in enumerate(data.train):
        rows, remarks = read_rows(source, data.root, seed=seed, twin=twin)
        copies = num_copies(len(rows), source.weight, seed, index)
        if not copies.any():
            raise DataError(f"{source.path}: weight {source.weight} of {len(rows)} rows leaves none")
        sources.append((source, rows, copies))
        notes += remarks or [_rows_note(source, len(rows), int(copies.sum()))]
    num_rows = sum(int((copies > 0).sum()) for _, _, copies in sources)
    wanted = data.validation.rows or round(data.validation.fraction * num_rows) or int(data.validation.fraction > 0)
    if twin and wanted >= num_rows:
        notes.append(f"--twin: {num_rows // 4} validation rows instead of {wanted}, for there are only {num_rows} rows")
        wanted = num_rows // 4
    held_out = _held_out(num_rows, wanted, seed)

    train: list[Document] = []
    validation: list[Document] = []
    seen = 0
    tally = _Tally()
    for source, rows, copies in sources:
        taken = np.flatnonzero(copies)
        documents = _documents([rows[i] for i in taken.tolist()], source, data, tokenizer, twin, tally)
        for index, document in zip(taken.tolist(), documents, strict=True):
            if document is not None and seen in held_out:
                validation.append(document)
            elif document is not None:
                train += [document] * int(copies[index])
            seen += 1
    notes += _tally_notes(tally, seen, data, tokenizer, twin)
    if not train:
        raise _nothing_left(tally, data, "training")
    if data.validation.path is not None:
        source = like_first(data, data.validation.path)
        rows, remarks = read_rows(source, data.root, seed=seed, twin=twin)
        tally = _Tally()
        validation = [d for d in _documents(rows, source, data, tokenizer, twin, tally) if d is not None]
        notes += remarks or [_rows_note(source, len(rows), len(rows))]
        notes += [f"{source.path}: {line}" for line in _tally_notes(tally, len(rows), data, tokenizer, twin)]
    if not validation and (held_out or data.validation.path is not None):
        raise _nothing_left(tally, data, "validation")
    notes += _overlap(train, validation)
    return Encoded(train, validation, notes, _fingerprint(train, validation))


def encode_rows(
    rows: Sequence[Row],
    source: SourceSection,
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    *,
    twin: bool = False,
) -> list[Document]:
    """Tokenise rows as training does; overlong ones go by `data.overlength`, so there may be fewer documents.

    Raises:
        DataError: Rows that cannot be used, or no supervised token in any of them.
    """
    install_template_(tokenizer, data)
    tally = _Tally()
    documents = [d for d in _documents(rows, source, data, tokenizer, twin, tally) if d is not None]
    if not documents:
        raise _nothing_left(tally, data, "these")
    return documents


def encode_prompts(
    rows: Sequence[Row], source: SourceSection, data: DataSection, tokenizer: PreTrainedTokenizerBase
) -> list[Question]:
    """Tokenise rows up to where the (last) answer starts, generation prompt included.

    Raises:
        DataError: Rows that cannot be used, or of format text, which asks nothing.
    """
    if source.format == "text":
        raise DataError(f"{source.path}: rows of format text have no prompts to answer; set evaluation.metric: none")
    install_template_(tokenizer, data)
    samples = read_samples(rows, source, evaluation=True)
    encoder = Encoder(tokenizer)
    if any(isinstance(sample, Conversation) for sample in samples):
        renderer = ChatRenderer(tokenizer, data.train_on)
        texts = [renderer.prompt(sample) for sample in samples if isinstance(sample, Conversation)]
        ids = encoder.texts(texts)  # the template writes BOS itself
    else:
        texts = [sample.prompt for sample in samples if isinstance(sample, Passage)]
        ids = encoder.beginnings(texts)
    return [
        Question(prompt.tolist(), sample.answer, sample.row, text)
        for prompt, sample, text in zip(ids, samples, texts, strict=True)
    ]


def _documents(
    rows: Sequence[Row],
    source: SourceSection,
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    twin: bool,
    tally: _Tally,
) -> list[Document | None]:
    """One document per row, or None where nothing of the row is left."""
    samples = read_samples(rows, source)
    encoder = Encoder(tokenizer)
    conversations = [sample for sample in samples if isinstance(sample, Conversation)]
    if conversations:
        pairs = _encode_conversations(conversations, ChatRenderer(tokenizer, data.train_on), encoder, tally)
    else:
        passages = [sample for sample in samples if isinstance(sample, Passage)]
        pairs = _encode_passages(passages, encoder, train_on_all=data.train_on == "all")
    limit = data.max_seq_len * (_TWIN_STRETCH if twin else 1)
    return [_fitted(ids, mask, sample, data, limit, tally) for (ids, mask), sample in zip(pairs, samples, strict=True)]


def _encode_passages(passages: list[Passage], encoder: Encoder, *, train_on_all: bool) -> list[tuple[Ids, Mask]]:
    stop = np.asarray([encoder.eos_id], dtype=np.int32)
    prompts = encoder.beginnings([passage.prompt for passage in passages])
    if any(passage.prompt for passage in passages):
        completions = encoder.continuations([passage.completion for passage in passages])
    else:
        completions = encoder.texts([passage.completion for passage in passages])
    pairs = []
    for prompt, completion in zip(prompts, completions, strict=True):
        if len(prompt) and len(completion) and len(prompt) == len(encoder.lead) and completion[0] == prompt[0]:
            prompt = prompt[:0]  # a text that spells its own BOS
        ends = len(completion) > 0 and completion[-1] == encoder.eos_id
        ids = np.concatenate([prompt, completion, stop[:0] if ends else stop])
        mask = np.ones(len(ids), dtype=bool)
        mask[: 0 if train_on_all else len(prompt)] = False
        pairs.append((ids, mask))
    return pairs


def _encode_conversations(
    conversations: list[Conversation], renderer: ChatRenderer, encoder: Encoder, tally: _Tally
) -> list[tuple[Ids, Mask]]:
    rendered = [renderer.document(conversation) for conversation in conversations]
    pairs = encoder.marked([one.text for one in rendered], [one.spans for one in rendered])
    for index, one in enumerate(rendered):
        if one.is_open:
            ids, mask = pairs[index]
            tally.open_ended += 1
            pairs[index] = (np.append(ids, np.int32(encoder.eos_id)), np.append(mask, True))
    return pairs


def _fitted(ids: Ids, mask: Mask, sample: Sample, data: DataSection, limit: int, tally: _Tally) -> Document | None:
    mask[:1] = False
    supervised = bool(mask.any())
    if len(ids) > limit:
        if data.overlength == "error":
            raise DataError(
                f"{sample.row}: {len(ids)} tokens, data.max_seq_len is {limit}.\n"
                "  raise it, or set data.overlength to drop or truncate"
            )
        tally.over.append(sample.row)
        if data.overlength == "drop":
            return None
        ids, mask = ids[:limit].copy(), mask[:limit].copy()
        if supervised and not mask.any():
            tally.cut_bare += 1
            return None
    if not supervised:
        tally.unsupervised.append(sample.row)
        return None
    return Document(ids, mask, sample.row)


def _held_out(num_rows: int, wanted: int, seed: int) -> set[int]:
    if 0 < num_rows <= wanted:
        raise DataError(f"data.validation holds out {wanted} rows of {num_rows}: nothing is left to train on")
    return set(shuffled(num_rows, seed, VALIDATION)[:wanted].tolist())


def _rows_note(source: SourceSection, num_rows: int, num_taken: int) -> str:
    weighted = f", {num_taken} with weight {source.weight:g}" if num_taken != num_rows else ""
    return f"{source.path}: {num_rows} rows{weighted}"


def _tally_notes(
    tally: _Tally, total: int, data: DataSection, tokenizer: PreTrainedTokenizerBase, twin: bool
) -> list[str]:
    notes = []
    if twin:
        notes.append(f"--twin: a token per byte, so documents may have {_TWIN_STRETCH} x {data.max_seq_len} tokens")
    if tally.over:
        what = "dropped" if data.overlength == "drop" else "cut to it"
        notes.append(f"{len(tally.over)} of {total} documents are longer than {data.max_seq_len} tokens: {what}")
    if tally.cut_bare:
        notes.append(f"{tally.cut_bare} of them had no supervised token left: dropped")
    if tally.unsupervised:
        first = ", ".join(tally.unsupervised[:3])
        notes.append(f"{len(tally.unsupervised)} of {total} documents have no supervised token: dropped ({first})")
    if tally.open_ended:
        notes.append(
            f"the chat template ends {tally.open_ended} conversations without a stop token: "
            f"{tokenizer.eos_token} was appended and is trained"
        )
    return notes


def _nothing_left(tally: _Tally, data: DataSection, which: str) -> DataError:
    if tally.unsupervised and len(tally.unsupervised) >= len(tally.over):
        first = ", ".join(tally.unsupervised[:3])
        return DataError(
            f"no supervised token in any of {which} rows, the first are {first}: nothing would be learned.\n"
            "  conversations need a turn of the assistant; or set data.train_on: all"
        )
    first = ", ".join(tally.over[:3])
    return DataError(
        f"none of {which} rows fits into data.max_seq_len = {data.max_seq_len} tokens, the first are {first}.\n"
        "  raise data.max_seq_len"
    )


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
