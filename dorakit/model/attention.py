"""Attention through torch's kernel, but document by document, and in another form where the kernel is slow.

Packed documents: transformers gives the kernel a mask of the whole row, whose work grows with the square of the row. Here
documents are lined up by length, each in a row of its own, so that it grows with the square of the document, and no mask
is needed. (FlashAttention does this by itself.)

Short rows on a CPU in bfloat16: torch's kernel works through tiles of 32 queries, each a matrix product of its own, which
costs more to set up than to do. For 8 rows of 128 tokens forward and backward take 23 ms, where two whole products and a
softmax take 8 (scripts/bench/step.py). The memory of whole products grows with the square of the row, so longer rows stay with
torch's kernel.

Shapes: B rows, H heads, G heads of keys and values, T tokens, D head width.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
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
    """Let a model that attends through torch's kernel use `attention` instead, in place; other models stay as they are.

    So do those whose code asks for torch's kernel by name: under another name they would do something else.
    """
    if model.config._attn_implementation == "sdpa" and '"sdpa"' not in inspect.getsource(
        sys.modules[type(model).__module__]
    ):
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
    packed = None
    if causal and attention_mask is None and 1 < queries == keys:
        packed = _packed(options.get("position_ids"), len(query), queries)
    if special and packed is not None:
        attention_mask = packed.mask()
    # Of one token, all keys are past ones; elsewhere a mask must say which are.
    if special or not (queries in (1, keys) or attention_mask is not None):
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **options
        )
    if packed is None:
        return _attend(module, query, key, value, attention_mask, scaling, causal and queries == keys), None
    # Rows are laid end to end: tokens x heads x width.
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    parts = []
    for group in packed.groups:
        cells = group.documents * group.longest
        lined_up = [
            _moved(x, group.tokens, group.cells, cells)
            .view(group.documents, group.longest, *x.shape[1:])
            .transpose(1, 2)
            for x in (q, k, v)
        ]
        parts.append(_attend(module, lined_up[0], lined_up[1], lined_up[2], None, scaling, True).flatten(0, 1))
    output = _moved(torch.cat(parts), packed.cells, packed.tokens, len(q))
    return output.view(len(query), queries, *output.shape[1:]), None


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
    queries, keys = query.shape[2], key.shape[2]
    plain_mask = attention_mask is None or attention_mask.dtype == torch.bool
    if queries * keys > LONGEST**2 or not plain_mask or not _kernel_is_slow(query):
        return sdpa_attention_forward(module, query, key, value, attention_mask, 0.0, scaling, causal)[0]  # type: ignore[no-any-return]
    return whole_products(query, key, value, attention_mask, scaling, causal)


def whole_products(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None, causal: bool
) -> Tensor:
    """Each row by itself, as two products of the whole row: (B, T, H, D). A mask is boolean, true where a query sees."""
    rows, heads, queries, width = query.shape
    groups, keys = key.shape[1], key.shape[2]
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


@dataclass(frozen=True)
class _Group:
    """Documents of nearly one length: where their tokens lie in the rows laid end to end, and the cells of
    (documents, longest) that they fill, token by token.
    """

    documents: int
    longest: int
    tokens: Tensor
    cells: Tensor


@dataclass(frozen=True)
class _Packed:
    """Where the documents of a batch of rows (B, T) lie. `tokens` and `cells` are those of all groups, one after the other.

    `numbers` (B, T) tells documents of a row apart.
    """

    numbers: Tensor
    groups: list[_Group]
    tokens: Tensor
    cells: Tensor

    def mask(self) -> Tensor:
        """The whole-row mask (B, 1, T, T): the same document, and not ahead."""
        return (self.numbers[:, None, :, None] == self.numbers[:, None, None, :]).tril()


def _packed(position_ids: Any, rows: int, length: int) -> _Packed | None:
    """The documents that restarting positions tell of; None if each row is one document.

    Every layer asks; on a GPU each answer is a wait, so it is kept with the tensor.
    """
    if not isinstance(position_ids, Tensor) or position_ids.dim() != 2 or position_ids.shape[1] != length:
        return None
    known: tuple[int, _Packed | None] | None = getattr(position_ids, "dorakit_packed", None)
    if known is None or known[0] != rows:
        first = torch.ones(rows, length, dtype=torch.bool, device=position_ids.device)
        first[:, 1:] = position_ids.diff(dim=1) != 1
        found = _line_up(first) if first[:, 1:].any() else None
        known = position_ids.dorakit_packed = (rows, found)  # type: ignore[attr-defined]
    return known[1]


def _line_up(first: Tensor) -> _Packed:
    """Group the documents by length; `first` (B, T) marks the first token of each."""
    starts = first.flatten().nonzero().flatten()
    ends = torch.cat([starts[1:], starts.new_tensor([first.numel()])])
    order = (ends - starts).argsort(descending=True, stable=True)
    starts, lengths = starts[order], (ends - starts)[order]
    sizes = lengths.tolist()
    groups: list[_Group] = []
    cells, begin, offset = [], 0, 0
    while begin < len(sizes):
        longest = sizes[begin]
        end = next((i for i in range(begin, len(sizes)) if sizes[i] < _SHORTEST * longest), len(sizes))
        column = torch.arange(longest, device=starts.device)
        filled = (column < lengths[begin:end, None]).flatten()
        tokens = (starts[begin:end, None] + column).flatten()[filled]
        groups.append(_Group(end - begin, longest, tokens, filled.nonzero().flatten()))
        cells.append(groups[-1].cells + offset)
        offset += len(filled)
        begin = end
    return _Packed(first.cumsum(dim=1), groups, torch.cat([group.tokens for group in groups]), torch.cat(cells))


def _moved(x: Tensor, source: Tensor, target: Tensor, total: int) -> Tensor:
    """`total` zeros with x[source] at `target`; no number occurs twice in either."""
    result: Tensor = _Moved.apply(x, source, target, total)  # type: ignore[no-untyped-call]
    return result


class _Moved(torch.autograd.Function):
    """A function of its own because the gradient of indexing adds, slowly, what here can only be copied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, target: Tensor, total: int) -> Tensor:
        ctx.save_for_backward(source, target)
        ctx.total = len(x)
        return x.new_zeros(total, *x.shape[1:]).index_copy_(0, target, x.index_select(0, source))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        source, target = ctx.saved_tensors
        (grad,) = grads
        whole = grad.new_zeros(ctx.total, *grad.shape[1:])
        return whole.index_copy_(0, source, grad.index_select(0, target)), None, None, None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)
