"""Properties of adapters over random shapes and values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dorakit.adapters.lora import LoRALinear
from dorakit.model.linear import KINDS, Kind, dense_weight
from dorakit.model.nf4 import NF4Format, NF4Linear

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 20).map(lambda n: 2 * n), st.integers(1, 8))
BASES = st.booleans()
MAGNITUDE_OF = {"lora": None, "dora": "dequantized"}
METHOD = st.sampled_from(["dora", "lora"])


def layer(method: str, shape: tuple[int, int, int], nf4: bool, seed: int, perturb: float = 0.0) -> nn.Module:
    out, inside, rank = shape
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inside, generator=generator)
    bias = torch.randn(out, generator=generator)
    if nf4:
        base: nn.Module = NF4Linear.from_dense(weight, bias, NF4Format())
    else:
        base = nn.Linear(inside, out)
        base.weight, base.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
    adapted = LoRALinear(base, rank=rank, alpha=2.0 * rank, generator=generator, magnitude_init=MAGNITUDE_OF[method])
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name.startswith("lora_") and perturb:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * perturb)
    return adapted


@settings(max_examples=40, deadline=None)
@given(METHOD, SHAPES, BASES, st.integers(0, 99))
def test_attaching_is_the_identity(method, shape, nf4, seed):
    adapted = layer(method, shape, nf4, seed)
    x = torch.randn(3, shape[1])
    torch.testing.assert_close(adapted(x), adapted.base(x), rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(METHOD, SHAPES, BASES, st.integers(0, 99))
def test_the_merged_weight_is_the_forward_pass(method, shape, nf4, seed):
    """Planted bug that dies here: merging without the magnitude."""
    adapted = layer(method, shape, nf4, seed)
    x = torch.randn(3, shape[1])
    adapted(x)  # fills the norm's cache
    with torch.no_grad():
        adapted.lora_B.add_(torch.randn(adapted.lora_B.shape) * 0.3)
    expected = nn.functional.linear(x, adapted.merged_weight(), adapted.base.bias)
    torch.testing.assert_close(adapted(x), expected, rtol=1e-4, atol=1e-4)


class Transposed(nn.Module):
    """A linear layer that keeps its weight as (in, out)."""

    def __init__(self):
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x):
        return x @ self.kernel + self.bias


@pytest.mark.parametrize("method", MAGNITUDE_OF)
def test_a_kind_of_layer_is_one_line(method, monkeypatch):
    """Planted bug caught: a weight or its sizes read past the line."""
    monkeypatch.setitem(KINDS, Transposed, Kind(lambda layer: layer.kernel.detach().T, lambda layer: (4, 6)))
    adapted = LoRALinear(Transposed(), rank=2, alpha=4.0, magnitude_init=MAGNITUDE_OF[method])
    x = torch.randn(3, 6)
    torch.testing.assert_close(adapted(x), adapted.base(x))
    with torch.no_grad():
        adapted.lora_B.normal_()
    torch.testing.assert_close(adapted(x), nn.functional.linear(x, adapted.merged_weight(), adapted.base.bias))


@settings(max_examples=40, deadline=None)
@given(SHAPES, BASES, st.integers(0, 99))
def test_the_low_rank_norm_is_the_norm(shape, nf4, seed):
    """Planted bugs that die here: the cross term without its factor 2; alpha / r left out of the norm."""
    adapted = layer("dora", shape, nf4, seed, perturb=0.5)
    dense = dense_weight(adapted.base) + adapted.scaling * adapted.lora_B @ adapted.lora_A
    torch.testing.assert_close(adapted.weight_norm(), dense.norm(dim=1).detach(), rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.floats(0.01, 100.0), st.integers(0, 99))
def test_a_scaled_base_changes_nothing(shape, factor, seed):
    """With B = 0 and m kept, only the direction of W counts."""
    one, two = layer("dora", shape, False, seed), layer("dora", shape, False, seed)
    with torch.no_grad():
        scaled = nn.Linear(shape[1], shape[0])
        scaled.weight = nn.Parameter(one.base.weight * factor, requires_grad=False)
        scaled.bias = one.base.bias
    two = LoRALinear(scaled, rank=shape[2], alpha=1.0, magnitude_init="dequantized")
    with torch.no_grad():
        two.lora_magnitude_vector.copy_(one.lora_magnitude_vector)
    x = torch.randn(3, shape[1])
    torch.testing.assert_close(one(x), two(x), rtol=1e-4, atol=1e-4)


def test_a_zero_row_stays_zero():
    """Planted bug that dies here: 0 / 0."""
    base = nn.Linear(8, 4, bias=False).requires_grad_(False)
    with torch.no_grad():
        base.weight[2] = 0
    adapted = LoRALinear(base, rank=2, alpha=4, magnitude_init="dequantized")
    x = torch.randn(5, 8)
    y = adapted(x)
    y.sum().backward()
    assert torch.equal(y[:, 2], torch.zeros(5))
    assert all(torch.isfinite(p.grad).all() for p in adapted.parameters() if p.grad is not None)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40).map(lambda n: 2 * n), st.integers(0, 99))
def test_quantizing_what_was_dequantized_gives_the_same_bytes(out, inside, seed):
    """Without double quantization, whose second rounding moves absmax."""
    form = NF4Format(double_quant=False)
    weight = torch.randn(out, inside, generator=torch.Generator().manual_seed(seed))
    once = NF4Linear.from_dense(weight, None, form)
    twice = NF4Linear.from_dense(once.dequantize(), None, form)
    assert torch.equal(once.weight, twice.weight)
    # No weight is further from its code than half the widest gap between codes, times absmax.
    blocks = nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
    error = nn.functional.pad((weight - once.dequantize()).flatten(), (0, -weight.numel() % 64)).view(-1, 64)
    assert (error.abs().amax(dim=1) <= 0.16 * blocks.abs().amax(dim=1) + 1e-6).all()
