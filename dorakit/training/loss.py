"""Cross entropy summed over supervised tokens, with logits only where labels are.

The sum is divided by the step's number of supervised tokens in one place, the loop: a mean of means would weigh a token
by the company it keeps. Everything lives inside one `Module.forward`, so that wrappers see the loss.

Shapes: B rows, T tokens, N supervised tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedModel

from dorakit.data.batches import IGNORE_INDEX, Batch
from dorakit.model.load import input_device
from dorakit.training.device import autocast

# Logits of this many tokens exist at once; more are computed in turn and again in backward.
TOKENS_AT_ONCE = 1024


class SupervisedLoss(nn.Module):
    """A model and its loss.

    Args:
        model: The model.
        compute_dtype: What to compute in, over float32 weights; None for the weights' own.
        keeps_casts: Let autocast keep the weights as cast until the end of a forward pass, where they may be used again.

    Attributes:
        notes: One line where logits cannot be had for supervised tokens only.
    """

    def __init__(self, model: PreTrainedModel, compute_dtype: torch.dtype | None = None, *, keeps_casts: bool = True):
        super().__init__()
        self.model = model
        self.keeps_casts = keeps_casts
        self.compute_dtype = compute_dtype or model.dtype
        self.notes: list[str] = []
        self.skips_logits = self._head_after_backbone_is_the_model()
        if not self.skips_logits:
            self.notes.append(f"{type(model).__name__} transforms its logits: they are computed for every token")

    def forward(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor) -> Tensor:
        """Sum of the losses of the supervised tokens, float32 ().

        Args:
            input_ids: (B, T), right-padded. No attention mask: padding comes last and carries no label, and transformers
                separates packed documents by their restarting positions only when there is none.
            labels: (B, T), the token itself where it is supervised, IGNORE_INDEX elsewhere.
            position_ids: (B, T), restarting at each document.
        """
        device = input_device(self.model)
        input_ids, labels, position_ids = input_ids.to(device), labels.to(device), position_ids.to(device)
        targets = labels[:, 1:]
        keep = targets != IGNORE_INDEX
        targets_N = targets[keep]
        with self.precision():
            if not self.skips_logits:
                logits = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
                return _cross_entropy(logits[:, :-1][keep], targets_N)
            hidden_NH = self._hidden(input_ids, position_ids)[:, :-1][keep]
            if len(targets_N) <= TOKENS_AT_ONCE:
                return self._head_loss(hidden_NH, targets_N)
            total = hidden_NH.new_zeros((), dtype=torch.float32)
            pieces = zip(torch.split(hidden_NH, TOKENS_AT_ONCE), torch.split(targets_N, TOKENS_AT_ONCE), strict=True)
            for hidden, part_targets in pieces:
                total = total + checkpoint(self._head_loss, hidden, part_targets, use_reentrant=False)
            return total

    @torch.no_grad()
    def of_rows(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor) -> Tensor:
        """`forward` row by row: the sum of the losses of each row's supervised tokens, float64 (B,) on the CPU."""
        device = input_device(self.model)
        keep = labels[:, 1:] != IGNORE_INDEX
        targets_N = labels[:, 1:][keep].to(device)
        input_ids, position_ids = input_ids.to(device), position_ids.to(device)
        with self.precision():
            if self.skips_logits:
                hidden_NH = self._hidden(input_ids, position_ids)[:, :-1][keep.to(device)]
                head = self.model.get_output_embeddings()
            else:
                logits = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
                hidden_NH, head = logits[:, :-1][keep.to(device)], nn.Identity()
            pieces = zip(torch.split(hidden_NH, TOKENS_AT_ONCE), torch.split(targets_N, TOKENS_AT_ONCE), strict=True)
            parts = [
                nn.functional.cross_entropy(head(hidden).float(), part_targets, reduction="none").cpu()
                for hidden, part_targets in pieces
            ]
        return torch.zeros(len(labels), dtype=torch.float64).index_add_(
            0, keep.nonzero()[:, 0], torch.cat(parts).double()
        )

    @torch.no_grad()
    def logits_at(self, input_ids: Tensor, position_ids: Tensor, keep: Tensor, past: Cache | None = None) -> Tensor:
        """float32 logits (N, V) of the positions that `keep` (B, T) marks, row by row, without gradient.

        `past` holds the keys and values of what stands before, and takes in those of this call.
        """
        device = input_device(self.model)
        input_ids, position_ids, keep = input_ids.to(device), position_ids.to(device), keep.to(device)
        if not self.skips_logits:
            logits: Tensor = self.model(
                input_ids=input_ids, position_ids=position_ids, past_key_values=past, use_cache=past is not None
            ).logits
            return logits[keep].float()
        head = self.model.get_output_embeddings()
        return head(self._hidden(input_ids, position_ids, past)[keep]).float()  # type: ignore[no-any-return]

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """The autocast that `forward` computes in: over float32 masters, the recipe's dtype."""
        dtype = self.compute_dtype if self.compute_dtype != self.model.dtype else torch.float32
        return autocast(dtype, keeps_casts=self.keeps_casts)

    def keeps_documents_apart(self) -> bool:
        """Whether a document's output is the same whatever stands before it in its row; some families know no borders."""
        device = input_device(self.model)
        ids = torch.arange(16, device=device)[None] * 37 % (self.model.config.get_text_config().vocab_size - 1)
        other = torch.cat([ids[:, :8] + 1, ids[:, 8:]], dim=1)
        position_ids = torch.arange(8, device=device).repeat(2)[None]
        with self._probing():
            one, two = (
                self.model(input_ids=i, position_ids=position_ids, use_cache=False).logits for i in (ids, other)
            )
        one, two = one[0, 8:].float(), two[0, 8:].float()
        # Exactly 0 where borders are known and at least 4e-3 where they are not, in random models of two layers.
        return bool((one - two).norm() <= 1e-3 * one.norm())

    def _hidden(self, input_ids: Tensor, position_ids: Tensor, past: Cache | None = None) -> Tensor:
        hidden: Tensor = self.model.base_model(
            input_ids=input_ids, position_ids=position_ids, past_key_values=past, use_cache=past is not None
        ).last_hidden_state
        return hidden

    def _head_loss(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        return _cross_entropy(self.model.get_output_embeddings()(hidden_NH), targets_N)

    @contextlib.contextmanager
    def _probing(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.precision():
            yield
        self.model.train(was_training)

    def _head_after_backbone_is_the_model(self) -> bool:
        """Ask the model: some soft-cap or scale their logits after the head."""
        model = self.model
        if model.get_output_embeddings() is None or model.base_model is model:
            return False
        device = input_device(model)
        ids = torch.arange(8, device=device)[None] % model.config.get_text_config().vocab_size
        with self._probing():
            whole = model(input_ids=ids, use_cache=False).logits
            parts = model.get_output_embeddings()(self._hidden(ids, torch.arange(8, device=device)[None]))
        return torch.equal(whole, parts.to(whole.dtype))


def summed_loss(loss: SupervisedLoss, batches: Iterable[Batch]) -> tuple[float, int]:
    """Sum of the losses of the supervised tokens of batches, in eval mode, and the number of those tokens."""
    was_training = loss.training
    loss.eval()
    total, num_labels = 0.0, 0
    with torch.no_grad():  # not inference_mode: what FSDP gathers meanwhile must stay fit for training
        for batch in batches:
            total += float(loss(batch.input_ids, batch.labels, batch.position_ids))
            num_labels += batch.num_labels
    loss.train(was_training)
    return total, num_labels


def _cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits_NV.float(), targets_N, reduction="sum")
