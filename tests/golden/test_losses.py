"""Losses of 20 steps, held against the committed ones. Last digits differ between processors."""

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
        assert mine == pytest.approx(golden, rel=1e-4)
