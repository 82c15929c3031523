"""Checkpoints on disk: which are kept, which count, what is refused before it is read."""

import errno
import json
import os

import pytest
import torch
from torch import nn

from dorakit import Run
from dorakit.errors import DorakitError, ResourceError, RunError
from dorakit.training import checkpoint as module
from dorakit.training.checkpoint import newest_checkpoint, save_checkpoint
from dorakit.training.trained import restore_trained


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "run")
    run.path.mkdir()
    (run.path / "run.json").write_text(json.dumps({"schema": 1, "state": "training", "notes": []}))
    return run


def save(run, step, keep=2):
    tensors = {"w": torch.full((300,), float(step))}
    facts = {"recipe": {}, "base": {}, "data": "", "template": ""}
    state = {"step": step, "best_step": 0, "optimizer": {}, "computing": {}, "facts": facts}
    return save_checkpoint(run, trained=tensors, optimizer={"m": tensors["w"] / 2}, state=state, keep=keep)


def steps(run):
    return sorted(int(path.name.removeprefix("step-")) for path in run.checkpoints.iterdir())


def test_the_newest_are_kept(run):
    """Planted bugs caught: the newest removed; one kept where two were asked for."""
    for step in (8, 9, 10, 100):
        save(run, step)
    assert steps(run) == [10, 100]
    save(run, 101, keep=3)
    assert steps(run) == [10, 100, 101]


def test_a_damaged_one_is_no_earlier_state(run):
    """Planted bug caught: it counted among those that are kept, and pushed out the last whole one."""
    for step in (1, 2):
        save(run, step)
    (run.checkpoints / "step-000000002" / "adapter.safetensors").write_bytes(b"")
    save(run, 3)
    assert steps(run) == [1, 2, 3]
    save(run, 4)
    assert steps(run) == [3, 4]


def test_newest_is_the_highest_step_whatever_the_clock_said(run):
    """Planted bug caught: by time of change, which a copy, a restore or a wrong clock moves."""
    for step, when in ((1, 4e9), (2, 2e9), (3, 1e9)):
        os.utime(save(run, step, keep=3), (when, when))
    found, rejected = newest_checkpoint(run)
    assert (found.step, rejected) == (3, [])
    assert torch.equal(found.trained["w"], torch.full((300,), 3.0))
    save(run, 4)
    assert steps(run) == [3, 4]


def test_what_a_kill_leaves_behind_is_no_checkpoint(run):
    """Whole or half, under any name but step-N. Planted bug caught: the number looked for anywhere in the name."""
    leftovers = {
        9: ".tmp-step-000000009-0a1b2c3d",
        8: ".trash-step-000000008-0a1b2c3d",
        7: "step-000000007.old",
        6: "step-6",
    }
    for step, name in leftovers.items():
        save(run, step).rename(run.checkpoints / name)
    (run.checkpoints / ".tmp-step-000000010-0a1b2c3d").mkdir()
    for step in (1, 2, 3):
        save(run, step)
    found, rejected = newest_checkpoint(run)
    assert (found.step, rejected) == (3, [])
    kept = {path.name for path in run.checkpoints.iterdir()} - {*leftovers.values(), ".tmp-step-000000010-0a1b2c3d"}
    assert kept == {"step-000000002", "step-000000003"}


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["first byte", "last byte", "one byte less"])
def test_nothing_is_parsed_before_it_is_hashed(run, monkeypatch, name, harm):
    """Planted bugs caught: sha256 not compared; compared after the file was read."""
    file = save(run, 1) / name
    content = bytearray(file.read_bytes())
    if harm == "one byte less":
        content.pop()
    else:
        content[0 if harm == "first byte" else -1] ^= 1
    file.write_bytes(content)
    read = []
    monkeypatch.setattr(module, "load_tensors", lambda path: read.append(path))
    with pytest.raises(RunError, match=rf"no checkpoint of .* can be used(.|\n)*{name}") as caught:
        newest_checkpoint(run)
    assert caught.value.exit_code == 3
    assert ("bytes, expected" if harm == "one byte less" else "sha256") in str(caught.value)
    assert not read


def test_the_one_before_serves_and_the_reason_is_told(run):
    save(run, 1)
    (save(run, 2) / "state.json").write_text("{}")
    found, rejected = newest_checkpoint(run)
    assert found.step == 1
    assert len(rejected) == 1 and "step-000000002" in rejected[0]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("file", ["adapter.safetensors", "optimizer.safetensors"])
def test_a_save_that_fails_says_so_and_leaves_the_one_before(run, monkeypatch, code, file):
    """Planted bugs caught: the error swallowed, as if it were saved; the one before pruned first."""
    save(run, 1)
    own = module.save_tensors

    def refuse(path, tensors):
        if path.name == file:
            raise OSError(code, os.strerror(code), str(path))
        own(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_tensors", refuse)
        with pytest.raises((DorakitError, OSError)) as caught:
            save(run, 2)
    if code == errno.ENOSPC:
        assert isinstance(caught.value, ResourceError) and caught.value.exit_code == 4
        assert "free" in str(caught.value)
    assert steps(run) == [1]
    assert newest_checkpoint(run)[0].step == 1
    save(run, 2)
    assert steps(run) == [1, 2]


def network(width=3):
    net = nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))
    net[1].requires_grad_(False)
    return net


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("0.bias"),
        lambda tensors: tensors.update({"2.weight": torch.ones(1)}),
        lambda tensors: tensors.update({"0.bias": torch.ones(4)}),
        lambda tensors: tensors.update({"0.bias": torch.ones(1)}),
    ],
    ids=["one less", "one more", "another shape", "a shape that would be spread"],
)
def test_a_checkpoint_of_another_model_is_refused(change):
    """Planted bug caught: what fits is taken and the rest left as it was."""
    net = network()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    tensors = {name: before[name] + 1 for name in ("0.weight", "0.bias")}
    change(tensors)
    with pytest.raises(RunError, match="the checkpoint does not fit the model"):
        restore_trained(net, tensors)
    assert torch.equal(net[1].weight, before["1.weight"])


def test_a_restored_model_is_the_saved_one():
    net = network()
    tensors = {name: torch.randn_like(net.get_parameter(name)) for name in ("0.weight", "0.bias")}
    restore_trained(net, tensors)
    assert all(torch.equal(net.get_parameter(name), tensor) for name, tensor in tensors.items())


def test_a_checkpoint_moved_to_a_larger_disk(tmp_path):
    """Its link goes when its time has come, and what it leads to stays. Planted bug caught: the run fails after the save."""
    run = Run(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    moved = save(run, 1).rename(tmp_path / "moved")
    (run.checkpoints / "step-000000001").symlink_to(moved)
    for step in (2, 3):
        save(run, step)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-000000002", "step-000000003"]
    assert (moved / "manifest.json").is_file()
