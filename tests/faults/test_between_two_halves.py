"""A run is broken off and goes on: what may have changed meanwhile, and what may not."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny_runs import tiny_recipe

from dorakit import Run, train
from dorakit.errors import RunError
from dorakit.model.load import load_base
from dorakit.training import optim


@pytest.fixture
def broken_off(monkeypatch):
    """A function that trains and is stopped hard in the middle of the last step; gives the unfinished run."""

    def train_and_stop(recipe):
        own, calls = optim.Updater.step, []

        def step(self, rate):
            calls.append(rate)
            if len(calls) == recipe.training.max_steps:
                raise KeyboardInterrupt
            own(self, rate)

        with monkeypatch.context() as patch:
            patch.setattr(optim.Updater, "step", step)
            with pytest.raises(KeyboardInterrupt):
                train(recipe, quiet=True)
        return Run.open(recipe.output_dir)

    return train_and_stop


def lines(run):
    """(step, loss, learning rate) of every logged step."""
    entries = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [(e["step"], e["train/loss"], e["train/learning_rate"]) for e in entries if "train/loss" in e]


@pytest.mark.parametrize("mode", ["qdora", "full"])
def test_a_run_may_be_moved(tmp_path, broken_off, mode):
    """Planted bugs caught: the result written to the place that the recipe names; a checkpoint looked for there."""
    extra = ("training.save_every=1",)
    unbroken = train(tiny_recipe(tmp_path / "a", mode, extra), quiet=True)
    run = broken_off(tiny_recipe(tmp_path / "b", mode, extra))
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == ["step-000000001", "step-000000002"]
    elsewhere = tmp_path / "elsewhere" / "other-name"
    elsewhere.parent.mkdir()
    shutil.move(run.path, elsewhere)
    moved = Run.open(elsewhere)
    finished = train(moved.recipe, resume=moved, quiet=True)
    assert finished.result.parent == elsewhere
    assert not run.path.exists()
    (one,), (two,) = (list(r.result.glob("*.safetensors")) for r in (unbroken, finished))
    assert one.read_bytes() == two.read_bytes()


def test_the_base_may_not_be_another_one(tmp_path, broken_off):
    """One weight of it. Planted bug caught: only names and shapes are compared."""
    base = load_base("tiny:llama", dtype="float32")
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    run = broken_off(tiny_recipe(tmp_path / "a", "lora", ("training.save_every=1",), base=str(tmp_path / "base")))
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(RunError, match="base") as caught:
        train(run.recipe, resume=run, quiet=True)
    assert caught.value.exit_code == 3
    assert run.state == "training" and not run.adapter.exists()


def test_a_step_done_again_is_told_once(tmp_path, broken_off):
    """Planted bug caught: what was logged between the checkpoint and the kill stays, and the step stands there twice."""
    extra = ("training.max_steps=4", "training.save_every=2", "training.log_every=1")
    unbroken = train(tiny_recipe(tmp_path / "a", "lora", extra), quiet=True)
    run = broken_off(tiny_recipe(tmp_path / "b", "lora", extra))
    assert [step for step, *_ in lines(run)] == [1, 2, 3]
    finished = train(run.recipe, resume=run, quiet=True)
    assert lines(finished) == lines(unbroken)
