"""NF4 storage: bytes, products and gradients equal bitsandbytes'."""

import bitsandbytes as bnb
import bitsandbytes.functional as F
import pytest
import torch

from dorakit.errors import ModelError
from dorakit.model import nf4 as module
from dorakit.model.arrival import Arrival
from dorakit.model.linear import dense_weight
from dorakit.model.load import load_base
from dorakit.model.nf4 import NF4Format, NF4Linear
from dorakit.model.shares import Share
from dorakit.parallel.world import World


@pytest.mark.parametrize("chunk", [1 << 22, 1 << 10], ids=["whole", "sliced"])
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("shape", [(48, 64), (30, 100), (64, 80)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes(monkeypatch, chunk, double_quant, block_size, shape, dtype):
    """Planted bugs that die here: low nibble first; the mean of each slice as offset."""
    monkeypatch.setattr(module, "_CHUNK_WEIGHTS", chunk)
    torch.manual_seed(0)
    weight = torch.randn(shape).to(dtype)
    layer = NF4Linear.from_dense(weight, None, NF4Format(block_size=block_size, double_quant=double_quant))
    packed, state = F.quantize_4bit(weight, blocksize=block_size, compress_statistics=double_quant, quant_type="nf4")
    assert torch.equal(layer.weight.reshape(-1), packed.reshape(-1))
    expected = {f".{name}": value for name, value in state.as_dict(packed=True).items()}
    found = layer.quant_tensors()
    assert set(found) == {"", *expected}
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert torch.equal(layer.dequantize(), by_definition(packed, state, shape))


def by_definition(packed, state, shape):
    """Code times absmax. bitsandbytes' own CPU kernel is wrong where a row is not made of whole blocks."""
    absmax = state.absmax
    if state.nested:
        absmax = F.dequantize_blockwise(state.absmax, state.state2) + state.offset
    codes = torch.stack([packed.reshape(-1) >> 4, packed.reshape(-1) & 15], dim=1).flatten().long()
    flat = state.code[codes] * absmax.repeat_interleave(state.blocksize)[: len(codes)]
    return flat.to(state.dtype).reshape(shape)


@pytest.mark.parametrize("shape", [(48, 64), (30, 100), (64, 80)])
def test_rows_given_to_the_kernel_are_whole_blocks(monkeypatch, shape):
    """bitsandbytes' kernel for AVX-512 needs them, the one for other CPUs does not: `test_bytes` sees it on the first only."""
    given = []
    dequantize = F.dequantize_4bit

    def seen(packed, state):
        given.append(state.shape)
        return dequantize(packed, state)

    monkeypatch.setattr(F, "dequantize_4bit", seen)
    NF4Linear.from_dense(torch.randn(shape), None, NF4Format()).dequantize()
    ((rows, row),) = given
    assert rows == 1 or row % 64 == 0


@pytest.mark.parametrize("double_quant", [True, False])
def test_round_trip_through_the_serialized_form(double_quant):
    """Planted bug that dies here: dropping the offset of the double quantization."""
    weight = torch.randn(32, 128)
    layer = NF4Linear.from_dense(weight, None, NF4Format(double_quant=double_quant))
    tensors = layer.quant_tensors()
    again = NF4Linear.from_quantized(tensors.pop(""), {name.removeprefix("."): t for name, t in tensors.items()})
    assert torch.equal(again.dequantize(), layer.dequantize())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_and_gradient(dtype):
    """Against bitsandbytes' own autograd function. Planted bug that dies here: W instead of W^T in backward."""
    torch.manual_seed(0)
    weight = torch.randn(64, 64).to(dtype)
    layer = NF4Linear.from_dense(weight, None, NF4Format())
    packed, state = F.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    x = torch.randn(2, 5, 64).to(dtype)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y_mine, y_theirs = layer(mine), bnb.matmul_4bit(theirs, packed.t(), quant_state=state)
    torch.testing.assert_close(y_mine, y_theirs)
    grad = torch.randn_like(y_mine)
    y_mine.backward(grad)
    y_theirs.backward(grad)
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_eval_forward_changes_nothing():
    """bnb.nn.Linear4bit repacks its weight in an eval forward on some CPUs; ours must train on after one."""
    layer = NF4Linear.from_dense(torch.randn(64, 64).bfloat16(), None, NF4Format())
    before = layer.weight.clone()
    with torch.inference_mode():
        layer.eval()(torch.randn(4, 64).bfloat16())
    assert torch.equal(layer.weight, before)
    x = torch.randn(4, 64).bfloat16().requires_grad_()
    layer.train()(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.dequantize().sum(dim=0).expand(4, 64), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_streamed_layers_are_the_quantized_dense_ones(architecture):
    """Planted bug that dies here: the placeholders' empty buffers left in place after loading."""
    dense = load_base(f"tiny:{architecture}", dtype="float32", attention="eager").model
    streamed = load_base(f"tiny:{architecture}", dtype="float32", attention="eager", arrival=Arrival(NF4Format())).model
    layers = [(n, m) for n, m in streamed.named_modules() if isinstance(m, NF4Linear)]
    assert len(layers) == 2 * 7
    for name, layer in layers:
        original = dense.get_submodule(name)
        expected = NF4Linear.from_dense(original.weight, original.bias, NF4Format())
        assert torch.equal(layer.weight, expected.weight), name
        assert torch.equal(dense_weight(layer), expected.dequantize()), name
        assert torch.equal(layer.original_row_norm, original.weight.norm(dim=1)), name
        assert (layer.bias is None) == (original.bias is None)
        if layer.bias is not None:
            assert torch.equal(layer.bias, original.bias)
    assert isinstance(streamed.get_output_embeddings(), torch.nn.Linear)


def test_a_residual_is_stored_instead_of_the_weight():
    """Planted bugs caught: taken after quantization; of a rank's rows; in the dtype of the model."""
    dense, seen = load_base("tiny:llama", dtype="bfloat16").model, {}

    def residual(name, weight):
        seen[name] = weight
        return weight - weight.mean()

    form = NF4Format()
    streamed = load_base("tiny:llama", dtype="bfloat16", arrival=Arrival(form, residual)).model
    layers = {name: module for name, module in streamed.named_modules() if isinstance(module, NF4Linear)}
    assert seen.keys() == layers.keys() and len(layers) == 2 * 7
    ranks = Arrival(form, residual, Share(0, 1, World().stacked))
    for name, layer in layers.items():
        weight = dense.get_submodule(name).weight
        assert seen[name].dtype == torch.float32 and torch.equal(seen[name], weight.float())
        expected = NF4Linear.from_dense((weight.float() - weight.float().mean()).bfloat16(), None, form)
        assert torch.equal(layer.weight, expected.weight)
        assert torch.equal(ranks.packed(f"{name}.weight", weight, torch.bfloat16).weight, expected.weight)


def test_no_residual_of_a_weight_that_is_stored_as_nf4():
    layer = NF4Linear.from_dense(torch.randn(4, 64), None, NF4Format())
    with pytest.raises(ModelError, match=r"up\.weight is stored as NF4"):
        Arrival(residual=lambda name, weight: weight).take_over_("up.weight", layer)
