"""Loss and perplexity over the supervised tokens of documents."""

from __future__ import annotations

import math
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dorakit.data.batches import micro_batches
from dorakit.data.tokens import Document
from dorakit.progress import progress
from dorakit.training.objectives.supervised import SupervisedLoss


def row_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    *,
    micro_batch_size: int,
    quiet: bool = False,
) -> list[float]:
    """For each document the summed loss of its supervised tokens in nats, in eval mode."""
    order = sorted(range(len(documents)), key=lambda place: -len(documents[place]))
    pad_id = tokenizer.pad_token_id
    batches = micro_batches(
        [documents[place] for place in order],  # sorted as they will be, so that the order stays known
        micro_batch_size=micro_batch_size,
        packing=False,
        max_seq_len=max(map(len, documents)),
        pad_id=0 if pad_id is None else int(pad_id),
    )
    objective = SupervisedLoss(model)
    was_training = model.training
    model.eval()
    sums: list[float] = []
    with progress("loss", len(documents), quiet=quiet) as tell:
        for batch in batches:
            sums += objective.row_sums(batch).tolist()
            tell(len(sums))
    model.train(was_training)
    by_place = dict(zip(order, sums, strict=True))
    return [by_place[place] for place in range(len(documents))]


def token_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    *,
    micro_batch_size: int,
    quiet: bool = False,
) -> tuple[float, int]:
    """Mean loss in nats per supervised token, and the number of those tokens.

    A mean over tokens, not over documents: it does not depend on how documents are batched.
    """
    sums = row_losses(model, tokenizer, documents, micro_batch_size=micro_batch_size, quiet=quiet)
    num_tokens = sum(document.num_labels for document in documents)
    return math.fsum(sums) / num_tokens, num_tokens


def perplexity(loss: float) -> float:
    """exp(loss), held at the largest float: JSON has no infinity."""
    return math.exp(min(loss, 709.0))
