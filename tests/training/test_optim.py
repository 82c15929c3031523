"""Flat groups change nothing but the number of kernels; the learning rate is a pure function of the step."""

import copy
import math

import pytest
import torch
from torch import nn

from dorakit.recipe.schema import MagnitudeSection, OptimizerSection
from dorakit.training import optim_groups
from dorakit.training.groups import group_specs
from dorakit.training.optim import Updater, learning_rate
from dorakit.training.trained import load_tensors, save_tensors

import bitsandbytes as bnb  # isort: skip  after dorakit, which quiets it


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 50, bias=False))


def test_flat_adamw_is_adamw():
    """Dies if a gradient or a parameter is not a view of the flat buffer, or decay falls on vectors."""
    flat, plain = model(), model()
    settings = OptimizerSection(name="adamw", learning_rate=1e-2, weight_decay=0.1)
    updater = Updater(group_specs(flat, settings, MagnitudeSection()), settings)
    matrices = [p for p in plain.parameters() if p.dim() > 1]
    vectors = [p for p in plain.parameters() if p.dim() < 2]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=1e-2
    )
    for step in range(5):
        x = torch.randn(7, 40, generator=torch.Generator().manual_seed(step))
        updater.zero_grad()
        reference.zero_grad()
        flat(x).square().sum().backward()
        plain(x).square().sum().backward()
        norm = updater.clip(1.0)
        expected = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        assert norm == pytest.approx(float(expected), rel=1e-5)
        updater.step(1e-2)
        reference.step()
    for a, b in zip(flat.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_versions_move_with_every_step():
    """DoRA's cached norm hangs on them. Dies if step() does not raise the counters."""
    net = model()
    updater = Updater(
        group_specs(net, OptimizerSection(name="adamw_8bit", learning_rate=1e-2), MagnitudeSection()),
        OptimizerSection(name="adamw_8bit", learning_rate=1e-2),
    )
    before = [p._version for p in net.parameters()]
    net(torch.randn(3, 40)).sum().backward()
    updater.step(1e-2)
    assert all(p._version > v for p, v in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("name", "rule", "most"), [("adamw_8bit", bnb.optim.AdamW8bit, 0.05), ("lion_8bit", bnb.optim.Lion8bit, 0.4)]
)
def test_what_8_bit_states_in_one_buffer_change(name, rule, most):
    """docs/methods.md, "The optimizer": a tensor of fewer than 4096 elements, which alone would have float32 states, moves by no
    more than is said there; one of 4096 as alone. Planted bug caught: another optimizer for one of the two.
    """

    def pair() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(512, 8, bias=False), nn.Linear(512, 4, bias=False))

    begun, flat, alone = pair(), pair(), pair()
    settings = OptimizerSection(name=name, learning_rate=1e-2, weight_decay=0.0)
    updater = Updater(group_specs(flat, settings, MagnitudeSection()), settings)
    reference = rule(alone.parameters(), lr=1e-2, betas=settings.betas, weight_decay=0.0)
    for step in range(12):
        generator = torch.Generator().manual_seed(step)
        updater.zero_grad()
        for one, other in zip(flat.parameters(), alone.parameters(), strict=True):
            gradient = torch.randn(one.shape, generator=generator) * 10 ** (step % 3 - 1)
            one.grad.copy_(gradient)
            other.grad = gradient
        updater.step(1e-2)
        reference.step()
    large, small = (
        float((one - other).detach().abs().max() / (other - start).detach().abs().max())
        for one, other, start in zip(flat.parameters(), alone.parameters(), begun.parameters(), strict=True)
    )
    print(f"{name}: {large:.1e} of the way, {small:.1%} where states would be float32")
    assert large < 1e-6 and 1e-4 < small < most


@pytest.mark.parametrize("name", ["adamw", "sgd", "adamw_8bit", "paged_adamw_32bit", "lion_8bit"])
def test_state_round_trip(name, tmp_path):
    """Through a file. Dies if a number (bitsandbytes' step) or a tensor of the state is lost, or written where it shares memory
    with another: of 8-bit states, two groups have one table."""

    def wide() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(40, 5000)  # bitsandbytes keeps fewer than 4096 elements in float32

    def run(net: nn.Module, updater: Updater, steps: range) -> None:
        for step in steps:
            x = torch.randn(7, 40, generator=torch.Generator().manual_seed(step))
            updater.zero_grad()
            net(x).square().sum().backward()
            updater.step(1e-3)

    settings = OptimizerSection(name=name, learning_rate=1e-3)
    one, two = wide(), wide()
    whole = Updater(group_specs(one, settings, MagnitudeSection()), settings)
    run(one, whole, range(3))
    tensors, numbers = whole.state()
    if name.endswith("8bit"):
        assert tensors["matrices.qmap1"].data_ptr() == tensors["vectors.qmap1"].data_ptr()
    save_tensors(tmp_path / "state", tensors)
    two.load_state_dict(one.state_dict())
    again = Updater(group_specs(two, settings, MagnitudeSection()), settings)
    again.restore(load_tensors(tmp_path / "state"), numbers)
    run(one, whole, range(3, 6))
    run(two, again, range(3, 6))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["adamw", "sgd", "adamw_8bit", "paged_adamw_32bit", "lion_8bit"])
def test_a_long_buffer_in_pieces_is_one_buffer(monkeypatch, name):
    """A matrix lies across a border, and the state of each piece is saved. Planted bug caught: only the first piece steps."""

    def trained(first: range, rest: range) -> tuple[list[torch.Tensor], set[str]]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(200, 100), nn.Tanh(), nn.Linear(100, 90))
        settings = OptimizerSection(name=name, learning_rate=1e-2, weight_decay=0.1)
        updater = Updater(group_specs(net, settings, MagnitudeSection()), settings)
        keys: set[str] = set()
        for steps in (first, rest):
            if keys:
                tensors, numbers = copy.deepcopy(updater.state())
                updater = Updater(group_specs(net, settings, MagnitudeSection()), settings)
                updater.restore(tensors, numbers)
            for step in steps:
                updater.zero_grad()
                net(torch.randn(7, 200, generator=torch.Generator().manual_seed(step))).square().sum().backward()
                updater.clip(1.0)
                updater.step(1e-2)
            tensors, numbers = updater.state()
            keys = {*tensors, *numbers}
        return [p.detach().clone() for p in net.parameters()], keys

    whole, whole_keys = trained(range(4), range(0))
    assert all(key.split(".")[0] in ("matrices", "vectors") for key in whole_keys)
    monkeypatch.setattr(optim_groups, "LARGEST_PIECE", 1 << 13)
    split, keys = trained(range(2), range(2, 4))
    places = {"matrices", "matrices-2", "matrices-3", "matrices-4", "vectors"}
    assert name == "sgd" or {key.split(".")[0] for key in keys} == places
    assert all(torch.equal(a, b) for a, b in zip(whole, split, strict=True))


def test_schedules():
    """Warmup reaches the peak, cosine and linear end near 0, constant stays."""

    def rates(schedule: str, **more) -> list[float]:
        settings = OptimizerSection(name="adamw", learning_rate=2.0, schedule=schedule, **more)
        return [learning_rate(step, 10, settings) for step in range(10)]

    assert rates("constant") == [2.0] * 10
    assert rates("linear", warmup_steps=2) == pytest.approx([1.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25])
    cosine = rates("cosine", warmup_ratio=0.2)
    assert cosine[:3] == [1.0, 2.0, 2.0]
    assert cosine[6] == pytest.approx(1 + math.cos(math.pi / 2))
    assert cosine[9] == pytest.approx(1 + math.cos(math.pi * 7 / 8))


def test_magnitudes_have_their_own_rate_and_no_decay():
    """Dies if the magnitude vector sits in the group of the matrices."""
    net = model()
    net.register_parameter("lora_magnitude_vector", nn.Parameter(torch.full((4,), 3.0)))
    settings = OptimizerSection(name="sgd", learning_rate=1.0, weight_decay=0.5)
    updater = Updater(group_specs(net, settings, MagnitudeSection(learning_rate_ratio=0.25)), settings)
    before = net[0].weight.detach().clone()
    net.lora_magnitude_vector.grad.fill_(1.0)
    updater.step(1.0)
    torch.testing.assert_close(net.lora_magnitude_vector.detach(), torch.full((4,), 2.75))
    torch.testing.assert_close(net[0].weight.detach(), before * 0.5)
