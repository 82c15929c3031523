"""The ledger of one mode: bytes of parameters, gradients, optimizer states, activations, transients, checkpoints."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from dorakit.adapters.attach import adapter_layers
from dorakit.model.attention import LONGEST
from dorakit.plan.activations import kept_for_backward
from dorakit.plan.ranks import shareable
from dorakit.plan.skeleton import build_skeleton, quantized_layers
from dorakit.recipe.schema import Recipe
from dorakit.training.groups import group_specs, state_bytes
from dorakit.training.objectives.supervised import TOKENS_AT_ONCE
from dorakit.training.optim import SMALLEST_PAGED, num_trained
from dorakit.training.rules.rule import rule_of

_NESTED_BLOCK = 256
_NESTED_TABLE = 1024 + 4  # bytes: 256 float32 values and the offset


@dataclass(frozen=True)
class Ledger:
    """Bytes but for the two counts. `base` is what is frozen, NF4, the norms of DoRA and a start's A0 and B0 included.

    `shareable` is what several processes may share of it, `gathered` what each of them then has whole at once.
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
    shareable: int
    gathered: int

    @property
    def peak(self) -> int:
        """Everything at once, paged states aside: they leave the device when there is no room."""
        held = self.base + self.trained + self.gradients + self.optimizer - self.paged
        return held + self.activations + self.logits + self.transients

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "peak": self.peak}


def ledger(recipe: Recipe, config: Any, *, dtype: torch.dtype, on_card: bool, row_tokens: int | None = None) -> Ledger:
    """Add up one recipe.

    Args:
        recipe: Its mode decides.
        config: The base's transformers config.
        dtype: What is computed in.
        on_card: Whether it runs on a card, which can page optimizer states, instead of a CPU.
        row_tokens: Tokens of the longest row, where that is known; else data.max_seq_len.

    Raises:
        ModelError: The model cannot be planned, or the adapter does not fit it.
    """
    lowered = dtype if recipe.trains_whole and dtype != torch.float32 else None
    model = build_skeleton(recipe, config, torch.float32 if lowered else dtype)
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    packed = quantized_layers(recipe, model)
    constants = sum(_constants(layer, recipe) for layer in packed)
    base = sum(p.nbytes for p in frozen.values()) + sum(buffer.nbytes for buffer in model.buffers())
    # Two weights a byte, and the row norms from before.
    base += constants + sum(
        layer.weight.numel() // 2 - layer.weight.nbytes + 4 * layer.out_features for layer in packed
    )
    if recipe.has_magnitude:
        # Squared norms of the base, and the norm in use.
        base += sum(2 * 4 * layer.out_features for _, layer in adapter_layers(model))
    constants_beside = {id(t): t.nbytes for _, layer in adapter_layers(model) for t in layer.constants()}
    base += sum(constants_beside.values())
    if not recipe.trains_whole and recipe.adapter.start != "kaiming":
        # A0 and B0, which are not trained.
        base += sum(4 * layer.rank * (layer.in_features + layer.out_features) for _, layer in adapter_layers(model))
    shared, gathered = shareable(recipe, model, packed)
    trained = num_trained(model)
    specs = rule_of(model, recipe.optimizer).groups(group_specs(model, recipe.optimizer, recipe.adapter.magnitude))
    sizes = [size for spec in specs for size in spec.piece_sizes]
    optimizer, paged = state_bytes(recipe.optimizer.name, sizes), 0
    if on_card and recipe.optimizer.name.startswith("paged_"):
        paged = state_bytes(recipe.optimizer.name, [size for size in sizes if size >= SMALLEST_PAGED])
    rows, tokens = micro_batch(recipe, row_tokens)
    kept = kept_for_backward(
        model,
        rows=rows,
        tokens=tokens,
        lowered=lowered,
        whole_scores=_keeps_whole_scores(recipe, dtype, tokens, on_card=on_card),
        recomputes=recipe.training.gradient_checkpointing,
    )
    total = trained + sum(p.numel() for p in frozen.values())
    vocabulary, element = model.get_output_embeddings().weight.shape[0], dtype.itemsize
    # In backward the gradient of the logits, in float32 and in the dtype that they have, or an NF4 weight unpacked.
    of_logits = min(rows * tokens, TOKENS_AT_ONCE) * vocabulary * (4 + (element if element < 4 else 0))
    # An update without factors holds W, the update, its gradient and one product in float32.
    unfactored = [
        4 * 4 * layer.in_features * layer.out_features for _, layer in adapter_layers(model) if not layer.has_factors
    ]
    backward = max([of_logits, *(layer.weight.numel() * element for layer in packed), *unfactored])
    # Adam's denominator, where torch and not bitsandbytes takes the step; the activations are gone by then.
    step = 4 * max(sizes) if recipe.optimizer.name == "adamw" else 0
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
        transients=max(backward, step - kept.backbone - kept.logits),
        checkpoint=4 * trained + optimizer,
        shareable=shared,
        gathered=gathered,
    )


def micro_batch(recipe: Recipe, row_tokens: int | None = None) -> tuple[int, int]:
    """Rows and tokens of the largest forward pass that the recipe allows."""
    training = recipe.training
    tokens = recipe.data.max_seq_len if row_tokens is None else row_tokens
    if training.micro_batch_tokens is not None:
        return max(1, training.micro_batch_tokens // tokens), tokens
    return min(training.micro_batch_size, training.batch_size), tokens


def _keeps_whole_scores(recipe: Recipe, dtype: torch.dtype, tokens: int, *, on_card: bool) -> bool:
    """As model/attention.py chooses; under autocast, in mode full, queries are float32 and stay with torch's kernel."""
    if recipe.model.attention == "eager":
        return True
    is_slow = not on_card and dtype == torch.bfloat16 and not recipe.trains_whole
    return recipe.model.attention == "auto" and is_slow and tokens <= LONGEST


def _constants(layer: nn.Linear, recipe: Recipe) -> int:
    """Bytes of a weight's absmax values: float32, or 8-bit with a second level."""
    blocks = math.ceil(layer.weight.numel() / recipe.quantization.block_size)
    if not recipe.quantization.double_quant:
        return 4 * blocks
    return blocks + 4 * math.ceil(blocks / _NESTED_BLOCK) + _NESTED_TABLE
