"""Attention through torch's kernel, but document by document, and in another form where the kernel is slow.

Packed documents: transformers gives the kernel a mask of the whole row, whose work grows with the square of the row. Here
documents are lined up by length, each in a row of its own, so that it grows with the square of the document, and no mask
is needed. (FlashAttention does this by itself.)

Short rows on a CPU in bfloat16: torch's kernel works through tiles of 32 queries, each a matrix product of its own, which
costs more to set up than to do. For 8 rows of 128 tokens forward and backward take twice as long as two whole products and a
softmax (scripts/bench/step.py). The memory of whole products grows with the square of the row, so longer rows stay with
torch's kernel.

One new token after many: transformers repeats keys and values for all heads that share them, at every token. Here the heads
are queries of the head that they share.

Shapes: B rows, H heads, G heads of keys and values, T tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

NAME = "dorakit"
LONGEST = 512
# What only torch's kernel is asked to handle.
_SPECIAL = ("softcap", "position_bias", "cache", "s_aux")
# Documents of one group are padded to its longest; none is shorter than this part of it.
_SHORTEST = 0.75


def use_own_attention_(model: PreTrainedModel) -> None:
    """Let a model that attends through torch's kernel use `attention` instead, in place; other models stay as they are."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # where documents end is data
def attention(
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
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    special = dropout or any(options.get(name) is not None for name in _SPECIAL)
    queries, keys = query.shape[2], key.shape[2]
    # Of one token, all keys are past ones; elsewhere a mask must say which are.
    if special or not (queries in (1, keys) or attention_mask is not None):
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **options
        )
    if queries != keys or queries == 1:
        return _attend(module, query, key, value, attention_mask, scaling, False), None
    position_ids = options.get("position_ids")
    starts = _starts(position_ids, query.shape) if attention_mask is None and causal else None
    if starts is None:
        return _attend(module, query, key, value, attention_mask, scaling, causal), None
    # Rows are laid end to end: tokens x heads x width.
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    parts, places = [], []
    for tokens, cells, shape in _groups(starts, len(q)):
        q_lined, k_lined, v_lined = (_line_up(x, tokens, cells, shape).transpose(1, 2) for x in (q, k, v))
        attended = _attend(module, q_lined, k_lined, v_lined, None, scaling, True)
        parts.append(attended.flatten(0, 1).index_select(0, cells))
        places.append(tokens)
    # Every token is in one group, so the order of the parts is undone by sorting.
    output = torch.cat(parts).index_select(0, torch.cat(places).argsort())
    return output.view(query.shape[0], query.shape[2], *output.shape[1:]), None


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Tensor | None:
    """The mask as transformers asks for it; None where it only says what the restarting positions of documents say too."""
    whole = local_size is None or kv_length <= local_size
    if attention_mask is None and whole and not use_vmap and 1 < q_length == kv_length:
        row, here = torch.arange(batch_size, device=device)[:, None], torch.arange(1, q_length, device=device)[None]
        sees_before, sees_ahead = mask_function(row, 0, here, here - 1), mask_function(row, 0, here - 1, here)
        if not (torch.as_tensor(sees_before).all() or torch.as_tensor(sees_ahead).any()):
            return None
    return sdpa_mask(  # type: ignore[no-any-return]
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        use_vmap=use_vmap,
        device=device,
        **options,
    )


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    causal: bool,
) -> Tensor:
    """Each row by itself: (B, T, H, D)."""
    rows, heads, queries, width = query.shape
    groups, keys = key.shape[1], key.shape[2]
    if queries * keys > LONGEST**2 or not _kernel_is_slow(query):
        if queries > 1 or (attention_mask is not None and attention_mask.shape[1] > 1):
            return sdpa_attention_forward(module, query, key, value, attention_mask, 0.0, scaling, causal)[0]  # type: ignore[no-any-return]
        shared = query.reshape(rows, groups, -1, width)
        answer = nn.functional.scaled_dot_product_attention(shared, key, value, attention_mask, scale=scaling)
        return answer.reshape(rows, 1, heads, -1)
    scaled = query * (width**-0.5 if scaling is None else scaling)
    # The heads of a group stand one below the other, so keys and values are not repeated.
    scores = scaled.reshape(rows, groups, -1, width) @ key.transpose(2, 3)
    scores = scores.view(rows, heads, queries, keys)
    # Added in place, a mask costs no copy of the scores, and nothing in backward.
    lowest = torch.finfo(scores.dtype).min  # not -inf: a row of padding that sees nothing would be NaN
    if attention_mask is not None:
        scores += torch.zeros_like(attention_mask, dtype=scores.dtype).masked_fill_(~attention_mask, lowest)
    elif causal:
        scores += torch.full((queries, keys), lowest, dtype=scores.dtype, device=scores.device).triu_(1)
    weights = scores.softmax(dim=-1).view(rows, groups, -1, keys)
    return (weights @ value).view(rows, heads, queries, -1).transpose(1, 2).contiguous()


def _kernel_is_slow(query: Tensor) -> bool:
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


def _starts(position_ids: Any, shape: torch.Size) -> Tensor | None:
    """Where documents start in the rows (B, T) laid end to end; None if each row is one document."""
    if not isinstance(position_ids, Tensor) or position_ids.dim() != 2 or position_ids.shape[1] != shape[2]:
        return None
    # Every layer asks; on a GPU each answer is a wait, so it is kept with the tensor.
    if not hasattr(position_ids, "document_starts"):
        first = torch.ones(shape[0], shape[2], dtype=torch.bool, device=position_ids.device)
        first[:, 1:] = position_ids.diff(dim=1) != 1
        starts = first.flatten().nonzero().flatten()
        position_ids.document_starts = None if len(starts) == shape[0] else starts  # type: ignore[attr-defined]
    return position_ids.document_starts  # type: ignore[attr-defined,no-any-return]


def _groups(starts: Tensor, total: int) -> Iterator[tuple[Tensor, Tensor, tuple[int, int]]]:
    """Documents of nearly one length: the numbers of their tokens, the cells of (documents, longest) that they fill, and
    that shape.
    """
    ends = torch.cat([starts[1:], starts.new_tensor([total])])
    order = (ends - starts).argsort(descending=True, stable=True)
    starts, lengths = starts[order], (ends - starts)[order]
    sizes = lengths.tolist()
    begin = 0
    while begin < len(sizes):
        longest = sizes[begin]
        end = next((i for i in range(begin, len(sizes)) if sizes[i] < _SHORTEST * longest), len(sizes))
        column = torch.arange(longest, device=starts.device)
        filled = (column < lengths[begin:end, None]).flatten()
        tokens = (starts[begin:end, None] + column).flatten()[filled]
        yield tokens, filled.nonzero().flatten(), (end - begin, longest)
        begin = end


def _line_up(x: Tensor, tokens: Tensor, cells: Tensor, shape: tuple[int, int]) -> Tensor:
    result: Tensor = _LineUp.apply(x, tokens, cells, shape)  # type: ignore[no-untyped-call]
    return result


class _LineUp(torch.autograd.Function):
    """Tokens (N, heads, width) into the cells of (documents, longest, heads, width); the other cells are 0.

    A function of its own because the gradient of indexing adds, slowly, what here can only be copied.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tensor, cells: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(tokens, cells)
        ctx.total = len(x)
        lined_up = x.new_zeros(shape[0] * shape[1], *x.shape[1:])
        return lined_up.index_copy_(0, cells, x.index_select(0, tokens)).view(*shape, *x.shape[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tokens, cells = ctx.saved_tensors
        grad = grads[0].flatten(0, 1)
        whole = grad.new_zeros(ctx.total, *grad.shape[1:])
        return whole.index_copy_(0, tokens, grad.index_select(0, cells)), None, None, None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)
