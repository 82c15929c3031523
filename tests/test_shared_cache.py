"""Several users of one machine: the umask's rights on every file, a cache that belongs to somebody else or is damaged."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import tiny_recipe, tiny_run

from dorakit import cache, merge, quantize, train
from dorakit.errors import MachineError, ModelError
from dorakit.model.source import resolve

UNPRIVILEGED = [sys.executable, str(Path(__file__).parent / "unprivileged.py")]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DORAKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def rights_below(directory):
    """The different rights of the files, and of the directories, with one of each."""
    found = {}
    for path in [directory, *directory.rglob("*")]:
        if not path.is_symlink():
            found.setdefault((path.is_dir(), stat.S_IMODE(path.stat().st_mode)), path)
    return found


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o002], ids=oct, indirect=True)
def test_every_file_has_the_rights_that_the_umask_leaves(umask, root, tmp_path):
    """Dies if safetensors' 0600 stays anywhere (a shared cache then serves its owner alone), and of 0644 under umask 077."""
    for mode in ("dora", "full"):
        run = tiny_run(tmp_path / mode, mode, ("training.save_every=1", "training.keep_best=true"))
        assert len(list(run.path.rglob("*.safetensors"))) >= 5
        if mode == "dora":
            merge(run, quiet=True)
            quantize(run, quiet=True)
        assert rights_below(run.path).keys() == {(False, 0o666 & ~umask), (True, 0o777 & ~umask)}
    assert list(root.rglob("*.safetensors"))
    assert rights_below(root).keys() == {(False, 0o666 & ~umask), (True, 0o777 & ~umask)}


@pytest.fixture
def trained_by_another(tmp_path):
    """What a user says to `dorakit train` whom permission bits bind."""
    recipe = tiny_recipe(tmp_path / "rows", "lora")

    def train():
        command = [*UNPRIVILEGED, sys.executable, "-m", "dorakit", "train", recipe.origin.path, "-q"]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stderr.splitlines()

    return train


@pytest.mark.faults
def test_a_cache_in_which_nothing_can_be_made(root, trained_by_another):
    """Dies of a bare `Permission denied`: what is to be done about it is a variable that nobody knows by heart."""
    root.mkdir(mode=0o500)
    assert trained_by_another() == (
        3,
        [
            f"error: the cache cannot be used: {root}: Permission denied",
            "  set DORAKIT_CACHE to a directory that can be written",
        ],
    )


@pytest.mark.faults
def test_a_cache_that_may_only_be_read_serves(root, trained_by_another):
    """Dies if an entry that is there is not used where nothing can be written beside it."""
    resolve("tiny:llama")
    root.chmod(0o500)
    assert trained_by_another() == (0, [])


@pytest.mark.faults
@pytest.mark.parametrize("closed", ["entry", "file", "root"])
def test_a_cache_of_which_the_owner_keeps_others_out(closed, root, trained_by_another):
    """Dies if an unreadable file counts as a damaged one, whose removal is not the reader's to do."""
    entry = resolve("tiny:llama").directory
    place = {"entry": entry, "file": entry / "model.safetensors", "root": root}[closed]
    place.chmod(0)
    code, said = trained_by_another()
    place.chmod(0o700)  # for whoever removes it
    assert (code, said[1:]) == (3, ["  set DORAKIT_CACHE to a directory that can be written"])
    assert said[0] == f"error: the cache cannot be used: {place}: Permission denied"


def test_a_file_in_the_place_of_the_cache(root):
    """Dies of a FileExistsError, which says nothing of what the file was taken for."""
    root.write_text("a file")
    with pytest.raises(MachineError, match=rf"the cache cannot be used: {root}: File exists\n  set DORAKIT_CACHE to"):
        resolve("tiny:llama")


def test_errors_of_what_fills_the_cache_stay_what_they_are(root, tmp_path):
    """Dies if a model's own file that cannot be read is blamed on the cache."""

    def make(staging):
        (tmp_path / "file").touch()
        (tmp_path / "file" / "below").read_text()

    with pytest.raises(NotADirectoryError):
        cache.cached("tokens-x", make)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_model_is_named_with_what_mends_it(name, root, tmp_path):
    """Dies if the advice is to download what was never downloaded. Its command is carried out."""
    entry = resolve("tiny:llama").directory
    (entry / name).write_bytes((entry / name).read_bytes()[:100])
    recipe = tiny_recipe(tmp_path, "lora")
    with pytest.raises(ModelError) as caught:
        train(recipe, quiet=True)
    first, advice = str(caught.value).splitlines()
    assert first.startswith(f"a model kept in the cache is damaged: {entry}/{name}")
    subprocess.run(advice.partition("made again: ")[2], shell=True, check=True)
    assert train(recipe, quiet=True).state == "finished"
