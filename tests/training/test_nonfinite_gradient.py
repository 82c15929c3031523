"""A gradient that is not finite behind a loss that is."""

import errno
import math
import os
from types import SimpleNamespace

import pytest

from dorakit import Run, train
from dorakit.errors import GateError
from dorakit.files import write_json
from dorakit.training import optim
from dorakit.training.nonfinite import pass_over
from dorakit.training.objectives import supervised


def test_no_step_is_taken(monkeypatch, make_recipe):
    """Planted bug caught: only the loss is looked at."""
    steps = []
    step, forward = optim.Updater.step, supervised.SupervisedLoss.forward
    monkeypatch.setattr(optim.Updater, "step", lambda self, rate: (steps.append(rate), step(self, rate)))

    def forward_with_a_hole(self, batch):
        total = forward(self, batch)
        if len(steps) != 2:
            return total
        # The root of 0 is 0, and its slope is not finite.
        weight = next(p for p in self.parameters() if p.requires_grad)
        return total + (weight * 0).square().sum().sqrt()

    monkeypatch.setattr(supervised.SupervisedLoss, "forward", forward_with_a_hole)
    with pytest.raises(GateError, match="step 3: the gradient is not finite") as caught:
        train(make_recipe(), quiet=True)
    assert caught.value.exit_code == 5
    assert len(steps) == 2


@pytest.mark.parametrize("full", ["nonfinite.jsonl", "run.json"])
def test_a_full_disk_hides_no_rows(tmp_path, monkeypatch, full):
    """Planted bug caught: what is said is that the disk is full, and neither the step nor its rows."""
    run = Run(tmp_path)
    write_json(tmp_path / "run.json", {"schema": 1, "state": "training", "is_twin": False, "base": {}, "notes": []})
    if full == "nonfinite.jsonl":
        monkeypatch.setattr("dorakit.training.nonfinite.as_own", lambda path, flags: os.open("/dev/full", flags))
    else:

        def refuse(path, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        monkeypatch.setattr("dorakit.run.write_json", refuse)
    bad = SimpleNamespace(rows=["rows.jsonl:3", "rows.jsonl:7"])
    with pytest.raises(GateError, match="step 5: the loss is not finite") as caught:
        pass_over(run, "stop", step=5, skipped=0, batches=[bad], losses=[math.nan], grad_norm=1.0)
    said = str(caught.value)
    assert "rows: rows.jsonl:3, rows.jsonl:7" in said and full in said and "No space left on device" in said
    assert run.state == ("failed" if full == "nonfinite.jsonl" else "training")
