"""VeRA (arXiv:2310.11454): y = W x + diag(b) B diag(d) A x. A and B are random, frozen and shared by all layers, which take
the first rows and columns that they need. Under a magnitude it is the DoRA paper's DVoRA.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dorakit.adapters.layer import AdapterLinear
from dorakit.errors import ModelError


@dataclass(frozen=True)
class Projections:
    """A float32 (R, largest I) and B float32 (largest O, R), Kaiming-uniform with gain sqrt(2) as PEFT draws them."""

    A: Tensor
    B: Tensor
    seed: int

    @classmethod
    def draw(cls, rank: int, inputs: int, outputs: int, *, seed: int, device: torch.device) -> Projections:
        """Draw A, then B, on the CPU: a pure function of the sizes and the seed."""
        generator = torch.Generator().manual_seed(seed)

        def kaiming(*shape: int) -> Tensor:
            bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
            return torch.empty(shape).uniform_(-bound, bound, generator=generator).to(device)

        return cls(A=kaiming(rank, inputs), B=kaiming(outputs, rank), seed=seed)


class VeRALinear(AdapterLinear):
    """Two vectors are trained.

    Attributes:
        vera_lambda_d: d, float32 (R,), `d_initial` at the start.
        vera_lambda_b: b, float32 (O,), zero at the start.
        projections: The shared A and B.
    """

    update_name: ClassVar = "vera"
    peft_type: ClassVar = "VERA"
    peft_values: ClassVar = {"d_initial": "number", "vera_dropout": "dropout", "projection_prng_key": "whole"}
    on_disk: ClassVar = {"vera_lambda_d": "vera_lambda_d", "vera_lambda_b": "vera_lambda_b"}
    rank_dim: ClassVar = {"vera_lambda_d": 0}
    grows: ClassVar = "vera_lambda_b"
    shared_keys: ClassVar = ("base_model.vera_A", "base_model.vera_B")
    has_alpha: ClassVar = False

    def build_(  # type: ignore[override]
        self,
        device: torch.device,
        generator: torch.Generator | None,
        *,
        projections: Projections,
        d_initial: float = 0.1,
    ) -> None:
        """Constant d, zero b."""
        self.projections = projections
        self.d_initial = d_initial
        self.vera_lambda_d = nn.Parameter(torch.full((self.rank,), d_initial, device=device))
        self.vera_lambda_b = nn.Parameter(torch.zeros(self.out_features, device=device))

    @classmethod
    def shared(
        cls,
        bases: list[nn.Module],
        *,
        rank: int,
        seed: int = 0,
        tensors: dict[str, Tensor] | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """The projections: drawn from `seed`, or those that an adapter file holds (`tensors`, by key on disk)."""
        inputs, outputs = (max(int(getattr(base, side)) for base in bases) for side in ("in_features", "out_features"))
        device = next(bases[0].parameters()).device
        projections = Projections.draw(rank, inputs, outputs, seed=seed, device=device)
        if tensors:
            a, b = (tensors[key].float().to(device) for key in cls.shared_keys)
            if (a.shape, b.shape) != (projections.A.shape, projections.B.shape):
                raise ModelError(
                    f"vera_A and vera_B are {tuple(a.shape)} and {tuple(b.shape)}; the adapted layers need "
                    f"{tuple(projections.A.shape)} and {tuple(projections.B.shape)}"
                )
            projections = Projections(a, b, seed)
        return {"projections": projections, **settings}

    def constants(self) -> list[Tensor]:
        """The projections."""
        return [self.projections.A, self.projections.B]

    def factors(self) -> tuple[Tensor, Tensor]:
        """diag(d) A and diag(b) B."""
        a_RI, b_OR = self.projections.A[:, : self.in_features], self.projections.B[: self.out_features]
        return self.vera_lambda_d[:, None] * a_RI, self.vera_lambda_b[:, None] * b_OR

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> dict[str, Any]:
        """VeraConfig."""
        settings = {"d_initial": config.get("d_initial", 0.1), "seed": int(config.get("projection_prng_key") or 0)}
        return {"dropout": float(config.get("vera_dropout") or 0.0), "settings": settings}

    @classmethod
    def to_peft(cls, layers: dict[str, AdapterLinear], rank: int) -> dict[str, Any]:
        """VeraConfig."""
        first = next(iter(layers.values()))
        assert isinstance(first, VeRALinear)
        return {
            "d_initial": first.d_initial,
            "vera_dropout": first.dropout.p,
            "projection_prng_key": first.projections.seed,
            "save_projection": True,
            "init_weights": True,
            "bias": "none",
            "fan_in_fan_out": False,
        }

    @classmethod
    def shared_tensors(cls, layers: dict[str, AdapterLinear]) -> dict[str, Tensor]:
        """A and B, without which nobody could read the file if torch ever drew other numbers."""
        first = next(iter(layers.values()))
        assert isinstance(first, VeRALinear)
        return dict(zip(cls.shared_keys, (first.projections.A, first.projections.B), strict=True))
