"""Loss and perplexity over the supervised tokens of documents."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dorakit.data.batches import Batch, micro_batches
from dorakit.data.tokens import Document
from dorakit.evaluation.progress import progress
from dorakit.training.loss import SupervisedLoss, mean_loss


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
    pad_id = tokenizer.pad_token_id
    batches = micro_batches(
        documents,
        micro_batch_size=micro_batch_size,
        packing=False,
        max_seq_len=max(map(len, documents)),
        pad_id=0 if pad_id is None else int(pad_id),
    )
    with progress("loss", len(documents), quiet=quiet) as tell:

        def counted() -> Iterator[Batch]:
            done = 0
            for batch in batches:
                yield batch
                done += len(batch.documents)
                tell(done)

        return mean_loss(SupervisedLoss(model), counted())


def perplexity(loss: float) -> float:
    """exp(loss), held at the largest float: JSON has no infinity."""
    return math.exp(min(loss, 709.0))
