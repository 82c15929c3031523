"""The hand-written product of an adapted layer against the plain formula, differentiated by torch."""

import pytest
import torch
from torch import nn

from dorakit.adapters.fused import adapted_product
from dorakit.model.linear import dense_weight
from dorakit.model.nf4 import NF4Format, NF4Linear

IN, OUT, RANK, SCALING = 64, 48, 4, 2.0


def plain(base, x, a, b, dropped, gain):
    z = x @ dense_weight(base).to(x.dtype).T + SCALING * (x if dropped is None else dropped) @ a.T @ b.T
    y = z if gain is None else gain * z
    return y if base.bias is None else y + base.bias


def make(bias, nf4, with_gain, with_dropout, dtype=torch.float64):
    torch.manual_seed(0)
    base = nn.Linear(IN, OUT, bias=bias).requires_grad_(False)
    if nf4:
        base = NF4Linear.from_dense(base.weight, base.bias, NF4Format())
    elif dtype == torch.float64:
        base = base.double()
    x, a, b = (torch.randn(*s, dtype=dtype, requires_grad=True) for s in ((2, 5, IN), (RANK, IN), (OUT, RANK)))
    dropped = torch.nn.functional.dropout(x.detach(), 0.5).requires_grad_() if with_dropout else None
    gain = (1 + 0.1 * torch.randn(OUT, dtype=dtype)).requires_grad_() if with_gain else None
    return base, x, a, b, dropped, gain


@pytest.mark.parametrize("with_dropout", [False, True], ids=["", "dropout"])
@pytest.mark.parametrize("with_gain", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("nf4", [False, True], ids=["dense", "nf4"])
@pytest.mark.parametrize("frozen_x", [False, True], ids=["", "x needs no gradient"])
def test_value_and_gradients(bias, nf4, with_gain, with_dropout, frozen_x):
    """Planted bugs caught: B's gradient without s or g; the low-rank gradient of x left out; g - 1 twice; the product
    kept for g changed in place afterwards."""
    parts = make(bias, nf4, with_gain, with_dropout)
    base, x, a, b, dropped, gain = parts
    x.requires_grad_(not frozen_x)
    for small in (False, True) if with_gain else (False,):
        mine = adapted_product(base, x, a, b, scaling=SCALING, dropped=dropped, gain=gain, has_small_gain=small)
        expected = plain(*parts)
        torch.testing.assert_close(mine, expected)
        inputs = [t for t in (x, a, b, dropped, gain) if t is not None and t.requires_grad]
        weight = torch.randn_like(mine)
        for found, known in zip(
            torch.autograd.grad(mine, inputs, weight), torch.autograd.grad(expected, inputs, weight), strict=True
        ):
            torch.testing.assert_close(found, known)


def test_a_row_of_zero_gain_still_gives_its_gradient():
    """Planted bug caught: y / g where g is 0."""
    parts = make(bias=False, nf4=False, with_gain=True, with_dropout=False)
    base, x, a, b, _, gain = parts
    with torch.no_grad():
        gain[3] = 0
    mine = adapted_product(base, x, a, b, scaling=SCALING, gain=gain, has_small_gain=True)
    (found,) = torch.autograd.grad(mine.sum(), gain)
    (known,) = torch.autograd.grad(plain(*parts).sum(), gain)
    assert known[3].abs() > 1e-3
    torch.testing.assert_close(found, known)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_a_gain_that_bfloat16_cannot_hold(bias):
    """Where the low-rank branch dithers, the mean change follows g - 1 = 0.0015, which rounds to 0 beside 1.

    Planted bugs caught: g rounded to bfloat16; the sum rounded before it is scaled.
    """
    base, x, a, b, _, _ = make(bias=bias, nf4=False, with_gain=False, with_dropout=False, dtype=torch.float32)
    base, x = base.bfloat16(), torch.randn(4000, IN).bfloat16()
    with torch.no_grad():
        outputs = [
            adapted_product(base, x, a, 0.002 * b, scaling=SCALING, gain=torch.full((OUT,), g)).float()
            for g in (1.0, 1.0015)
        ]
        z = plain(base, x.double(), a.double(), 0.002 * b.double(), None, None)
        z = z if base.bias is None else z - base.bias.double()
    change = ((outputs[1] - outputs[0]) * z.sign()).sum() / z.abs().sum()
    assert change == pytest.approx(0.0015, rel=0.1)
