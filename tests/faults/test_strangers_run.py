"""A run directory from a stranger, or a copy with hard links: nothing outside it is read, written or removed."""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_runs import write
from tiny_runs import tiny_recipe
from typer.testing import CliRunner

from dorakit import Run, failpoints, train
from dorakit.cli.app import app
from dorakit.errors import Interrupted, RunError
from dorakit.links import own
from dorakit.place import find_target

COMMANDS = [
    "train --resume RUN",
    "train RECIPE --from RUN/adapter",
    "train RECIPE -o RUN",
    "eval RUN",
    "eval RUN/merged",
    "eval RUN --task boolq --data tasks",
    "merge RUN",
    "quantize RUN",
    "export RUN --to peft",
    "export RUN --to lora",
    "export RUN --to gguf",
    "analyze RUN",
    "report RUN",
    "chat RUN",
    "generate RUN --prompt two",
]
BOOLQ = {"instruction": "true or false?", "input": "", "output": "the correct answer is true", "answer": "true"}
MORE = ("eval/one.json", "eval/one.unfinished.jsonl", "log.txt", "nonfinite.jsonl", "report.html", "mlflow.db")


def digest(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def whole_run(run: Path) -> list[str]:
    """Give a run something under each name that commands read or write; the names of all."""
    for directory in ("merged", "quantized", "peft", "gguf", "lora", "trackio", "checkpoints/step-000000001"):
        (run / directory).mkdir(parents=True, exist_ok=True)
        (run / directory / "config.json").write_text("{}")
    for directory in ("eval", "wandb"):
        (run / directory).mkdir(exist_ok=True)
    for name in MORE:
        (run / name).touch()
    return sorted(str(path.relative_to(run)) for path in run.rglob("*"))


@contextlib.contextmanager
def led_outside(path: Path, outside: Path) -> Iterator[None]:
    """A file or directory of a run that is a link to one outside, of which no byte changes."""
    outside.mkdir(exist_ok=True)
    path.rename(outside / "it")
    path.symlink_to(outside / "it")
    before = digest(outside)
    yield
    assert digest(outside) == before
    path.unlink()
    (outside / "it").rename(path)


def test_no_name_in_a_run_leads_outside(run_of, tmp_path):
    """Planted bug caught: a run whose directories are looked at, not its files."""
    run = run_of("lora").path
    names = whole_run(run)
    assert len(names) > 25
    for name in names:
        with led_outside(run / name, tmp_path / "outside"):
            for target in (run, run / "adapter", run / "merged"):
                with pytest.raises(
                    RunError, match=f"{re.escape(str(run / name))} is a link to {tmp_path}/outside/it, and"
                ):
                    find_target(str(target))


def test_no_command_follows_a_link(run_of, tmp_path, monkeypatch):
    """Each with another name. Planted bug caught: a command that reads a run without opening it as one."""
    monkeypatch.chdir(tmp_path)
    run = run_of("lora").path
    recipe = tiny_recipe(tmp_path, "lora").origin.path
    write(tmp_path / "tasks" / "boolq" / "test.json", [BOOLQ])
    for command, name in zip(COMMANDS, whole_run(run), strict=False):
        with led_outside(run / name, tmp_path / "outside"):
            words = [word.replace("RUN", str(run)).replace("RECIPE", str(recipe)) for word in command.split()]
            ended = CliRunner().invoke(app, words, input="")
            assert isinstance(ended.exception, RunError), (command, name, ended.output, ended.exception)
            assert f"{run / name} is a link to" in str(ended.exception), command
    with led_outside(run / "metrics.jsonl", tmp_path / "outside"):
        assert "damaged" in CliRunner().invoke(app, ["runs", str(run.parent)]).output


def test_what_is_no_file_is_refused(run_of):
    """A pipe would be waited for."""
    run = run_of("lora")
    os.mkfifo(run.path / "trackers.json")
    with pytest.raises(RunError, match=r"trackers\.json is not a regular file"):
        Run.open(run.path)


def test_links_that_are_fine(run_of, tmp_path):
    """The run itself may be reached by a link, and Weights & Biases' own links are its own."""
    run = run_of("lora").path
    (run / "wandb" / "run-1").mkdir(parents=True)
    (run / "wandb" / "latest-run").symlink_to("run-1")
    (tmp_path / "latest").symlink_to(run)
    Run.open(tmp_path / "latest")
    (run / "wandb").rename(tmp_path / "wandb")
    (run / "wandb").symlink_to(tmp_path / "wandb")
    with pytest.raises(RunError, match="wandb is a link"):
        Run.open(tmp_path / "latest")


def test_a_checkpoint_behind_a_link(run_of, tmp_path):
    """`--resume RUN/checkpoints/step-N` does not go on with the run that checkpoints/ leads into."""
    run = run_of("lora").path
    other = shutil.copytree(run, tmp_path / "other")
    (other / "checkpoints" / "step-000000001").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    (run / "checkpoints").symlink_to(other / "checkpoints")
    ended = CliRunner().invoke(app, ["train", "--resume", str(run / "checkpoints" / "step-000000001")])
    assert "checkpoints is a link" in str(ended.exception)


def test_a_copy_with_hard_links_is_a_run_of_its_own(tmp_path):
    """Resuming it changes no byte of the original. Planted bug caught: log.txt opened as it is."""
    recipe = tiny_recipe(tmp_path, "lora", ("training.max_steps=4",))
    failpoints.arm("step:2=sigterm")
    with pytest.raises(Interrupted):
        train(recipe, quiet=True)
    failpoints.arm("")
    original = Run.wanted(recipe)
    (original / "mlflow.db").touch()
    copy = tmp_path / "copy"
    shutil.copytree(original, copy, copy_function=os.link)
    before = digest(original)
    train(Run.open(copy).recipe, resume=Run.open(copy), quiet=True)
    assert Run.open(copy).state == "finished" and digest(original) == before


def test_a_file_of_its_own(tmp_path):
    (tmp_path / "one").write_text("content")
    os.link(tmp_path / "one", tmp_path / "two")
    own(tmp_path / "two")
    (tmp_path / "two").write_text("other")
    assert (tmp_path / "one").read_text() == "content" and len(list(tmp_path.iterdir())) == 2
