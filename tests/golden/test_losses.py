"""Losses of 20 steps, held against the committed ones.

Processors differ in the last digits: the losses of one without AVX-512 were within 2.1e-7 of those of one with it, and the
gradient norms, which grow such differences from step to step, within 4.2e-4.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from make import HERE, MODES, losses


@pytest.mark.parametrize("mode", MODES)
def test_losses(mode):
    expected = [list(map(float, line.split())) for line in (HERE / f"{mode}.txt").read_text().splitlines()]
    found = [list(map(float, line.split())) for line in losses(mode)]
    assert len(expected) == 20
    for mine, golden in zip(found, expected, strict=True):
        (step, loss, grad_norm), (golden_step, golden_loss, golden_grad_norm) = mine, golden
        assert step == golden_step
        assert loss == pytest.approx(golden_loss, rel=1e-5)
        assert grad_norm == pytest.approx(golden_grad_norm, rel=2e-3)
