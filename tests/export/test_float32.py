"""A 16-bit model computed in float32: the logits of a float32 copy of it, without the copy."""

import pytest
import torch
from tiny_runs import IDS

from dorakit import attach_
from dorakit.adapters.attach import adapter_layers
from dorakit.model.arrival import Arrival
from dorakit.model.float32 import Float32
from dorakit.model.load import load_base
from dorakit.model.nf4 import NF4Format

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "olmo2", "stablelm", "gpt_neox"]


def logits(model, *, exact):
    with torch.no_grad():
        if not exact:
            return model(IDS).logits
        with Float32():
            return model(IDS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_as_a_float32_copy_of_it(family):
    """Planted bugs caught: embeddings, a head or biases left in bfloat16; rows of a weight put in other places."""
    model = load_base(f"tiny:{family}", dtype="bfloat16").model.eval()
    found, rounded = logits(model, exact=True), logits(model, exact=False)
    assert found.dtype == torch.float32 and rounded.dtype == torch.bfloat16
    expected = logits(model.float(), exact=False)
    scale = expected.abs().max()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(scale))
    # What it is for: bfloat16 itself is far from it.
    assert (rounded - expected).abs().max() > 50 * (found - expected).abs().max()


@pytest.mark.parametrize("nf4", [None, NF4Format()])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_with_adapters(nf4, method):
    """Planted bug caught: the adapted product computed in the dtype of the base."""
    model = load_base("tiny:llama", dtype="bfloat16", arrival=Arrival(nf4)).model
    attach_(model, method=method, rank=4)
    torch.manual_seed(0)
    with torch.no_grad():
        for _, layer in adapter_layers(model):
            layer.lora_B.normal_(std=0.05)
    model.eval()
    found = logits(model, exact=True)
    expected = logits(model.float(), exact=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_mask_and_a_parameter_that_its_owner_reads_itself():
    """Planted bug caught: only the arguments of linear layers upcast."""
    layer = torch.nn.LayerNorm(8).bfloat16()
    x = torch.randn(3, 8)
    with Float32(), torch.no_grad():
        found = layer(x) @ torch.eye(8, dtype=torch.bfloat16)
    torch.testing.assert_close(found, torch.nn.functional.layer_norm(x, (8,)))
