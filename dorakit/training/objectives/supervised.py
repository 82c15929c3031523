"""Cross entropy summed over supervised tokens, with logits only where labels are.

The loop divides the sum by the step's number of supervised tokens, once: in a mean of means the weight of a token would
depend on its micro-batch. Everything lives inside one `Module.forward`, so that wrappers see the loss.

Shapes: B rows, T tokens, N supervised tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from dorakit.data.batches import Batch
from dorakit.data.documents import IGNORE_INDEX
from dorakit.model.load import input_device
from dorakit.model.logits import Logits, probing
from dorakit.training.device import autocast

# Logits of this many tokens exist at once; more are computed in turn and again in backward.
TOKENS_AT_ONCE = 1024


class SupervisedLoss(nn.Module):
    """A model and the loss of its next tokens.

    Args:
        model: The model.
        compute_dtype: What to compute in, over float32 weights; None for the weights' own.
        keeps_casts: Let autocast keep the weights as cast until the end of a forward pass, where they may be used again.

    Attributes:
        notes: A line for the user if logits cannot be computed for supervised tokens only.
    """

    def __init__(self, model: PreTrainedModel, compute_dtype: torch.dtype | None = None, *, keeps_casts: bool = True):
        super().__init__()
        self.model = model
        self.keeps_casts = keeps_casts
        self.compute_dtype = compute_dtype or model.dtype
        with self.precision():
            self.logits = Logits(model)
        self.notes: list[str] = []
        if not self.logits.skips_others:
            self.notes.append(f"{type(model).__name__} transforms its logits: they are computed for every token")

    def forward(self, batch: Batch) -> Tensor:
        """Sum of the losses of the batch's supervised tokens, float32 ()."""
        predicts_BT, targets_N = _supervised(batch.labels.to(input_device(self.model)))
        with self.precision():
            hidden_NH, head = self.logits.before_head(batch.inputs, predicts_BT)
            if not self.logits.skips_others or len(targets_N) <= TOKENS_AT_ONCE:
                return _summed(head, hidden_NH, targets_N)
            total = hidden_NH.new_zeros((), dtype=torch.float32)
            for hidden, targets in _pieces(hidden_NH, targets_N):
                total = total + checkpoint(_summed, head, hidden, targets, use_reentrant=False)
            return total

    @torch.no_grad()
    def row_sums(self, batch: Batch) -> Tensor:
        """Sum of the losses of each row's supervised tokens, float64 (B,) on the CPU."""
        predicts_BT, targets_N = _supervised(batch.labels)
        with self.precision():
            hidden_NH, head = self.logits.before_head(batch.inputs, predicts_BT)
            parts = [
                nn.functional.cross_entropy(head(hidden).float(), targets, reduction="none").cpu()
                for hidden, targets in _pieces(hidden_NH, targets_N.to(hidden_NH.device))
            ]
        sums = torch.zeros(len(predicts_BT), dtype=torch.float64)
        return sums.index_add_(0, predicts_BT.nonzero()[:, 0], torch.cat(parts).double())

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """The autocast that `forward` computes in: over float32 masters, the recipe's dtype."""
        dtype = self.compute_dtype if self.compute_dtype != self.model.dtype else torch.float32
        return autocast(dtype, keeps_casts=self.keeps_casts)

    def keeps_documents_apart(self) -> bool:
        """Whether a document's output is the same whatever precedes it in its row; some families ignore borders."""
        device = input_device(self.model)
        ids = torch.arange(16, device=device)[None] * 37 % (self.model.config.get_text_config().vocab_size - 1)
        other = torch.cat([ids[:, :8] + 1, ids[:, 8:]], dim=1)
        position_ids = torch.arange(8, device=device).repeat(2)[None]
        with probing(self.model), self.precision():
            one, two = (
                self.model(input_ids=i, position_ids=position_ids, use_cache=False).logits for i in (ids, other)
            )
        one, two = one[0, 8:].float(), two[0, 8:].float()
        # Exactly 0 where borders are known and at least 4e-3 where they are not, in random models of two layers.
        return bool((one - two).norm() <= 1e-3 * one.norm())


def summed_loss(objective: SupervisedLoss, batches: Iterable[Batch]) -> tuple[float, int]:
    """Sum of the objective over batches, in eval mode, and the number of their units."""
    was_training = objective.training
    objective.eval()
    total, num_units = 0.0, 0
    with torch.no_grad():  # not inference_mode: what FSDP gathers meanwhile must stay fit for training
        for batch in batches:
            total += float(objective(batch))
            num_units += batch.num_units
    objective.train(was_training)
    return total, num_units


def _supervised(labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Bool (B, T), true where the next token is supervised, and those next tokens (N,), row by row."""
    targets = labels_BT[:, 1:]
    keep = targets != IGNORE_INDEX
    return nn.functional.pad(keep, (0, 1)), targets[keep]


def _pieces(hidden_NH: Tensor, targets_N: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(torch.split(hidden_NH, TOKENS_AT_ONCE), torch.split(targets_N, TOKENS_AT_ONCE), strict=True)


def _summed(head: nn.Module, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
    return nn.functional.cross_entropy(head(hidden_NH).float(), targets_N, reduction="sum")
