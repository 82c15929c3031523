"""The commands of docs/faq.md, in their order, on a tiny random base."""

import re
import shutil
from pathlib import Path

import pytest
from printed import ROOT, invoke, write_rows
from typer.testing import CliRunner

from dorakit.cli.app import app
from dorakit.errors import GateError
from dorakit.run import Run

FAQ = (ROOT / "docs/faq.md").read_text(encoding="utf-8")
# Tested elsewhere: going on with an unfinished run (tests/faults), a comparison (tests/comparison), the card of `init --gpu`.
ELSEWHERE = ("--resume", "dorakit compare", "dorakit init")


# Sections whose commands are for a run that stopped.
STOPPED = ("Loss is NaN", "Out of memory")


def commands(section=""):
    """The commands of a section, or of all of them but those of STOPPED, without their comments."""
    parts = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", FAQ, re.MULTILINE))
    asked = [section] if section else [name for name in parts if name not in STOPPED]
    found = [line for name in asked for line in re.findall(r"^    (dorakit .+)$", parts[name], re.MULTILINE)]
    return [line.partition(" #")[0].strip() for line in found]


def test_its_commands_run(tmp_path, monkeypatch):
    """Planted bug caught: `eval ADAPTER` without the recipe that names its rows."""
    monkeypatch.chdir(tmp_path)
    write_rows(my="orders.train", chats="orders.train")
    for rows in ("my", "chats"):
        invoke(f"dorakit init --data {rows}.jsonl --model tiny:llama")
    invoke("dorakit train my.yaml")
    shutil.copytree("runs/my/adapter", "ADAPTER")  # as its placeholder is named
    ran = [command for command in commands() if not any(word in command for word in ELSEWHERE)]
    assert len(ran) >= 12
    for command in ran:
        invoke(command)
    for place in ("runs/half/adapter", "runs/my/gguf/Modelfile", "runs/my/merged", "merged"):
        assert Path(place).exists(), place


@pytest.mark.parametrize(("section", "made"), [(STOPPED[0], ["my-float32", "my-slower"]), (STOPPED[1], ["my-smaller"])])
def test_its_commands_run_beside_a_stopped_run(section, made, tmp_path, monkeypatch):
    """Planted bug caught: a new run without -o, which the directory of the stopped one refuses."""
    monkeypatch.chdir(tmp_path)
    write_rows(my="orders.train")
    invoke("dorakit init --data my.jsonl --model tiny:llama")
    stopped = CliRunner().invoke(app, ["train", "my.yaml", "--set", "optimizer.learning_rate=1e30"])
    assert isinstance(stopped.exception, GateError) and Run.open("runs/my").state != "finished"
    for command in commands(section):
        if "--resume" not in command:
            invoke(command)
    assert [Run.open(f"runs/{name}").state for name in made] == ["finished"] * len(made)
    assert sorted(path.name for path in Path("runs").iterdir()) == sorted(["latest", "my", *made])


def test_settings_for_a_resumed_run(tmp_path, monkeypatch):
    """A recipe takes what the lines that go on with a run set. Planted bug caught: training.nonfinite: {skip: 0}."""
    monkeypatch.chdir(tmp_path)
    write_rows(my="orders.train")
    invoke("dorakit init --data my.jsonl --model tiny:llama")
    lines = re.findall(r"^    dorakit train --resume \S+ (--set .+?)(?:\s+#.*)?$", FAQ, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        invoke(f"dorakit validate my.yaml --twin {line}")
