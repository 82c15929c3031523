"""An adapted linear layer: y = g (W x + s B A D(x)) + b, where a subclass says what A and B are.

g = 1 without a magnitude. With one, which makes it DoRA (arXiv:2402.09353, eq. 5 and 11, sec. 4.3), g = m / n with the
row norms n = ||W + s B A|| as constants for the gradient. The bias is never scaled. Dropout falls on the low-rank branch
only, so W is multiplied once; the authors' code and PEFT drop out the base term too: the same expectation at twice the cost.

Owns one layer. Which layers are adapted is decided in adapters/attach.py; the base is seen
only through model/linear.py. The product is computed in adapters/fused.py.

Shapes: B batch, T tokens, I in, O out, R rank.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dorakit.adapters.fused import adapted_product
from dorakit.adapters.initial import Initial
from dorakit.adapters.magnitude import row_norm
from dorakit.adapters.on_disk import OnDisk
from dorakit.adapters.original import change_factors, original_weight
from dorakit.model.linear import dense_weight, row_norm_squared, sizes
from dorakit.model.nf4 import ROWS_AT_ONCE, NF4Linear

MAGNITUDE = "lora_magnitude_vector"
_SMALL_GAIN = 0.5  # below it g - 1 in bfloat16 is wrong by more than a rounding of g (fused.py)


class AdapterLinear(OnDisk, nn.Module):
    """A frozen linear layer with a trained update of its weight. Complete once built; at step 0 it equals its base.

    Attributes:
        grows: The parameter that stays as it was if, and only if, training had no effect. The others also decay.
        has_alpha: False: s = 1.
        has_factors: False: the change is no product of two small matrices (adapters/unfactored.py).
        base: The frozen layer.
        scaling: s.
        lora_magnitude_vector: m, float32 (O,), at the start the row norms of the weight in use. None without a magnitude.
        start: Where A and B began: a name of the table of methods.
        initial: A0 (R, I) and B0 (O, R) of a start that changed the base to W - s B0 A0, float32, not trained; else None.
        enabled: False leaves the output to W, the base as it was before any start.
    """

    grows: ClassVar[str]
    has_alpha: ClassVar[bool] = True
    has_factors: ClassVar[bool] = True

    def __init__(
        self,
        base: nn.Module,
        *,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        rslora: bool = False,
        magnitude_init: str | None = None,
        generator: torch.Generator | None = None,
        initial: Initial | None = None,
        name: str = "",
        **settings: Any,
    ):
        """Build the layer.

        Args:
            base: The frozen layer.
            rank: r.
            alpha: Numerator of s.
            dropout: On the input of A.
            rslora: s = alpha / sqrt(r) instead of alpha / r.
            magnitude_init: `dequantized`: a magnitude that starts as the row norms of the weight in use; `original`: of the
                weight before it was quantized. None: no magnitude.
            generator: Draws the start; on the CPU, so that a seed means the same adapter on every device.
            initial: What a start took out of the base already, under `name`.
            name: Of the module.
            settings: Of the update alone; see its `build_`.
        """
        super().__init__()
        self.base = base
        self.out_features, self.in_features = sizes(base)
        self.rank = rank
        self.alpha = alpha
        self.scaling = scaling_of(rank, alpha, rslora=rslora) if self.has_alpha else 1.0
        self.dropout = nn.Dropout(dropout)
        self.enabled = True
        self.build_(next(base.parameters()).device, generator, **settings)
        self.start = "kaiming" if initial is None else initial.start
        self.initial: tuple[Tensor, Tensor] | None = None
        if initial is not None:
            self.initial = initial.factors_for(name, self.rank, self.scaling)
            with torch.no_grad():
                for parameter, value in zip(self.factors(), self.initial, strict=True):
                    parameter.copy_(value)
        self.lora_magnitude_vector: nn.Parameter | None = None
        self._norm: Tensor | None = None
        self._norm_versions: tuple[int, ...] = ()
        self._has_small_gain = False
        if magnitude_init is not None:
            with torch.no_grad():
                self._base_norm_squared = row_norm_squared(base)
                norm = self._base_norm_squared.sqrt()
                if magnitude_init == "original" and isinstance(base, NF4Linear) and base.original_row_norm.numel():
                    norm = base.original_row_norm
            self.lora_magnitude_vector = nn.Parameter(norm.clone())
            if initial is not None and magnitude_init == "original":
                self.lora_magnitude_vector.data.copy_(initial.row_norms[name])
            elif initial is not None:
                self.magnitude_to_norm_()
        self._start: dict[str, str] = {}
        self.mark_start_()

    def build_(self, device: torch.device, generator: torch.Generator | None) -> None:
        """Make the parameters, on `device`. A subclass takes the settings of its update as further keyword arguments."""
        raise NotImplementedError

    @classmethod
    def shared(cls, bases: list[nn.Module], *, rank: int, **settings: Any) -> dict[str, Any]:
        """Settings for each of the layers on these bases: `settings`, and what the layers have in common."""
        return settings

    def factors(self) -> tuple[Tensor, Tensor]:
        """A float32 (R, I) and B float32 (O, R), differentiable in the parameters."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The layer: x (..., I) -> (..., O), in x's dtype."""
        return self.product(x) if self.enabled else self.base_product(x)

    def base_product(self, x: Tensor) -> Tensor:
        """W x + b, of the base as it was before any start."""
        if self.initial is None:
            out: Tensor = self.base(x)
            return out
        a0_RI, b0_OR = self.initial
        return adapted_product(self.base, x, a0_RI, b0_OR, scaling=self.scaling)

    def product(self, x: Tensor) -> Tensor:
        """The adapted product, dropout included."""
        a_RI, b_OR = self.factors()
        dropped = self.dropout(x) if self.training and self.dropout.p else None
        gain = None if self.lora_magnitude_vector is None else self.lora_magnitude_vector / self.weight_norm()
        # The norm is what says whether a gain is small.
        small = self._has_small_gain
        return adapted_product(
            self.base, x, a_RI, b_OR, scaling=self.scaling, dropped=dropped, gain=gain, has_small_gain=small
        )

    def constants(self) -> list[Tensor]:
        """Frozen tensors beside the base, which layers may have in common."""
        return []

    # State of training

    def trained(self) -> dict[str, nn.Parameter]:
        """The layer's own parameters by name, in the order that optimizers and checkpoints have them."""
        return dict(self.named_parameters(recurse=False))

    @torch.no_grad()
    def mark_start_(self) -> None:
        """Remember the parameters as they are: what training begins with."""
        self._start = {
            name: _digest(parameter)
            for name, parameter in self.trained().items()
            if name in (self.grows, MAGNITUDE) and not parameter.is_meta
        }

    def is_untrained(self) -> bool:
        """Whether `grows` is, bit for bit, what training began with."""
        return self._stands_still(self.grows)

    def has_still_magnitude(self) -> bool:
        """Whether m is, bit for bit, what training began with."""
        return self._stands_still(MAGNITUDE)

    def _stands_still(self, name: str) -> bool:
        return _digest(self.get_parameter(name)) == self._start[name]

    @torch.no_grad()
    def changes_nothing(self) -> bool:
        """Whether the layer computes what its base does: the update is zero, and a magnitude is as training began."""
        return self.is_zero() and (self.lora_magnitude_vector is None or self.has_still_magnitude())

    def is_zero(self) -> bool:
        """Whether the update is zero: a factor is, or both are those of the start."""
        if self.initial is not None:
            return all(map(torch.equal, self.factors(), self.initial))
        return any(not factor.any() for factor in self.factors())

    # The magnitude

    def weight_norm(self) -> Tensor:
        """Row norms n = ||W + s B A||, float32 (O,), without gradient.

        Computed anew when a parameter has changed in place since the last call (by their version counters; code that
        writes past autograd must call `torch.autograd.graph.increment_version`). A compiled layer, which
        cannot ask for versions, takes the value of `update_norm`.
        """
        if torch.compiler.is_compiling():
            assert self._norm is not None
            return self._norm
        versions = tuple(parameter._version for parameter in self.trained().values())
        if self._norm is None or versions != self._norm_versions:
            # Outside inference mode: the value is kept for training steps too.
            with torch.inference_mode(False), torch.no_grad():
                self._norm = self.row_norm()
                if not self._norm.is_meta:
                    assert self.lora_magnitude_vector is not None
                    self._has_small_gain = bool((self.lora_magnitude_vector.abs() < _SMALL_GAIN * self._norm).any())
            self._norm_versions = versions
        return self._norm

    def row_norm(self) -> Tensor:
        """Row norms of W + s B A, float32 (O,)."""
        a_RI, b_OR = (factor.detach().float() for factor in self.factors())
        squared = self._base_norm_squared
        return row_norm(self.base, a_RI, b_OR, scaling=self.scaling, base_norm_squared=squared)

    def update_norm(self) -> None:
        """Bring n up to date before a compiled layer uses it."""
        if self.lora_magnitude_vector is not None:
            self.weight_norm()

    @torch.no_grad()
    def magnitude_to_norm_(self) -> None:
        """Set m = n, which keeps the answers of an adapter that had no magnitude."""
        assert self.lora_magnitude_vector is not None
        self.lora_magnitude_vector.copy_(self.weight_norm())

    # The weight

    @torch.no_grad()
    def update(self) -> Tensor:
        """The change of W without a magnitude, s (B A - B0 A0), float32 (O, I)."""
        a_RI, b_OR = change_factors(self)
        return (b_OR.float() @ a_RI.float()).mul_(self.scaling)

    def updated_weight(self) -> Tensor:
        """W + s B A, float32 (O, I)."""
        a_RI, b_OR = self.factors()
        return dense_weight(self.base).float().addmm(b_OR.float(), a_RI.float(), alpha=self.scaling)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The float32 weight (O, I) of the dense layer that computes the same in eval mode: g (W + s B A)."""
        merged_OI = self.updated_weight()
        if self.lora_magnitude_vector is None:
            return merged_OI
        return merged_OI.mul_((self.lora_magnitude_vector / self.weight_norm())[:, None])

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """The float32 change of the weight (O, I): merged_weight() - W, without the rounding of that subtraction.

        With a magnitude that is (g - 1) W + g s B A, of full rank as soon as m has moved.
        """
        delta_OI = self.update()
        if self.lora_magnitude_vector is None:
            return delta_OI
        gain_O1 = (self.lora_magnitude_vector / self.weight_norm())[:, None]
        delta_OI, weight_OI = delta_OI.mul_(gain_O1), original_weight(self)
        for start in range(0, self.out_features, ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            delta_OI[rows].addcmul_(weight_OI[rows].float(), gain_O1[rows] - 1)
        return delta_OI

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"rank={self.rank}, alpha={self.alpha}, scaling={self.scaling:.4g}"


def scaling_of(rank: int, alpha: float, *, rslora: bool) -> float:
    """S = alpha / r, or alpha / sqrt(r) with rslora."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def _digest(tensor: Tensor) -> str:
    values = tensor.detach().cpu().reshape(-1) + 0.0  # -0 is 0
    return hashlib.sha256(values.view(torch.uint8).numpy().data).hexdigest()
