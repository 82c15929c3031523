"""What a loss of power would find is a matter of order: files synced, then renamed, then the directory synced.

A shim writes down the calls. That they do on a disk what their names say is the system's promise; no power is cut here.
"""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dorakit
from dorakit import Run, failpoints, files
from dorakit.files import remove_rubbish, whole_directory, write_json
from dorakit.training.checkpoint import save_checkpoint


@pytest.fixture
def calls(monkeypatch):
    """(what, path, size or target) of every fsync, rename and replace, in their order; a directory's size is its entries."""
    found = []
    sync, rename, replace = os.fsync, os.rename, os.replace

    def synced(descriptor):
        sync(descriptor)
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        size = len(os.listdir(path)) if os.path.isdir(path) else os.fstat(descriptor).st_size
        found.append(("fsync", path, size))

    def renamed(original):
        def call(source, target, **options):
            original(source, target, **options)
            found.append(("rename", str(source), str(target)))

        return call

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed(rename))
    monkeypatch.setattr(os, "replace", renamed(replace))
    return found


def check_order(calls, place, files):
    """Every file of `place` was synced at its final size before the rename, its directory too, and the parent after."""
    moves = [index for index, (what, _, target) in enumerate(calls) if what == "rename" and target == str(place)]
    assert len(moves) == 1, "the directory takes its name once"
    move = moves[0]
    staging = calls[move][1]
    assert os.path.dirname(staging) == str(place.parent), "a rename across file systems is none"
    before = [(path, size) for what, path, size in calls[:move] if what == "fsync"]
    for name, size in files.items():
        assert (f"{staging}/{name}", size) in before, f"{name} was not synced, or not with all of its content"
    assert (staging, len(files)) in before, "the directory was not synced, or not with all of its names"
    after = [path for what, path, _ in calls[move:] if what == "fsync"]
    assert str(place.parent) in after, "the rename was not synced"


def sizes(directory):
    return {str(p.relative_to(directory)): p.stat().st_size for p in directory.rglob("*") if p.is_file()}


def test_a_directory_is_on_the_disk_before_it_has_its_name(tmp_path, calls):
    """Planted bugs caught: no sync of a file, of the directory, of its parent; the rename before the syncs."""
    place = tmp_path / "done"
    with whole_directory(place) as staging:
        assert staging.parent == tmp_path and not place.exists()
        (staging / "a").write_text("a" * 5000)
        (staging / "b").write_text("b")
    check_order(calls, place, sizes(place))


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, calls):
    """With its manifest. Planted bug caught: a file written after the last sync."""
    run = Run(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    place = save(run, 3)
    names = {"adapter.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    assert names <= sizes(place).keys()
    check_order(calls, place, sizes(place))


def save(run, step):
    tensors = {"w": torch.full((300,), float(step))}
    facts = {"recipe": {}, "base": {}, "data": "", "template": ""}
    state = {"step": step, "best_step": 0, "optimizer": {}, "computing": {}, "facts": facts}
    return save_checkpoint(run, trained=tensors, optimizer={"m": tensors["w"] / 2}, state=state, keep=2)


def test_a_json_file_is_synced_before_it_replaces_the_old_one(tmp_path, calls):
    """Planted bug caught: the file opened for writing is the one that others read."""
    file = tmp_path / "run.json"
    write_json(file, {"state": "training"})
    del calls[:]
    write_json(file, {"state": "finished"})
    synced = [index for index, call in enumerate(calls) if call[0] == "fsync" and call[2] == file.stat().st_size]
    moved = [index for index, call in enumerate(calls) if call[0] == "rename" and call[2] == str(file)]
    assert synced and moved and min(synced) < moved[0]
    assert calls[synced[0]][1] == calls[moved[0]][1] != str(file)


def test_two_that_write_a_file_do_not_meet(tmp_path, monkeypatch):
    """Planted bug caught: one staging name for all, by which a file that another has half written gets into its place."""
    file, sync = tmp_path / "x.json", os.fsync

    def while_another_writes(descriptor):
        monkeypatch.setattr(os, "fsync", sync)
        write_json(file, ["another"])
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", while_another_writes)
    write_json(file, ["one"])
    assert file.read_text() == '[\n  "one"\n]\n'
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ValueError("a bug")])
def test_a_block_that_fails_leaves_the_old_directory_whole(tmp_path, error):
    """Planted bug caught: the old directory removed before there is a new one."""
    place = tmp_path / "result"
    with whole_directory(place) as staging:
        (staging / "a").write_text("old")
    with pytest.raises(type(error)), whole_directory(place) as staging:
        assert (place / "a").read_text() == "old"
        (staging / "a").write_text("half")
        raise error
    assert (place / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    with whole_directory(place) as staging:
        (staging / "b").write_text("new")
    assert [path.name for path in place.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


@pytest.mark.parametrize("next_writer", ["remove_rubbish", "whole_directory"])
def test_a_kill_while_replacing_loses_nothing(tmp_path, next_writer):
    """Planted bugs caught: the old directory, renamed out of the way, taken for rubbish; nobody gives it its name back."""
    place = tmp_path / "merged"
    for name in ("merged", "merged-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("old")
    code = (
        "import sys\nfrom pathlib import Path\nfrom dorakit.files import whole_directory\n"
        "with whole_directory(Path(sys.argv[1])) as staging:\n    (staging / 'a').write_text('new')\n"
    )
    environment = os.environ | {"DORAKIT_FAILPOINT": "directory.replacing:1=kill9"}
    assert subprocess.run([sys.executable, "-c", code, place], env=environment).returncode == -signal.SIGKILL
    assert not place.exists()
    if next_writer == "remove_rubbish":
        remove_rubbish(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "merged-2"]
    else:
        with pytest.raises(KeyError), whole_directory(place):
            assert (place / "a").read_text() == "old"
            raise KeyError
    assert (place / "a").read_text() == "old"


@pytest.mark.parametrize("remover", ["whole_directory", "remove_rubbish"])
def test_a_directory_half_removed_is_not_put_back(tmp_path, remover):
    """Planted bugs caught: a kill inside the removal of an old directory leaves a part of it under the name to put back."""
    place = tmp_path / "merged"
    place.mkdir()
    for name in "abc":
        (place / name).write_text("old")
    code = (
        "import os, shutil, sys\nfrom pathlib import Path\nfrom dorakit.files import remove_rubbish, whole_directory\n"
        "place = Path(sys.argv[1])\n"
        "def half(directory, **_):\n"
        "    next(Path(directory).iterdir()).unlink()\n    os.kill(os.getpid(), 9)\n"
        "shutil.rmtree = half\n"
    )
    if remover == "whole_directory":
        code += "with whole_directory(place) as staging:\n    (staging / 'a').write_text('new')\n"
    else:
        shutil.copytree(place, tmp_path / ".old-merged-0123abcd")
        code += "remove_rubbish(place.parent)\n"
    assert subprocess.run([sys.executable, "-c", code, place]).returncode == -signal.SIGKILL
    place.rename(tmp_path / "elsewhere")
    with pytest.raises(KeyError), whole_directory(place):
        raise KeyError
    assert not place.exists()


def test_of_two_that_make_the_same_one_stays(tmp_path):
    """Planted bug caught: the second takes the first one's directory away while it is read."""
    place = tmp_path / "entry"
    with whole_directory(place, keep_existing=True) as late:
        (late / "a").write_text("late")
        with whole_directory(place, keep_existing=True) as early:
            (early / "a").write_text("early")
    assert (place / "a").read_text() == "early"
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_a_failpoint_that_there_is_not(tmp_path):
    """Planted bug caught: a traceback from an import, or a misspelt place that never comes."""
    for text, code in (("chekpoint.file:1=kill9", 2), ("step:x=kill9", 2), ("step:1=kill", 2), ("step:1=kill9", 0)):
        environment = os.environ | {"DORAKIT_FAILPOINT": text}
        command = [sys.executable, "-m", "dorakit", "--version"]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert ended.returncode == code, ended.stderr
        if code:
            assert ended.stderr.startswith(
                f"error: DORAKIT_FAILPOINT: '{text}' is not PLACE:N=ACTION\n  places: micro, "
            )


def test_every_place_is_listed():
    """Planted bug caught: a place that is reached and cannot be named."""
    sources = [path.read_text() for path in Path(dorakit.__file__).parent.rglob("*.py")]
    reached = {place for text in sources for place in re.findall(r'reach\("([a-z.]+)"\)', text)}
    kinds = {"directory", *(kind for text in sources for kind in re.findall(r'what="([a-z]+)"', text))}
    parts = set(re.findall(r'reach\(f"{what}\.([a-z]+)"\)', Path(files.__file__).read_text()))
    replacing = {"cache.replacing"}  # one that is there is kept
    assert reached | {f"{kind}.{part}" for kind in kinds for part in parts} - replacing == failpoints.PLACES.keys()
