"""LoRA-Pro (arXiv:2407.18242), the form whose optimizer states have the size of A and B.

A step of A and B moves W by s (dB A + B dA). The rule replaces the gradients gA and gB by those whose step is nearest to
that of the whole weight's gradient G, which nobody computes: only gA = s B^T G and gB = s G A^T are needed.

    gA' = (B^T B)^-1 gA / s^2 + X A        gB' = (I - B (B^T B)^-1 B^T) gB (A A^T)^-1 / s^2 - B X

X does not change what W does. It is chosen so that gA' and gB' are nearest to gA and gB, by a Sylvester equation:

    B^T B X + X A A^T = -(B^T B)^-1 gA A^T / s^2

B begins at zero, so `_RIDGE` is added to both Gram matrices. Under a magnitude G is the gradient of its direction, W + s B A.
The authors' other form keeps states of the size of the base.

Shapes: L layers of one rank, I in, O out, R rank.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from dorakit.adapters.attach import adapter_layers
from dorakit.adapters.lora import LoRALinear
from dorakit.recipe.schema import OptimizerSection
from dorakit.training.rules.rule import Rule

_RIDGE = 1e-8


class LoRAPro(Rule):
    """Rewrites the gradients of each pair A, B together."""

    def __init__(self, model: nn.Module, settings: OptimizerSection):
        self._by_rank: dict[int, list[LoRALinear]] = defaultdict(list)
        for _, layer in adapter_layers(model):
            assert isinstance(layer, LoRALinear)
            self._by_rank[layer.rank].append(layer)

    @torch.no_grad()
    def on_gradients(self) -> None:
        """In float32, whatever the model computes in."""
        for layers in self._by_rank.values():
            pairs = [(layer.lora_A, layer.lora_B, layer.scaling) for layer in layers]
            for (a_RI, b_OR, _), (grad_A, grad_B) in zip(pairs, adjusted(pairs), strict=True):
                assert a_RI.grad is not None and b_OR.grad is not None
                a_RI.grad.copy_(grad_A)
                b_OR.grad.copy_(grad_B)


def adjusted(pairs: list[tuple[nn.Parameter, nn.Parameter, float]]) -> list[tuple[Tensor, Tensor]]:
    """The rewritten gradients, gA' (R, I) and gB' (O, R), of pairs (A, B, s) of one rank, from those in `.grad`."""
    grams_A = torch.stack([a_RI @ a_RI.T for a_RI, _, _ in pairs])
    grams_B = torch.stack([b_OR.T @ b_OR for _, b_OR, _ in pairs])
    squared = grams_A.new_tensor([scaling**2 for _, _, scaling in pairs])[:, None, None]
    values_A_LR, vectors_A_LRR = torch.linalg.eigh(grams_A)
    values_B_LR, vectors_B_LRR = torch.linalg.eigh(grams_B)
    values_A_LR, values_B_LR = values_A_LR.clamp_min(0) + _RIDGE, values_B_LR.clamp_min(0) + _RIDGE
    inverse_A_LRR = (vectors_A_LRR / values_A_LR[:, None, :]) @ vectors_A_LRR.mT
    inverse_B_LRR = (vectors_B_LRR / values_B_LR[:, None, :]) @ vectors_B_LRR.mT
    # B^T gB = gA A^T, so one small matrix of each pair is enough for X and for the projection.
    small_LRR = torch.stack([_gradient(a_RI) @ a_RI.T for a_RI, _, _ in pairs])
    right_LRR = -(inverse_B_LRR @ small_LRR) / squared
    turned_LRR = vectors_B_LRR.mT @ right_LRR @ vectors_A_LRR
    x_LRR = vectors_B_LRR @ (turned_LRR / (values_B_LR[:, :, None] + values_A_LR[:, None, :])) @ vectors_A_LRR.mT
    scaled_A_LRR, scaled_B_LRR = inverse_A_LRR / squared, inverse_B_LRR / squared
    # gB' = gB K_A - B (K_B^-1 (B^T gB) K_A + X)
    along_LRR = inverse_B_LRR @ small_LRR @ scaled_A_LRR + x_LRR
    return [
        (
            torch.addmm(scaled_B_LRR[i] @ _gradient(a_RI), x_LRR[i], a_RI),
            torch.addmm(_gradient(b_OR) @ scaled_A_LRR[i], b_OR, along_LRR[i], alpha=-1),
        )
        for i, (a_RI, b_OR, _) in enumerate(pairs)
    ]


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
