"""DoRA's norm is kept between calls, and never longer than the A and B that it is of."""

import pytest
import torch
from torch import nn

from dorakit import dense_weight
from dorakit.adapters.dora import DoRALinear
from dorakit.recipe.schema import MagnitudeSection, OptimizerSection
from dorakit.training.optim import Updater


def layer():
    torch.manual_seed(0)
    return DoRALinear(nn.Linear(24, 16).requires_grad_(False), rank=4, alpha=8)


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
    updater = Updater(adapted, OptimizerSection(name=name, learning_rate=0.1), MagnitudeSection())
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
