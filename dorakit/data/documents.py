"""Samples to documents: token ids, a mask over the tokens that carry the loss, and a tally of rows that do not fit."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from dorakit.data.chat import ChatRenderer
from dorakit.data.encoder import Encoder, Ids, Mask
from dorakit.data.formats import Conversation, Passage, Sample
from dorakit.data.kept_tokens import Counts, Pairs, kept_between_runs
from dorakit.data.left_out import says_anything
from dorakit.data.rendering import writes_date
from dorakit.errors import DataError, ModelError
from dorakit.recipe.schema import DataSection
from dorakit.words import counted

IGNORE_INDEX = -100
# The tiny bases of --twin have a token per byte, where other tokenizers have one per three or four.
TWIN_STRETCH = 4


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

    @property
    def digest(self) -> bytes:
        """Eight bytes that stand for ids and mask."""
        content = self.input_ids.astype("<i4").tobytes() + np.packbits(self.mask).tobytes()
        return hashlib.blake2b(content, digest_size=8).digest()

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass
class Tally:
    """What became of the rows that did not simply become documents: their places, or how many there were.

    `over` were longer than max_seq_len, of which `bare` had no supervised token left after the cut; `unsupervised` had
    none to begin with; `empty` answers have nothing but a stop token. `counts` are of what the chat template did:
    `conversations` went through it, `open_ended` ones got a stop token that it does not write, and `endless` turns before
    the last did not; `in_training_form` are those of training_form.py, and `greeting` those whose first turn is not
    trained on. `remarks` are lines about the making itself.
    """

    over: list[str] = field(default_factory=list)
    bare: int = 0
    unsupervised: list[str] = field(default_factory=list)
    empty: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)

    def notes(self, num_rows: int, data: DataSection, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Lines to print and record."""
        notes = list(self.remarks)
        if self.over:
            what = "dropped" if data.overlength == "drop" else "cut to it"
            notes.append(f"{len(self.over)} of {num_rows} documents are longer than {data.max_seq_len} tokens: {what}")
        if self.bare:
            notes.append(f"{self.bare} of them had no supervised token left: dropped")
        if self.unsupervised:
            first = ", ".join(self.unsupervised[:3])
            count = len(self.unsupervised)
            notes.append(f"{count} of {num_rows} documents have no supervised token: dropped ({first})")
        if self.empty:
            notes.append(f"{self.empty} answers are empty: nothing but the stop token is trained of them")
        if count := self.counts["in_training_form"]:
            notes.append(
                "the chat template writes earlier answers otherwise than the newest: in "
                f"{counted(count, 'conversation')} each one is trained as it is written when it is the newest "
                "(docs/recipes.md#rows-of-conversations)"
            )
        if count := self.counts["greeting"]:
            notes.append(f"{count} conversations begin with a turn of the assistant, which is not trained on")
        if count := self.counts["open_ended"]:
            notes.append(
                f"the chat template ends {counted(count, 'conversation')} without a stop token: "
                f"{tokenizer.eos_token} was appended and is trained"
            )
        if self.is_dated(tokenizer):
            notes.append(
                "the chat template writes the date of the day that a run begins: "
                "the same rows give a run that begins on another day other tokens"
            )
        if count := self.counts["endless"]:
            way_out = "" if data.train_on == "last" else "; train_on: last leaves them out"
            notes.append(
                f"the chat template ends {counted(count, 'turn')} of the assistant before the last without a stop token, "
                f"so they do not teach it to stop{way_out} (docs/faq.md#it-never-stops)"
            )
        return notes

    def is_dated(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether today's date is in the documents."""
        return self.counts["conversations"] > 0 and writes_date(tokenizer)

    def nothing_left(self, data: DataSection, which: str) -> DataError:
        """The error for when no row became a document."""
        if len(self.unsupervised) >= len(self.over):
            first = ", ".join(self.unsupervised[:3])
            way_out = "" if data.train_on == "all" else "; or set data.train_on: all"
            return DataError(
                f"no supervised token in any of the {which} rows, the first are {first}: nothing would be learned.\n"
                f"  conversations need a turn of the assistant that is trained on{way_out}"
            )
        first = ", ".join(self.over[:3])
        left = "keeps a supervised token in" if self.bare else "fits into"
        return DataError(
            f"none of the {which} rows {left} data.max_seq_len = {data.max_seq_len} tokens, the first are {first}.\n"
            "  raise data.max_seq_len"
        )


def check_documents_fit(documents: Sequence[Document], config: PretrainedConfig) -> None:
    """Refuse documents that the model cannot take: longer than it has positions, or with ids that it has no row for.

    A model that states no number of either takes any.

    Raises:
        ModelError: One is such, found before an hour of steps has led up to it.
    """
    sizes = config.get_text_config()
    rows, positions = getattr(sizes, "vocab_size", None), getattr(sizes, "max_position_embeddings", None)
    for document in documents:
        if rows and (highest := int(document.input_ids.max())) >= rows:
            raise ModelError(
                f"{document.row}: token id {highest}, and the model's embedding has {rows} rows: the tokenizer is "
                "another model's\n"
                "  use the tokenizer that the model came with; new tokens go into model.added_tokens"
            )
    longest = max(documents, key=len, default=None)
    if longest is not None and positions is not None and 0 < positions < len(longest):
        raise ModelError(
            f"{longest.row}: {len(longest)} tokens, and the model has {positions} positions\n"
            f"  set data.max_seq_len to {positions} or less; data.overlength says what happens to longer rows"
        )


def make_documents(
    samples: Sequence[Sample],
    data: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    tally: Tally,
    *,
    twin: bool,
    today: datetime | None = None,
) -> list[Document | None]:
    """One document per sample, or None where nothing of it is left; `tally` counts those.

    `today` is what a chat template that writes the date is told.

    Raises:
        DataError: A sample that the chat template cannot take, or that is too long with `overlength: error`.
    """
    encoder = Encoder(tokenizer)

    def make() -> tuple[Pairs, Counts]:
        conversations = [sample for sample in samples if isinstance(sample, Conversation)]
        if conversations:
            return _encode_conversations(conversations, ChatRenderer(tokenizer, data, today=today), encoder)
        passages = [sample for sample in samples if isinstance(sample, Passage)]
        return _encode_passages(passages, encoder, train_on_all=data.train_on == "all"), {}

    pairs, counts, remarks = kept_between_runs(samples, tokenizer, train_on=data.train_on, make=make)
    tally.remarks += remarks
    tally.counts.update(counts)
    tally.empty += sum(_num_empty(sample, data) for sample in samples)
    limit = data.max_seq_len * (TWIN_STRETCH if twin else 1)
    return [
        _fitted(ids, mask, sample.row, data, limit, tally) for (ids, mask), sample in zip(pairs, samples, strict=True)
    ]


def _encode_passages(passages: list[Passage], encoder: Encoder, *, train_on_all: bool) -> Pairs:
    stop = np.asarray([encoder.eos_id], dtype=np.int32)
    prompts = encoder.beginnings([passage.prompt for passage in passages])
    # Where there is no prompt the completion begins the document, and the prompt's ids are the tokenizer's lead alone.
    follow = [index for index, passage in enumerate(passages) if passage.prompt]
    begin = [index for index, passage in enumerate(passages) if not passage.prompt]
    completions = dict(zip(follow, encoder.continuations([passages[i].completion for i in follow]), strict=True))
    completions |= dict(zip(begin, encoder.beginnings([passages[i].completion for i in begin]), strict=True))
    pairs = []
    for index, prompt in enumerate(prompts):
        prompt, completion = (prompt if passages[index].prompt else prompt[:0]), completions[index]
        is_stopped = len(completion) > 0 and completion[-1] == encoder.eos_id
        ids = np.concatenate([prompt, completion, stop[:0] if is_stopped else stop])
        mask = np.ones(len(ids), dtype=bool)
        mask[: 0 if train_on_all else len(prompt)] = False
        pairs.append((ids, mask))
    return pairs


def _encode_conversations(
    conversations: list[Conversation], renderer: ChatRenderer, encoder: Encoder
) -> tuple[Pairs, Counts]:
    rendered = [renderer.document(conversation) for conversation in conversations]
    pairs = encoder.marked([one.text for one in rendered], [one.spans for one in rendered])
    for index, one in enumerate(rendered):
        if one.is_open:
            ids, mask = pairs[index]
            pairs[index] = (np.append(ids, np.int32(encoder.eos_id)), np.append(mask, True))
    counts = {
        "conversations": len(rendered),
        "endless": sum(one.num_endless for one in rendered),
        "open_ended": sum(one.is_open for one in rendered),
        "in_training_form": sum(one.is_in_training_form for one in rendered),
        "greeting": sum(one.greets for one in rendered),
    }
    return pairs, counts


def _num_empty(sample: Sample, data: DataSection) -> int:
    """How many of a sample's answers say nothing."""
    if isinstance(sample, Passage):
        return int(not sample.completion.strip())
    answers = [turn for turn in sample.messages if turn["role"] == "assistant"]
    trained = [turn for turn in (answers[-1:] if data.train_on == "last" else answers) if turn.get("weight") != 0]
    return sum(not says_anything(turn) for turn in trained)


def _fitted(ids: Ids, mask: Mask, row: str, data: DataSection, limit: int, tally: Tally) -> Document | None:
    mask[:1] = False
    if not mask.any():
        tally.unsupervised.append(row)
        return None
    if len(ids) > limit:
        if data.overlength == "error":
            raise DataError(
                f"{row}: {len(ids)} tokens, data.max_seq_len is {limit}.\n"
                "  raise it, or set data.overlength to drop or truncate"
            )
        tally.over.append(row)
        if data.overlength == "drop":
            return None
        ids, mask = ids[:limit].copy(), mask[:limit].copy()
        if not mask.any():
            tally.bare += 1
            return None
    return Document(ids, mask, row)
