"""A gradient that is not finite behind a loss that is."""

import pytest

from dorakit import train
from dorakit.errors import GateError
from dorakit.training import loss, optim


def test_no_step_is_taken(monkeypatch, make_recipe):
    """Planted bug caught: only the loss is looked at."""
    steps = []
    step, forward = optim.Updater.step, loss.SupervisedLoss.forward
    monkeypatch.setattr(optim.Updater, "step", lambda self, rate: (steps.append(rate), step(self, rate)))

    def forward_with_a_hole(self, *batch):
        total = forward(self, *batch)
        if len(steps) != 2:
            return total
        # The root of 0 is 0, and its slope is not finite.
        weight = next(p for p in self.parameters() if p.requires_grad)
        return total + (weight * 0).square().sum().sqrt()

    monkeypatch.setattr(loss.SupervisedLoss, "forward", forward_with_a_hole)
    with pytest.raises(GateError, match="step 3: the gradient is not finite") as caught:
        train(make_recipe(), quiet=True)
    assert caught.value.exit_code == 5
    assert len(steps) == 2
