"""Pickles that would act if they were opened lie under every name that loaders like to read, and nothing opens them."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tiny_recipe

from dorakit import Run, evaluate, merge, quantize, train
from dorakit.errors import ModelError
from dorakit.evaluation.generation import answer_prompts
from dorakit.model.load import load_base
from dorakit.target import open_target
from dorakit.training import optim

NAMES = [
    "training_args.bin",
    "trainer_state.bin",
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_0.pth",
    "random_states_0.pkl",
    "pytorch_model.bin",
    "pytorch_model-00001-of-00001.bin",
    "adapter_model.bin",
    "adapter_model.pt",
    "adapter.bin",
    "model.pt",
    "model.pth",
    "model.pkl",
    "model.ckpt",
    "consolidated.00.pth",
    "state.pkl",
    "checkpoint.pt",
    "tokenizer.pkl",
    ".metadata",
    "__0_0.distcp",
]


class Opened:
    """Unpickled, it makes a directory."""

    def __init__(self, sentinel: Path):
        self.sentinel = sentinel

    def __reduce__(self):
        return Path.mkdir, (self.sentinel, 0o777, True, True)


@pytest.fixture(params=["plain", "torch"])
def seed(request, tmp_path):
    """A function that lays the pickles into a directory; at the end of the test none must have been opened."""
    sentinel = tmp_path / "a pickle was opened"
    armed = tmp_path / "armed.bin"
    if request.param == "plain":
        armed.write_bytes(pickle.dumps(Opened(sentinel)))
        pickle.loads(armed.read_bytes())
    else:
        torch.save(Opened(sentinel), armed)
        torch.load(armed, weights_only=False)
    assert sentinel.is_dir(), "the pickle does nothing, so this test would say nothing"
    sentinel.rmdir()

    def lay(directory: Path):
        for name in NAMES:
            if not (directory / name).exists():
                (directory / name).write_bytes(armed.read_bytes())

    yield lay
    assert not sentinel.exists()


def test_a_run_is_resumed_evaluated_merged_and_quantized(tmp_path, monkeypatch, seed):
    recipe = tiny_recipe(tmp_path, "dora", ("training.save_every=1",))
    own, calls = optim.Updater.step, []

    def stop_in_the_third(self, rate):
        calls.append(rate)
        if len(calls) == 3:
            raise KeyboardInterrupt
        own(self, rate)

    with monkeypatch.context() as patch:
        patch.setattr(optim.Updater, "step", stop_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, quiet=True)
    run = Run.open(recipe.output_dir)
    for directory in (run.path, run.checkpoints, *run.checkpoints.iterdir()):
        seed(directory)
    run = train(run.recipe, resume=run, quiet=True)
    assert "going on after step 2" in run.log_file.read_text()
    seed(run.adapter)
    assert evaluate(run, quiet=True)["rows"] == 7
    seed(merge(run, quiet=True))
    assert evaluate(str(run.merged), quiet=True)["rows"] == 7
    seed(quantize(run, quiet=True))
    assert evaluate(str(run.quantized), quiet=True)["rows"] == 7
    answer_prompts(str(run.adapter), ["x"], max_new_tokens=2, quiet=True)


def model_directory(path: Path) -> Path:
    base = load_base("tiny:llama", dtype="float32")
    base.model.save_pretrained(path)
    base.tokenizer.save_pretrained(path)
    return path


def test_a_model_beside_pickles(tmp_path, seed):
    """The safetensors are what is read."""
    directory = model_directory(tmp_path / "model")
    seed(directory)
    loaded = open_target(str(directory), as_stored=True).model.state_dict()
    written = load_file(directory / "model.safetensors")
    assert written and all(torch.equal(loaded[name], tensor) for name, tensor in written.items())


def test_a_model_that_is_only_a_pickle(tmp_path, seed):
    """Planted bug caught: handed on to a loader that may know pickles."""
    directory = model_directory(tmp_path / "model")
    (directory / "model.safetensors").unlink()
    seed(directory)
    with pytest.raises(ModelError, match=r"only pickled .*which are never read"):
        answer_prompts(str(directory), ["x"], max_new_tokens=2, quiet=True)


def test_an_adapter_that_is_only_a_pickle(trained, tmp_path, seed):

    directory = shutil.copytree(trained("dora").adapter, tmp_path / "adapter")
    (directory / "adapter_model.safetensors").unlink()
    seed(directory)
    with pytest.raises(ModelError, match=r"has no adapter_model.safetensors \(pickled adapters are never read\)"):
        answer_prompts(str(directory), ["x"], max_new_tokens=2, quiet=True)


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors"])
def test_a_pickle_under_the_name_of_a_safetensors_file(trained, tmp_path, seed, name):

    if name == "model.safetensors":
        directory = model_directory(tmp_path / "model")
    else:
        directory = shutil.copytree(trained("dora").adapter, tmp_path / "adapter")
    (directory / name).unlink()
    seed(directory)
    (directory / "pytorch_model.bin").rename(directory / name)
    with pytest.raises(ModelError, match=r"safetensors|cannot be loaded"):
        answer_prompts(str(directory), ["x"], max_new_tokens=2, quiet=True)
