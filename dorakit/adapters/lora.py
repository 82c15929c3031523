"""LoRA (arXiv:2106.09685, eq. 3): y = W x + s B A x, with s = alpha / r, or alpha / sqrt(r) as rsLoRA (arXiv:2312.03732)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dorakit.adapters.layer import AdapterLinear


class LoRALinear(AdapterLinear):
    """A and B themselves are trained.

    Attributes:
        lora_A: float32 (R, I), Kaiming-uniform at the start.
        lora_B: float32 (O, R), zero at the start.
    """

    update_name: ClassVar = "lora"
    peft_type: ClassVar = "LORA"
    peft_values: ClassVar = {
        "lora_alpha": "number",
        "lora_dropout": "dropout",
        "use_dora": "flag",
        "use_rslora": "flag",
        "rank_pattern": "ranks",
        "alpha_pattern": "numbers",
    }
    on_disk: ClassVar = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
    rank_dim: ClassVar = {"lora_A": 0, "lora_B": 1}
    grows: ClassVar = "lora_B"

    def build_(self, device: torch.device, generator: torch.Generator | None) -> None:
        """Kaiming and zeros."""
        self.lora_A = kaiming(self.rank, self.in_features, device, generator)
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, self.rank, device=device))

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B."""
        return self.lora_A, self.lora_B

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> dict[str, Any]:
        """LoraConfig."""
        return {
            "alpha": float(config["lora_alpha"]),
            "dropout": float(config.get("lora_dropout", 0.0)),
            "rslora": bool(config.get("use_rslora", False)),
        }

    @classmethod
    def to_peft(cls, layers: dict[str, AdapterLinear], rank: int) -> dict[str, Any]:
        """LoraConfig."""
        first = next(iter(layers.values()))
        return {
            "lora_alpha": first.alpha,
            "lora_dropout": first.dropout.p,
            "bias": "none",
            "use_dora": first.lora_magnitude_vector is not None,
            "use_rslora": any(layer.scaling != layer.alpha / layer.rank for layer in layers.values()),
            "rank_pattern": {name: layer.rank for name, layer in layers.items() if layer.rank != rank},
            "alpha_pattern": {name: layer.alpha for name, layer in layers.items() if layer.alpha != first.alpha},
            "init_lora_weights": True,
            "fan_in_fan_out": False,
        }


def kaiming(rank: int, inputs: int, device: torch.device, generator: torch.Generator | None) -> nn.Parameter:
    """A, float32 (R, I), Kaiming-uniform, drawn on the CPU."""
    start = torch.empty(rank, inputs)
    nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
    return nn.Parameter(start.to(device))
