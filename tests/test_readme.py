"""What the README shows is what happens: its recipe and its commands. tests/test_docs.py has links and options."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from printed import LLAMA, invoke, write_rows

from dorakit import Recipe
from dorakit.cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPE = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)[1]


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def in_block(title: str) -> list[str]:
    """The commands in a section's block, without comments."""
    return [line.partition(" #")[0].strip() for line in re.findall(r"^    (dorakit .+)$", section(title), re.MULTILINE)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with the files that the README names."""
    monkeypatch.chdir(tmp_path)
    write_rows(my="orders.train", orders="orders.train", **{"held-out": "orders.test"})
    return tmp_path


def test_your_own_data(here):
    """The block as printed, in its order, then what the text below it names."""
    commands = in_block("Your own data")
    assert [command.split()[1] for command in commands] == ["init", "data", "train", "generate", "export"]
    for command in commands:
        invoke(command)
    for command in re.findall(r"`(dorakit [^`]+)`", section("Your own data")):
        if "--resume" not in command:  # of a finished run refused, and of others tested in tests/faults
            invoke(command)
    run = here / "runs" / "my"
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["state"] == "finished"
    for place in ("adapter", "gguf", "merged", "report.html"):
        assert (run / place).exists(), f"the README says that {place} is there now"
    assert Recipe.from_yaml("runs/my-2/recipe.resolved.yaml").adapter.rank == 8


def test_on_a_gpu(here):
    """The block as printed, but for the processes, which tests/distributed has."""
    commands = in_block("On a GPU")
    assert [command.split()[1] for command in commands] == ["init", "plan", "train", "train"]
    assert invoke(commands[0]) and "24" in invoke(commands[1])
    invoke(commands[2])
    assert commands[3] == f"{commands[2]} --nproc 2"


def test_the_recipe_by_hand(here):
    """Valid as printed; on a tiny base it trains, and is evaluated and quantized."""
    Path("printed.yaml").write_text(RECIPE, encoding="utf-8")
    assert Recipe.from_yaml("printed.yaml").adapter.mode == "qdora"
    Path("hand.yaml").write_text(RECIPE.replace(LLAMA, "tiny:llama"), encoding="utf-8")
    for command in ("validate hand.yaml", "train hand.yaml", "eval runs/hand", "quantize runs/hand"):
        invoke(f"dorakit {command}")
    assert (here / "runs/hand/quantized").is_dir() and any((here / "runs/hand/eval").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_your_own_data_as_printed(here):
    """40 rows, the real model, nothing left out or cut short."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in in_block("Your own data"):
        done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        print(done.stdout)
    assert list((here / "runs/my/gguf").glob("*.gguf"))


def test_the_table_names_every_command():
    named = re.findall(r"^\| `dorakit (\w+)", README, re.MULTILINE)
    assert sorted(named) == sorted(command.name for command in app.registered_commands)


def test_every_command_and_option_says_what_it_is():
    """Planted bug caught: an option without help, which docs/cli.md would list as a bare name."""
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        assert command.help and command.help.partition("\n")[0].rstrip().endswith("."), name
        mute = [option.name for option in command.params if not option.help]
        assert not mute, f"{name}: {mute}"
