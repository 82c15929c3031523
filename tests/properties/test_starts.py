"""What must hold for every start that changes the base, with and without a magnitude, on dense and NF4 bases."""

import itertools

import pytest
import torch
from perturbed import perturb_

from dorakit import Recipe, load_adapter, merge_, save_adapter
from dorakit.adapters.attach import adapter_layers, base_only, changes_nothing
from dorakit.adapters.initial import INITIAL
from dorakit.adapters.initial_format import initial_of
from dorakit.adapters.original import change_factors, original_weight
from dorakit.adapters.peft_format import check_saved
from dorakit.adapters.starts.olora import olora
from dorakit.adapters.starts.pissa import pissa
from dorakit.build import build_model
from dorakit.errors import ModelError
from dorakit.methods import STARTS
from dorakit.model.arrival import Arrival
from dorakit.model.linear import dense_weight
from dorakit.model.load import load_base
from dorakit.model.nf4 import NF4Format, NF4Linear

STARTED = [name for name in STARTS if name != "kaiming"]
every_start = pytest.mark.parametrize("start", STARTED)
every_model = pytest.mark.parametrize(
    ("start", "mode"), list(itertools.product(STARTED, ["lora", "dora", "qlora", "qdora"]))
)
IDS = torch.arange(24).reshape(2, 12) * 7 % 250 + 3
RANK, SCALING = 4, 2.0


def recipe(start, mode, base="tiny:llama", **adapter):
    return Recipe(
        version=1,
        model={"base": base, "dtype": "float32"},
        adapter={"mode": mode, "start": start, "rank": RANK, "alpha": RANK * SCALING, **adapter},
        data={"train": [{"path": "rows.jsonl", "format": "text"}]},
        optimizer={"learning_rate": 1e-4},
    )


def dense():
    return load_base("tiny:llama", dtype="float32").model


def weight(outputs=48, inputs=64):
    torch.manual_seed(0)
    return torch.randn(outputs, inputs)


@pytest.mark.parametrize("shape", [(48, 64), (64, 48)])
@pytest.mark.parametrize("iterations", [None, 16])
def test_pissa_takes_the_largest_singular_values(shape, iterations):
    """Planted bug caught: s forgotten, so that s B0 A0 is not the principal part."""
    w_OI = weight(*shape)
    a_RI, b_OR = pissa(w_OI, RANK, SCALING, torch.Generator().manual_seed(0), iterations=iterations)
    values = torch.linalg.svdvals(w_OI)
    part = SCALING * b_OR @ a_RI
    near = {"rtol": 3e-2, "atol": 3e-2} if iterations else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(torch.linalg.matrix_norm(part, 2), values[0], **near)
    left = torch.linalg.svdvals(w_OI - part)[: len(values) - RANK]
    torch.testing.assert_close(left, values[RANK:], **near)
    torch.testing.assert_close(a_RI @ a_RI.T, b_OR.T @ b_OR, rtol=1e-4, atol=1e-4)


def test_a_seed_is_the_same_randomised_start():
    """And the global generator stays as it was."""
    before = torch.random.get_rng_state()
    first, again, other = (
        pissa(weight(), RANK, SCALING, torch.Generator().manual_seed(seed), iterations=1)[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(48, 64), (64, 48)])
def test_olora_is_the_first_part_of_qr(shape):
    w_OI = weight(*shape)
    a_RI, b_OR = olora(w_OI, RANK, SCALING, torch.Generator())
    torch.testing.assert_close(b_OR.T @ b_OR, torch.eye(RANK), rtol=0, atol=1e-5)
    assert not a_RI.tril(-1).any()
    torch.testing.assert_close((b_OR @ a_RI)[:, :RANK], w_OI[:, :RANK], rtol=1e-4, atol=1e-4)


@every_model
def test_it_starts_as_the_original_weights(start, mode):
    """Dense, in float32: W = W_res + s B0 A0, and m = ||W||. Planted bug caught: m of the residual."""
    model = build_model(recipe(start, mode)).model
    original = dense()
    if mode in ("lora", "dora"):
        torch.testing.assert_close(model(IDS).logits, original(IDS).logits, rtol=1e-4, atol=1e-4)
    assert changes_nothing(model)
    for name, layer in adapter_layers(model):
        w_OI = original.get_submodule(name).weight
        assert isinstance(layer.base, NF4Linear) == mode.startswith("q")
        assert layer.is_untrained() and not layer.delta_weight().abs().max() > 1e-6
        if mode in ("lora", "dora"):
            torch.testing.assert_close(original_weight(layer), w_OI, rtol=1e-5, atol=1e-5)
        if mode == "dora":
            torch.testing.assert_close(layer.lora_magnitude_vector, w_OI.norm(dim=1), rtol=1e-5, atol=1e-5)
        if mode == "qdora":
            torch.testing.assert_close(layer.lora_magnitude_vector, layer.weight_norm())


@every_start
def test_an_original_magnitude_is_that_of_the_unquantized_weight(start):
    model, original = build_model(recipe(start, "qdora", magnitude={"init": "original"})).model, dense()
    for name, layer in adapter_layers(model):
        norm = original.get_submodule(name).weight.norm(dim=1)
        torch.testing.assert_close(layer.lora_magnitude_vector, norm, rtol=1e-5, atol=1e-5)


def test_pissa_leaves_a_smaller_error_than_plain_nf4():
    """Nuclear norm of the error. Planted bug caught: quantized first, then decomposed."""
    model, original = build_model(recipe("pissa", "qlora", rank=16, alpha=16)).model, dense()
    for name, layer in adapter_layers(model):
        w_OI = original.get_submodule(name).weight
        plain = NF4Linear.from_dense(w_OI, None, NF4Format())
        error, plainly = (
            torch.linalg.matrix_norm(w_OI - other, "nuc")
            for other in (layer.merged_weight(), dense_weight(plain).float())
        )
        assert error < plainly, name


@every_model
def test_switched_off_it_is_the_original_base(start, mode):
    """Planted bug caught: the residual answers."""
    model = build_model(recipe(start, mode)).model
    before = model(IDS).logits
    perturb_(model)
    assert not changes_nothing(model)
    assert not torch.allclose(model(IDS).logits, before, atol=1e-2)
    with base_only(model):
        torch.testing.assert_close(model(IDS).logits, before, rtol=1e-4, atol=1e-4)


@every_model
def test_changes_are_relative_to_the_original_weight(start, mode):
    """Planted bug caught: delta_weight() without - s B0 A0."""
    model = build_model(recipe(start, mode)).model
    perturb_(model)
    for _, layer in adapter_layers(model):
        change = layer.merged_weight() - original_weight(layer)
        torch.testing.assert_close(layer.delta_weight(), change, rtol=1e-3, atol=1e-4)
        a_RI, b_OR = change_factors(layer)
        assert len(a_RI) == 2 * RANK
        if not mode.endswith("dora"):
            torch.testing.assert_close(layer.scaling * b_OR @ a_RI, change, rtol=1e-3, atol=1e-4)


@every_model
def test_saved_loaded_merged(tmp_path, monkeypatch, start, mode):
    """Bit for bit, without another decomposition. Planted bug caught: loaded onto W without a word."""
    model = build_model(recipe(start, mode)).model
    perturb_(model)
    live = model(IDS).logits
    save_adapter(model, tmp_path, base_name_or_path="tiny:llama")
    check_saved(model, tmp_path)
    for function in ("svd", "qr"):
        monkeypatch.setattr(torch.linalg, function, None)
    initial = initial_of(tmp_path)
    nf4 = NF4Format() if mode.startswith("q") else None
    again = load_base("tiny:llama", dtype="float32", arrival=Arrival(nf4, residual=initial.residual)).model
    load_adapter(again, tmp_path, initial=initial)
    assert torch.equal(again(IDS).logits, live)
    if nf4 is None:
        again = dense()
        load_adapter(again, tmp_path)
        assert torch.equal(again(IDS).logits, live)
    else:
        with pytest.raises(ModelError, match="before quantization"):
            load_adapter(load_base("tiny:llama", dtype="float32", arrival=Arrival(nf4)).model, tmp_path)
    merge_(model)
    torch.testing.assert_close(model(IDS).logits, live, rtol=1e-3, atol=1e-4)


@every_start
def test_an_adapter_without_its_initial_is_refused(tmp_path, start):
    model = build_model(recipe(start, "lora")).model
    save_adapter(model, tmp_path, base_name_or_path="tiny:llama")
    whole = (tmp_path / INITIAL).read_bytes()
    (tmp_path / INITIAL).write_bytes(whole[:-1])
    with pytest.raises(ModelError):
        load_adapter(dense(), tmp_path)
    (tmp_path / INITIAL).unlink()
    with pytest.raises(ModelError, match=INITIAL):
        load_adapter(dense(), tmp_path)


@every_start
def test_a_rank_above_a_matrix_is_refused(start):
    with pytest.raises(ModelError, match="has no 40 directions"):
        build_model(recipe(start, "lora", rank=40))
