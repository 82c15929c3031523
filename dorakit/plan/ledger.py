"""The ledger of one mode: bytes of parameters, gradients, optimizer states, activations, transients, checkpoints."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from dorakit.adapters.attach import adapter_layers
from dorakit.plan.activations import kept_for_backward
from dorakit.plan.skeleton import build_skeleton, quantized_layers
from dorakit.recipe.schema import Recipe
from dorakit.training.loss import TOKENS_AT_ONCE
from dorakit.training.optim import SMALLEST_PAGED, group_sizes, num_trained, state_bytes

_NESTED_BLOCK = 256
_NESTED_TABLE = 1024 + 4  # bytes: 256 float32 values and the offset


@dataclass(frozen=True)
class Ledger:
    """Bytes but for the two counts. `base` is what is frozen, NF4 and the norms of DoRA included.

    `quant_constants` is part of `base`: absmax in one or two levels. `paged` is part of `optimizer`. `transients` is what
    lives for a moment. `checkpoint` is one on disk.
    """

    mode: str
    parameters: int
    trained_parameters: int
    base: int
    quant_constants: int
    trained: int
    gradients: int
    optimizer: int
    paged: int
    activations: int
    logits: int
    transients: int
    checkpoint: int

    @property
    def peak(self) -> int:
        """Everything at once, paged states aside: they leave the device when there is no room."""
        held = self.base + self.trained + self.gradients + self.optimizer - self.paged
        return held + self.activations + self.logits + self.transients

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "peak": self.peak}


def ledger(recipe: Recipe, config: Any, *, dtype: torch.dtype, pages: bool) -> Ledger:
    """Add up one recipe.

    Args:
        recipe: Its mode decides.
        config: The base's transformers config.
        dtype: What is computed in.
        pages: Whether the device can page optimizer states.
    """
    model = build_skeleton(recipe, config, dtype)
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    packed = quantized_layers(recipe, model)
    constants = sum(_constants(layer, recipe) for layer in packed)
    base = sum(p.nbytes for p in frozen.values()) + sum(buffer.nbytes for buffer in model.buffers())
    base += (
        sum(layer.weight.numel() // 2 - layer.weight.nbytes + 4 * layer.out_features for layer in packed) + constants
    )
    if recipe.method == "dora":
        # Squared norms of the base, the start of m, the norm in use.
        base += sum(3 * 4 * layer.out_features for _, layer in adapter_layers(model))
    trained = num_trained(model)
    sizes = group_sizes(model)
    optimizer, paged = state_bytes(recipe.optimizer.name, sizes), 0
    if pages and recipe.optimizer.name.startswith("paged_"):
        paged = state_bytes(recipe.optimizer.name, [size for size in sizes if size >= SMALLEST_PAGED])
    rows, tokens = micro_batch(recipe)
    supervised = min(rows * tokens, TOKENS_AT_ONCE)
    kept = kept_for_backward(
        model,
        rows=rows,
        tokens=tokens,
        supervised=supervised,
        recomputes=recipe.training.gradient_checkpointing,
    )
    total = num_trained(model) + sum(p.numel() for p in frozen.values())
    vocabulary = model.get_output_embeddings().weight.shape[0]
    element = dtype.itemsize
    backward = supervised * vocabulary * (4 + (element if element < 4 else 0))
    backward = max(backward, max((layer.weight.numel() * element for layer in packed), default=0))
    # Adam's denominator, where torch and not bitsandbytes takes the step; the activations are gone by then.
    step = 4 * max(sizes) if recipe.optimizer.name == "adamw" else 0
    casts = trained * element if recipe.method is None and element < 4 else 0  # autocast's copies of the masters
    return Ledger(
        mode=recipe.adapter.mode,
        parameters=total,
        trained_parameters=trained,
        base=base,
        quant_constants=constants,
        trained=4 * trained,
        gradients=4 * trained,
        optimizer=optimizer,
        paged=paged,
        activations=kept.backbone,
        logits=kept.logits,
        transients=max(backward + casts, step - kept.backbone - kept.logits),
        checkpoint=4 * trained + optimizer,
    )


def micro_batch(recipe: Recipe) -> tuple[int, int]:
    """Rows and tokens of the largest forward pass that the recipe allows."""
    tokens, training = recipe.data.max_seq_len, recipe.training
    if training.micro_batch_tokens is not None:
        return max(1, training.micro_batch_tokens // tokens), tokens
    return min(training.micro_batch_size, training.batch_size), tokens


def _constants(layer: nn.Linear, recipe: Recipe) -> int:
    """Bytes of a weight's absmax values: float32, or 8-bit with a second level."""
    blocks = math.ceil(layer.weight.numel() / recipe.quantization.block_size)
    if not recipe.quantization.double_quant:
        return 4 * blocks
    return blocks + 4 * math.ceil(blocks / _NESTED_BLOCK) + _NESTED_TABLE
