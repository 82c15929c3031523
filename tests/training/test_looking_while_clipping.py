"""What is logged, validated or saved changes no trained byte, where gradients are clipped too."""

import json

import pytest
from safetensors.torch import load_file

from dorakit import train

CLIPPED = ("training.max_grad_norm=0.05", "adapter.dropout=0.2")


@pytest.mark.parametrize("changed", ["training.log_every=3", "training.eval_every=1", "training.save_every=2"])
def test_no_byte(tmp_path, make_recipe, changed):
    """Planted bug caught: the norm is taken, and the gradient scaled, in the steps that are logged."""
    plain = train(make_recipe(*CLIPPED, f"output_dir={tmp_path}/a"), quiet=True)
    looked = train(make_recipe(*CLIPPED, changed, f"output_dir={tmp_path}/b"), quiet=True)
    norms = [json.loads(line).get("train/grad_norm", 1.0) for line in plain.metrics_file.read_text().splitlines()]
    assert min(norms) > 0.05, "nothing was clipped, so this would say nothing"
    one, two = (load_file(run.adapter / "adapter_model.safetensors") for run in (plain, looked))
    assert all((one[name] == two[name]).all() for name in one)
