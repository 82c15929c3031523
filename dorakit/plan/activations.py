"""What autograd keeps for the backward pass, found by running the forward pass on the meta device.

Each tensor saved is counted once, by its storage; parameters are not. Attention is either torch's fused kernel, which keeps
queries, keys, values, the output and a sum per query, or whole products (model/attention.py), which keep the weights of every
query for every key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from dorakit.errors import ModelError
from dorakit.model.attention import whole_products
from dorakit.model.tasks import CAUSAL_LM
from dorakit.training.objectives.supervised import TOKENS_AT_ONCE

_FUSED, _WHOLE = "dorakit_plan_fused", "dorakit_plan_whole"


@dataclass(frozen=True)
class Kept:
    """Bytes kept from forward to backward: of the backbone, and of logits and loss."""

    backbone: int
    logits: int


def kept_for_backward(
    model: PreTrainedModel,
    *,
    rows: int,
    tokens: int,
    lowered: torch.dtype | None = None,
    whole_scores: bool = False,
    recomputes: bool = False,
) -> Kept:
    """Run a forward pass of `rows` x `tokens` on the meta device.

    Args:
        model: On the meta device, adapters attached. Its attention is exchanged.
        rows: Rows of the pass.
        tokens: Tokens in each.
        lowered: What autocast computes products in, over float32 weights.
        whole_scores: Attention by whole products instead of a fused kernel.
        recomputes: With gradient checkpointing: of each layer only its input is kept, of one layer everything.

    Raises:
        ModelError: The family looks at values in its forward pass, which meta tensors do not have.
    """
    _register()
    model.set_attn_implementation(_WHOLE if whole_scores else _FUSED)
    model.train()
    counter = _Counter(model)
    handles = counter.watch_layers(model)
    ids = torch.zeros(rows, tokens, dtype=torch.int64, device="meta")
    mask = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool, device="meta")  # 4-D: transformers takes it as it is
    try:
        with torch.autograd.graph.saved_tensors_hooks(counter.see, lambda tensor: tensor), _Autocast(lowered):
            hidden = CAUSAL_LM.backbone(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            before = counter.total
            logits = CAUSAL_LM.head(model)(hidden.flatten(0, 1)[:TOKENS_AT_ONCE])
            nn.functional.cross_entropy(logits.float(), ids.flatten()[:TOKENS_AT_ONCE], reduction="sum")
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the activations of {type(model).__name__} cannot be planned without its weights: {reason}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    backbone, of_logits = before, counter.total - before
    if rows * tokens > TOKENS_AT_ONCE:
        of_logits += hidden.nbytes  # what each piece is computed again from
    if recomputes and counter.layers:
        backbone -= sum(layer.saved - layer.entry for layer in counter.layers)
        backbone += max(layer.besides for layer in counter.layers)
    return Kept(backbone, of_logits)


@dataclass(frozen=True)
class _Layer:
    """Bytes of a decoder layer: what it saves, its input, and what it saves besides its input."""

    saved: int
    entry: int
    besides: int


class _Counter:
    """Adds up storages that autograd saves."""

    def __init__(self, model: nn.Module):
        self.total = 0
        self.layers: list[_Layer] = []
        self._alive: list[Tensor] = []  # or the address of a storage that is gone would be given to the next
        self._seen = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def see(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._alive.append(tensor)
            self.total += storage.nbytes()
        return tensor

    def watch_layers(self, model: nn.Module) -> list[Any]:
        handles = []
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                begun: list[int] = []

                def before(_: nn.Module, inputs: Any, begun: list[int] = begun) -> None:
                    begun.append(self.total)

                def after(_: nn.Module, inputs: Any, output: Any, begun: list[int] = begun) -> None:
                    hidden = output[0] if isinstance(output, tuple) else output
                    saved, entry = self.total - begun.pop(), hidden.nbytes
                    is_saved = bool(inputs) and inputs[0].untyped_storage()._cdata in self._seen
                    self.layers.append(_Layer(saved, entry, saved - entry if is_saved else saved))

                handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
        return handles


class _Autocast(TorchFunctionMode):
    """torch has no autocast for the meta device: products take their inputs in `dtype`, if one is given."""

    _PRODUCTS = (nn.functional.linear, torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__)

    def __init__(self, dtype: torch.dtype | None):
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._dtype is not None and func in self._PRODUCTS:
            args = [x.to(self._dtype) if isinstance(x, Tensor) and x.dtype == torch.float32 else x for x in args]
        return func(*args, **(kwargs or {}))


def _fused(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    # Under autocast rotated queries and keys are float32, and the kernel takes them in the dtype of products: the values'.
    output: Tensor = _FusedAttention.apply(query.to(value.dtype), key.to(value.dtype), value)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2).contiguous(), None


def _whole(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    return whole_products(query, key, value, None, None, causal=True), None


class _FusedAttention(torch.autograd.Function):
    """The shapes of a fused kernel: output as (B, T, H, D) in memory, one float32 a query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, tokens, _ = query.shape
        output = query.new_empty(rows, tokens, heads, value.shape[-1]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, output, query.new_empty(rows, heads, tokens, dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise AssertionError("a plan has no backward pass")


def _register() -> None:
    for name, attention in ((_FUSED, _fused), (_WHOLE, _whole)):
        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, lambda *_, **__: None)
