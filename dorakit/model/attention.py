"""Attention of short rows on a CPU, in bfloat16: the same sum as torch's kernel, faster.

torch's CPU kernel works through tiles of 32 queries, each a matrix product of its own. In bfloat16 such a product costs
more to set up than to do: for 8 rows of 128 tokens forward and backward take 22 ms, where two whole products and a
softmax take 10; for 2 rows of 512, 40 and 33 (scripts/bench/step.py). The memory of whole products grows with the square
of the row, so longer rows stay with torch's kernel.

Shapes: B rows, H heads, G heads of keys and values, T tokens, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "dorakit_short_rows"
LONGEST = 512
# What only torch's kernel is asked to handle.
_SPECIAL = ("softcap", "position_bias", "cache", "s_aux")


def use_short_rows_(model: PreTrainedModel) -> None:
    """Let a model that attends through torch's kernel use `short_rows` instead, in place; other models stay as they are."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def short_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query (B, H, T, D), key and value (B, G, T, D) -> (B, T, H, D)."""
    rows, heads, length, width = query.shape
    short = 1 < length == key.shape[2] <= LONGEST
    if not short or dropout or any(options.get(name) is not None for name in _SPECIAL):
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **options
        )
    groups = key.shape[1]
    scaled = query * (width**-0.5 if scaling is None else scaling)
    # The heads of a group stand one below the other, so keys and values are not repeated.
    scores = scaled.reshape(rows, groups, -1, width) @ key.transpose(2, 3)
    scores = scores.view(rows, heads, length, length)
    lowest = torch.finfo(scores.dtype).min  # not -inf: a row of padding that sees nothing would be NaN
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, lowest)
    elif getattr(module, "is_causal", True) if is_causal is None else is_causal:
        ahead = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(ahead, lowest)
    weights = scores.softmax(dim=-1).view(rows, groups, -1, length)
    return (weights @ value).view(rows, heads, length, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, short_rows)
AttentionMaskInterface.register(NAME, sdpa_mask)
