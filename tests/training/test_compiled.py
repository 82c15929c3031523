"""training.compile: the same numbers."""

from __future__ import annotations

import json

import pytest
from torch._dynamo.utils import counters

from dorakit.training.loop import train


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "dora", "qdora"])
def test_a_compiled_training_follows_the_plain_one(make_recipe, tmp_path, mode):
    """With validation and a sample between its steps.

    Planted bugs caught: DoRA's norm of the first step used ever after; nothing compiled.
    """
    losses, graphs = {}, {}
    for compiled in ("false", "true"):
        run = train(
            make_recipe(
                f"adapter.mode={mode}",
                f"training.compile={compiled}",
                "training.eval_every=3",
                "training.sample_prompts=[Say 3]",
                f"output_dir={tmp_path}/{compiled}",
            ),
            quiet=True,
        )
        graphs[compiled] = counters["stats"]["unique_graphs"]
        lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        losses[compiled] = [line.get("train/loss", line.get("validation/loss")) for line in lines if line["step"]]
    assert len(losses["true"]) == 6
    assert graphs["true"] > graphs["false"]
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-4)
