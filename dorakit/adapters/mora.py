"""MoRA (arXiv:2405.12130): one square matrix M with as many numbers as a LoRA of rank R has, between a compression of x and
a decompression, both without parameters.

Its side is r = floor(sqrt((I + O) R) + 0.5), and even for kind 6. Where r does not divide I, x is continued with its own
first entries; where the result is shorter than O, it is repeated, and cut where it is longer.

    kind 1   h = sum of x over blocks of r inputs;   U x = M h
    kind 6   h_b = x's block b, rotated by b 10000^(-2 j / r) in its plane (j, j + r / 2);   U x = M h_0, M h_1, ...

The authors call the kinds types. U of kind 1 has rank r; U of kind 6 has up to full rank.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dorakit.adapters.layer import AdapterLinear
from dorakit.adapters.on_disk import OWN_TYPE
from dorakit.adapters.unfactored import UnfactoredLinear
from dorakit.errors import ModelError

KINDS = (1, 6)


class MoRALinear(UnfactoredLinear):
    """One square matrix is trained.

    Attributes:
        mora_M: M, float32 (r, r), zero at the start.
    """

    update_name: ClassVar = "mora"
    peft_type: ClassVar = OWN_TYPE
    peft_values: ClassVar = {"mora_type": "number", "mora_dropout": "dropout", "rank_pattern": "ranks"}
    on_disk: ClassVar = {"mora_M": "mora_M"}
    rank_dim: ClassVar[dict[str, int]] = {}
    grows: ClassVar = "mora_M"

    def build_(self, device: torch.device, generator: torch.Generator | None, *, kind: int = 6) -> None:
        """Zeros."""
        if kind not in KINDS:
            raise ModelError(
                f"update mora has no kind {kind!r:.80}; known are 1 (sums of blocks) and 6 (rotated blocks)"
            )
        if self.rank > min(self.in_features, self.out_features):
            raise ModelError(
                f"update mora of rank {self.rank} is above the layer of {self.out_features} x {self.in_features}\n"
                f"  give it a rank of at most {min(self.in_features, self.out_features)}"
            )
        self.kind = kind
        self.side = math.floor(math.sqrt((self.in_features + self.out_features) * self.rank) + 0.5)
        if kind == 6:
            self.side -= self.side % 2
        self.mora_M = nn.Parameter(torch.zeros(self.side, self.side, device=device))

    def branch(self, x: Tensor) -> Tensor:
        """U x, without U: (I + O) / r products with M at most."""
        blocks = math.ceil(self.in_features / self.side)
        x_br = _to_width(x, blocks * self.side).reshape(*x.shape[:-1], blocks, self.side)
        h_br = x_br.sum(dim=-2, keepdim=True) if self.kind == 1 else _rotate(x_br)
        return _to_width((h_br @ self.mora_M.to(x.dtype).T).flatten(-2), self.out_features)

    def update(self) -> Tensor:
        """The product with the identity."""
        return self.branch(torch.eye(self.in_features, device=self.mora_M.device)).T

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Our own entries, from `to_peft`."""
        return {"dropout": float(config.get("mora_dropout") or 0.0), "settings": {"kind": config.get("mora_type", 6)}}

    @classmethod
    def to_peft(cls, layers: dict[str, AdapterLinear], rank: int) -> dict[str, Any]:
        """Entries of our own, since PEFT has no MoRA."""
        first = next(iter(layers.values()))
        assert isinstance(first, MoRALinear)
        return {
            "mora_type": first.kind,
            "mora_dropout": first.dropout.p,
            "rank_pattern": {name: layer.rank for name, layer in layers.items() if layer.rank != rank},
        }


def _to_width(x: Tensor, width: int) -> Tensor:
    """Cut x (..., any) to `width`, or continue it with itself up to there."""
    while x.shape[-1] < width:
        x = torch.cat([x, x[..., : width - x.shape[-1]]], dim=-1)
    return x[..., :width]


def _rotate(x_br: Tensor) -> Tensor:
    """Rotate block b of x (..., blocks, r) by b theta_j in the plane of j and j + r / 2."""
    blocks, side = x_br.shape[-2:]
    theta = 10000.0 ** (-2 / side * torch.arange(side // 2, device=x_br.device, dtype=torch.float32))
    angle = torch.arange(blocks, device=x_br.device)[:, None] * theta
    cos, sin = angle.cos().to(x_br.dtype), angle.sin().to(x_br.dtype)
    left, right = x_br.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
