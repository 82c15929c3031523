"""DoRA's norm is kept between calls, and never longer than the A and B that it is of."""

import pytest
import torch
from torch import nn

from dorakit import dense_weight
from dorakit.adapters.lora import LoRALinear
from dorakit.recipe.schema import MagnitudeSection, OptimizerSection
from dorakit.training.groups import group_specs
from dorakit.training.optim import Updater


def layer():
    torch.manual_seed(0)
    return LoRALinear(nn.Linear(24, 16).requires_grad_(False), rank=4, alpha=8, magnitude_init="dequantized")


def norm_of(adapted):
    dense = dense_weight(adapted.base) + adapted.scaling * adapted.lora_B @ adapted.lora_A
    return dense.norm(dim=1).detach()


@pytest.mark.parametrize("changed", ["lora_A", "lora_B"])
def test_a_change_in_place_is_seen(changed):
    """Planted bug caught: computed once. Forward and merged weight agree even then, so neither of them can tell."""
    adapted = layer()
    with torch.no_grad():
        adapted.lora_B.normal_()
        adapted(torch.randn(2, 24))
        getattr(adapted, changed).add_(1.0)
    torch.testing.assert_close(adapted.weight_norm(), norm_of(adapted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_a_step_of_the_optimizer_is_seen(name):
    """Whose parameters are views of a buffer, and which may write past autograd."""
    adapted = layer()
    updater = Updater(
        group_specs(adapted, OptimizerSection(name=name, learning_rate=0.1), MagnitudeSection()),
        OptimizerSection(name=name, learning_rate=0.1),
    )
    for _ in range(2):
        before = adapted.weight_norm().clone()
        adapted(torch.randn(8, 24)).square().sum().backward()
        updater.step(0.1)
        torch.testing.assert_close(adapted.weight_norm(), norm_of(adapted), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(adapted.weight_norm(), before, rtol=1e-3)


def test_a_norm_computed_in_inference_mode_serves_training():
    """Planted bug caught: it is an inference tensor, which backward refuses."""
    adapted = layer()
    x = torch.randn(3, 24)
    with torch.inference_mode():
        adapted(x)
    adapted(x).sum().backward()
    assert adapted.lora_magnitude_vector.grad is not None


@pytest.mark.parametrize("left", [1e-1, 1e-3, 3e-4, 1e-5])
def test_where_the_update_cancels_the_weight(left):
    """W + s B A = left W. Planted bug caught: the expansion alone, which below 3e-4 has no digit left (g was 5e11)."""
    adapted = LoRALinear(nn.Linear(24, 16).requires_grad_(False), rank=16, alpha=32, magnitude_init="dequantized")
    u, sizes, v = torch.linalg.svd(adapted.base.weight.double(), full_matrices=False)
    with torch.no_grad():
        adapted.lora_A.copy_(v)
        adapted.lora_B.copy_((left - 1) * u * sizes / adapted.scaling)
    dense = adapted.base.weight.double() + adapted.scaling * adapted.lora_B.double() @ adapted.lora_A.double()
    torch.testing.assert_close(adapted.weight_norm().double(), dense.norm(dim=1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gain", [10.0, 0.5, 0.1, 1e-3, 0.0, -1.0])
def test_any_gain_gives_its_output_and_gradients(gain, dtype):
    """Against float64. Planted bugs caught: W x + (g - 1) W x for every g (in bfloat16 all of y was lost at 1e-3), in forward
    or in backward; y / g at g = 0."""
    torch.manual_seed(0)
    adapted = LoRALinear(
        nn.Linear(64, 32, bias=False).to(dtype).requires_grad_(False), rank=4, alpha=8, magnitude_init="dequantized"
    )
    with torch.no_grad():
        adapted.lora_B.normal_().mul_(0.02)
        adapted.lora_magnitude_vector.copy_(adapted.weight_norm() * gain)
    x, weight = torch.randn(16, 64).to(dtype).requires_grad_(), torch.randn(16, 32).to(dtype)
    y = adapted(x)
    y.backward(weight)
    m = adapted.lora_magnitude_vector.detach().double().requires_grad_()
    dense = (
        dense_weight(adapted.base).double() + adapted.scaling * adapted.lora_B.double() @ adapted.lora_A.double()
    ).detach()
    exact_x = x.detach().double().requires_grad_()
    exact = exact_x @ dense.T * (m / dense.norm(dim=1))
    exact.backward(weight.double())
    for found, known in ((y, exact), (x.grad, exact_x.grad), (adapted.lora_magnitude_vector.grad, m.grad)):
        assert (found.double() - known).norm() <= 2 * torch.finfo(dtype).eps * known.norm()
