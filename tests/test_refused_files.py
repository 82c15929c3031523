"""What a person sees when the file system refuses: one line with the path, and the exit code."""

import errno
from uuid import UUID

import pytest
from safetensors import SafetensorError
from tiny_runs import tiny_recipe

from dorakit import Run
from dorakit.cli import app
from dorakit.errors import RunError


def said_by(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["dorakit", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        app.main()
    return caught.value.code, capsys.readouterr().err


def test_a_run_directory_that_cannot_be_made(tmp_path, monkeypatch, capsys):
    """Planted bug caught: an OSError is called a bug in dorakit, exit 1."""
    recipe = tiny_recipe(tmp_path, "lora")
    (tmp_path / "file").write_text("x")
    place = f"output_dir={tmp_path}/file/run"
    code, said = said_by(monkeypatch, capsys, "train", recipe.origin.path, "--quiet", "--set", place)
    assert code == 3
    assert f"error: {tmp_path}/file" in said and "Not a directory" in said


def test_a_run_directory_whose_name_is_not_utf8(tmp_path):
    """Planted bug caught: it is only found out when the result is written, after the training."""
    recipe = tiny_recipe(tmp_path, "lora").model_copy(update={"output_dir": f"{tmp_path}/n\udcff/run"})
    with pytest.raises(RunError, match="cannot be made: its name is not UTF-8"):
        Run.place(recipe)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_quota_is_a_full_disk(tmp_path, monkeypatch, number):
    """Planted bug caught: a quota that is used up is a wrong output_dir, exit 3."""

    def full(*_, **__):
        raise OSError(number, "full")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(OSError) as caught:
        Run.place(tiny_recipe(tmp_path, "lora"))
    assert caught.value.errno == number


@pytest.mark.parametrize("full", ["x.json", "x.predictions.jsonl"])
def test_a_full_disk_is_named(trained, tmp_path, monkeypatch, capsys, full):
    """Planted bugs caught: a full disk has the exit code of a bug; a write that failed says not where, or leaves its half."""
    monkeypatch.setattr("uuid.uuid4", lambda: UUID(int=0))
    (tmp_path / f".tmp-{full}-00000000").symlink_to("/dev/full")
    output = tmp_path / "x.json"
    code, said = said_by(monkeypatch, capsys, "eval", trained("lora").path, "--quiet", "--limit", 1, "--output", output)
    assert code == 4
    assert said.startswith(f"error: {tmp_path / full}: No space left on device\n  free some space")
    assert not output.exists() and not list(tmp_path.glob(".tmp-*"))


def test_a_full_disk_in_the_words_of_safetensors(tmp_path, monkeypatch, capsys):
    """Planted bug caught: only an OSError is known to be a full disk."""

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("dorakit.training.result.save_adapter", full)
    recipe = tiny_recipe(tmp_path, "lora")
    code, said = said_by(monkeypatch, capsys, "train", recipe.origin.path, "--quiet")
    begins = f"error: {tmp_path}/run-lora/adapter could not be written: No space left on device; it needs "
    assert code == 4 and said.startswith(begins)


def test_a_run_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch, capsys):
    """Planted bug caught: `.tmp-run-...` stays behind when the disk is full while the directory is being filled."""

    def full(*_):
        raise OSError(28, "No space left on device")

    recipe = tiny_recipe(tmp_path, "lora")
    monkeypatch.setattr("dorakit.run.write_json", full)
    code, said = said_by(monkeypatch, capsys, "train", recipe.origin.path, "--quiet")
    assert (code, said.splitlines()[0]) == (4, f"error: {tmp_path}/run-lora: No space left on device")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
