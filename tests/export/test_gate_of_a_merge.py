"""The receipt of a merge is of what was written, and of nothing else."""

import pytest

from dorakit import dense_weight, merge
from dorakit.adapters.lora import LoRALinear
from dorakit.errors import GateError


def test_a_merge_that_forgets_the_adapter_does_not_pass(run_of, monkeypatch):
    """Planted bugs caught: the merged model compared with itself; its figures written and not held against the limit."""
    run = run_of("lora")
    before = sorted(path.name for path in run.path.iterdir())
    monkeypatch.setattr(LoRALinear, "merged_weight", lambda self: dense_weight(self.base).float())
    with pytest.raises(GateError, match="the merged model is not the trained one") as caught:
        merge(run, quiet=True)
    assert caught.value.exit_code == 5
    assert sorted(path.name for path in run.path.iterdir()) == before
