"""LoRA and DoRA layers equal PEFT's: forward and every gradient."""

import copy

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from dorakit.adapters.lora import LoRALinear
from dorakit.model.nf4 import NF4Format, NF4Linear

IN, OUT, RANK, ALPHA = 128, 96, 8, 24


class Wrapped(nn.Module):
    """PEFT adapts modules of a model, so the layer gets one around it."""

    is_loaded_in_4bit = True

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.config = {"model_type": "none"}
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def make_dense(bias: float, dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(1)
    dense = nn.Linear(IN, OUT, bias=bias > 0).to(dtype)
    if bias:
        with torch.no_grad():
            dense.bias.copy_(torch.randn(OUT) * bias)
    return dense.requires_grad_(False)


def peft_layer(dense: nn.Linear, *, use_dora: bool, nf4: bool) -> nn.Module:
    layer: nn.Module = dense
    if nf4:
        layer = bnb.nn.Linear4bit(
            IN,
            OUT,
            bias=dense.bias is not None,
            compute_dtype=dense.weight.dtype,
            quant_type="nf4",
            compress_statistics=True,
        )
        layer.weight = bnb.nn.Params4bit(
            dense.weight.data.clone(), requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        if dense.bias is not None:
            layer.bias = nn.Parameter(dense.bias.data.clone(), requires_grad=False)
        layer = layer.to("cpu")
        layer.support_avx512bf16_for_cpu = False  # else an eval forward repacks the weight for good
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["layer"], use_dora=use_dora, lora_dropout=0.0)
    return get_peft_model(Wrapped(layer), config).base_model.model.layer


def both_layers(method, nf4, bias, dtype):
    """Our layer and PEFT's over the same base, with the same perturbed adapter."""
    dense = make_dense(bias, dtype)
    base = NF4Linear.from_dense(dense.weight, dense.bias, NF4Format()) if nf4 else copy.deepcopy(dense)
    ours = LoRALinear(base, rank=RANK, alpha=ALPHA, magnitude_init="dequantized" if method == "dora" else None)
    theirs = peft_layer(dense.float(), use_dora=method == "dora", nf4=nf4)
    torch.manual_seed(2)
    a, b = torch.randn(RANK, IN) * 0.1, torch.randn(OUT, RANK) * 0.02
    with torch.no_grad():
        ours.lora_A.copy_(a), ours.lora_B.copy_(b)
        theirs.lora_A["default"].weight.copy_(a), theirs.lora_B["default"].weight.copy_(b)
        if method == "dora":
            factor = 1 + 0.1 * torch.randn(OUT)
            ours.lora_magnitude_vector.mul_(factor)
            theirs.lora_magnitude_vector["default"].weight.mul_(factor)
    return ours, theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("bias", [0.0, 1.0, 100.0], ids=["no-bias", "bias", "large-bias"])
@pytest.mark.parametrize("nf4", [False, True], ids=["dense", "nf4"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_forward_and_gradients(method, nf4, bias, dtype):
    """In bfloat16 against PEFT in float32 over the same values: its own bfloat16 is far off in m next to a large bias.

    Planted bugs that die here: norm over dim 0, bias scaled by g, no detach, alpha / rank forgotten, the saved sum scaled
    in place.
    """
    ours, theirs = both_layers(method, nf4, bias, dtype)
    torch.manual_seed(3)
    relative = 1e-5 if dtype == torch.float32 else 2e-2
    x = torch.randn(3, 5, IN).to(dtype)
    grad = torch.randn(3, 5, OUT).to(dtype)
    x_ours, x_theirs = x.clone().requires_grad_(), x.float().requires_grad_()
    y_ours, y_theirs = ours(x_ours), theirs(x_theirs)
    assert y_ours.dtype == dtype
    assert not ours._has_small_gain  # that way is held against float64 in test_norm_cache.py
    # A result in bfloat16 cannot be finer than half an ulp of the bias it holds.
    torch.testing.assert_close(y_ours.float(), y_theirs, rtol=relative, atol=relative)
    y_ours.backward(grad)
    y_theirs.backward(grad.float())
    pairs = {
        "x": (x_ours.grad, x_theirs.grad),
        "A": (ours.lora_A.grad, theirs.lora_A["default"].weight.grad),
        "B": (ours.lora_B.grad, theirs.lora_B["default"].weight.grad),
    }
    if method == "dora":
        pairs["m"] = (ours.lora_magnitude_vector.grad, theirs.lora_magnitude_vector["default"].weight.grad)
    for name, (mine, peft) in pairs.items():
        difference = (mine.float() - peft.float()).norm() / peft.float().norm()
        assert difference < relative, f"gradient of {name} differs by {difference:.2e}"


@pytest.mark.parametrize("nf4", [False, True], ids=["dense", "nf4"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_merged_weight(method, nf4):
    """Planted bug that dies here: merging without the magnitude."""
    ours, theirs = both_layers(method, nf4, 1.0, torch.float32)
    delta = theirs.get_delta_weight("default")
    dense = make_dense(1.0, torch.float32).weight
    base = NF4Linear.from_dense(dense, None, NF4Format()).dequantize() if nf4 else dense
    expected = base + delta
    if method == "dora":
        norm = torch.linalg.norm(expected, dim=1)
        expected = (theirs.lora_magnitude_vector["default"].weight / norm)[:, None] * expected
    torch.testing.assert_close(ours.merged_weight(), expected.detach(), rtol=1e-5, atol=1e-6)
