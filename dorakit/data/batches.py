"""Documents to batches by index arithmetic: nothing here has a state, so resuming needs only the number of a step.

Documents of one row never see each other: each starts its position_ids at 0, which transformers takes as a border when
no attention mask is given. Padding after several documents is a document of its own, without labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from dorakit.data.documents import IGNORE_INDEX, Document
from dorakit.data.order import EPOCH, shuffled


@dataclass(frozen=True)
class Batch:
    """Rows of one forward pass, on the CPU. B rows, T tokens.

    Attributes:
        inputs: Arguments of the model: `input_ids` (B, T), padded on the right, and `position_ids` (B, T), which restart
            at each document. No attention mask: padding comes last and carries no label, and transformers separates
            packed documents by their positions only if there is none.
        labels: (B, T), unshifted, as transformers takes them: labels[b, t] is the token at t itself, or -100.
        num_units: The loss is a mean over this many: the supervised tokens.
        rows: Names of the data rows inside.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    num_units: int
    rows: tuple[str, ...]


@lru_cache(maxsize=4)
def epoch_order(num_docs: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Order of the documents in an epoch (counted from 0); read-only."""
    order = shuffled(num_docs, seed, EPOCH, epoch)
    order.flags.writeable = False
    return order


def steps_per_epoch(num_docs: int, batch_size: int) -> int:
    """Optimizer steps of an epoch; the last one may be short."""
    return -(-num_docs // batch_size)


def documents_of_step(num_docs: int, batch_size: int, seed: int, step: int) -> npt.NDArray[np.int64]:
    """Indices of the documents in optimizer step `step`, counted from 0 over all epochs."""
    epoch, slot = divmod(step, steps_per_epoch(num_docs, batch_size))
    return epoch_order(num_docs, seed, epoch)[slot * batch_size : (slot + 1) * batch_size]


def micro_batches(
    documents: Sequence[Document],
    *,
    micro_batch_size: int,
    packing: bool,
    max_seq_len: int,
    pad_id: int,
    max_tokens: int | None = None,
) -> list[Batch]:
    """Split the documents of one step into batches of at most `micro_batch_size` rows, longest first.

    With `max_tokens` a batch is as many rows as fit that many tokens with their padding, but at least one row.

    With `packing` several documents share a row of at most `max_seq_len` tokens (first fit, longest first); a single
    document longer than that has a row of its own. Rows are padded on the right to the longest of their batch.
    """
    by_length = sorted(documents, key=len, reverse=True)
    rows = _first_fit(by_length, max_seq_len) if packing else [[document] for document in by_length]
    rows.sort(key=lambda row: -sum(map(len, row)))
    batches = []
    while rows:
        width = sum(map(len, rows[0]))
        count = micro_batch_size if max_tokens is None else max(1, max_tokens // width)
        batches.append(_batch(rows[:count], pad_id))
        rows = rows[count:]
    return batches


def padded(batches: list[Batch], ranks: int) -> list[Batch]:
    """Pad to a multiple of `ranks` with empty batches: one short row without a label."""
    missing = -len(batches) % ranks
    if not missing:
        return batches
    ids = batches[-1].inputs["input_ids"][:1, :2]
    inputs = {"input_ids": ids, "position_ids": torch.arange(ids.shape[1])[None]}
    empty = Batch(inputs, torch.full_like(ids, IGNORE_INDEX), 0, ())
    return [*batches, *[empty] * missing]


def _first_fit(documents: Sequence[Document], max_seq_len: int) -> list[list[Document]]:
    rows: list[list[Document]] = []
    room: list[int] = []
    for document in documents:
        length = len(document)
        index = next((i for i, free in enumerate(room) if free >= length), None)
        if index is None:
            rows.append([document])
            room.append(max_seq_len - length)
        else:
            rows[index].append(document)
            room[index] -= length
    return rows


def _batch(rows: list[list[Document]], pad_id: int) -> Batch:
    width = max(sum(map(len, row)) for row in rows)
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    labels = np.full((len(rows), width), IGNORE_INDEX, dtype=np.int64)
    position_ids = np.tile(np.arange(width, dtype=np.int64), (len(rows), 1))
    for index, row in enumerate(rows):
        start = 0
        for document in row:
            end = start + len(document)
            input_ids[index, start:end] = document.input_ids
            labels[index, start:end] = document.labels
            position_ids[index, start:end] = np.arange(end - start)
            start = end
        # A row of one document counts on through its padding: attention is causal, and without a border in any row
        # transformers needs no mask at all and takes its fast path.
        if len(row) > 1:
            position_ids[index, start:] = np.arange(width - start)
    return Batch(
        {"input_ids": torch.from_numpy(input_ids), "position_ids": torch.from_numpy(position_ids)},
        torch.from_numpy(labels),
        int((labels != IGNORE_INDEX).sum()),
        tuple(document.row for row in rows for document in row),
    )
