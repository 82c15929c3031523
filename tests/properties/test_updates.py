"""What must hold for every update of the table, with and without a magnitude, on dense and NF4 bases.

A new row is tested by being there; its own file has its oracle and its formula.
"""

import itertools

import pytest
import torch
from perturbed import perturb_
from torch import nn

from dorakit import attach_, load_adapter, merge_, save_adapter
from dorakit.adapters.attach import adapter_layers, base_only, changes_nothing
from dorakit.adapters.layer import MAGNITUDE
from dorakit.methods import UPDATES
from dorakit.model.arrival import Arrival
from dorakit.model.linear import dense_weight
from dorakit.model.load import load_base
from dorakit.model.nf4 import NF4Format, NF4Linear

OUT, IN, RANK = 48, 64, 4
LAYERS = list(itertools.product(UPDATES, [False, True], [False, True], [False, True]))
every_layer = pytest.mark.parametrize(("update", "magnitude", "nf4", "bias"), LAYERS)
every_model = pytest.mark.parametrize(
    ("update", "method", "nf4"), list(itertools.product(UPDATES, ["lora", "dora"], [False, True]))
)
IDS = torch.arange(24).reshape(2, 12) * 7 % 250 + 3


def make(update, magnitude, nf4, bias):
    torch.manual_seed(0)
    base = nn.Linear(IN, OUT, bias=bias).requires_grad_(False)
    if nf4:
        base = NF4Linear.from_dense(base.weight, base.bias, NF4Format())
    layer_class = UPDATES[update].load()
    return layer_class(
        base,
        rank=RANK,
        alpha=8,
        magnitude_init="dequantized" if magnitude else None,
        generator=torch.Generator().manual_seed(0),
        **layer_class.shared([base], rank=RANK),
    )


def change(layer):
    """By autograd."""
    if not layer.has_factors:
        return layer.update()
    a_RI, b_OR = layer.factors()
    return layer.scaling * b_OR @ a_RI


@every_layer
def test_it_starts_as_its_base(update, magnitude, nf4, bias):
    layer, x = make(update, magnitude, nf4, bias), torch.randn(3, IN)
    torch.testing.assert_close(layer(x), layer.base(x), rtol=1e-5, atol=1e-5)
    assert layer.changes_nothing()
    assert layer.is_untrained()


@every_layer
def test_forward_and_gradients_are_those_of_the_plain_formula(update, magnitude, nf4, bias):
    """y = g (W + s B A) x + b by autograd, the norm a constant. Planted bugs caught: s missing from one of the factors."""
    layer = make(update, magnitude, nf4, bias)
    perturb_(layer, 0.1)
    x, weight = torch.randn(5, IN, requires_grad=True), torch.randn(5, OUT)
    layer(x).backward(weight)
    found = {name: parameter.grad.clone() for name, parameter in layer.trained().items()} | {"x": x.grad.clone()}
    layer.zero_grad()
    x.grad = None
    full_OI = dense_weight(layer.base) + change(layer)
    if magnitude:
        full_OI = (layer.lora_magnitude_vector / full_OI.detach().norm(dim=1))[:, None] * full_OI
    expected = nn.functional.linear(x, full_OI, layer.base.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    expected.backward(weight)
    known = {name: parameter.grad for name, parameter in layer.trained().items()} | {"x": x.grad}
    for name, grad in known.items():
        torch.testing.assert_close(
            found[name], grad, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


@every_layer
def test_merged_weight_and_change_are_what_the_layer_computes(update, magnitude, nf4, bias):
    layer, x = make(update, magnitude, nf4, bias), torch.randn(3, IN)
    perturb_(layer, 0.1)
    bias = layer.base.bias
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.merged_weight(), bias), rtol=1e-4, atol=1e-4)
    change = layer.merged_weight() - dense_weight(layer.base).float()
    torch.testing.assert_close(layer.delta_weight(), change, rtol=1e-4, atol=1e-5)


@every_layer
def test_what_moved_is_seen(update, magnitude, nf4, bias):
    layer = make(update, magnitude, nf4, bias)
    perturb_(layer, 0.1)
    assert not layer.changes_nothing()
    assert not layer.is_untrained()
    layer.mark_start_()
    assert layer.is_untrained()
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == set(layer.trained())
    assert set(layer.trained()) == {*layer.on_disk, *([MAGNITUDE] if magnitude else [])}


@every_model
def test_saved_loaded_merged(tmp_path, update, method, nf4):
    """Planted bugs caught: a tensor not written, the magnitude dropped, settings lost on the way."""

    def base():
        return load_base("tiny:llama", dtype="float32", arrival=Arrival(NF4Format() if nf4 else None)).model

    model = base()
    before = model(IDS).logits
    attach_(model, method=method, update=update, rank=4, alpha=8)
    torch.testing.assert_close(model(IDS).logits, before, rtol=0, atol=1e-5)
    assert changes_nothing(model)
    perturb_(model, 0.1)
    live = model(IDS).logits
    assert not torch.allclose(live, before, atol=1e-2)
    save_adapter(model, tmp_path, base_name_or_path="x")
    again = base()
    load_adapter(again, tmp_path)
    assert torch.equal(again(IDS).logits, live)
    with base_only(model):
        assert torch.equal(model(IDS).logits, before)
    merge_(model)
    assert not list(adapter_layers(model))
    torch.testing.assert_close(model(IDS).logits, live, rtol=1e-3, atol=1e-4)
