"""What the README shows is what happens: its recipe, its error, its commands, its links."""

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dorakit import Recipe
from dorakit.cli.app import app
from dorakit.errors import RecipeError

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPE = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)[1]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with the README's recipe, on a base that is here, and the files that it names."""
    monkeypatch.chdir(tmp_path)
    base = re.search(r"base: (\S+)", RECIPE)[1]
    Path("my.yaml").write_text(RECIPE.replace(base, "tiny:llama"), encoding="utf-8")
    for name, source in (("orders.jsonl", "orders.train.jsonl"), ("held-out.jsonl", "orders.test.jsonl")):
        lines = (ROOT / "recipes" / "data" / source).read_text(encoding="utf-8").splitlines(keepends=True)
        Path(name).write_text("".join(lines[:32]), encoding="utf-8")
    return tmp_path


def test_the_recipe_as_printed_is_valid(here):
    Path("printed.yaml").write_text(RECIPE, encoding="utf-8")
    assert Recipe.from_yaml("printed.yaml").adapter.mode == "qdora"


def test_the_error_as_printed_is_what_a_misspelling_gives(here):
    shown = re.search(r"```\n(my\.yaml:\d+.*?)```", README, re.DOTALL)[1]
    text = Path("my.yaml").read_text(encoding="utf-8")
    Path("my.yaml").write_text(text.replace("  rank: ", "  rnak: "), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml("my.yaml")
    assert str(caught.value).strip() == shown.strip()


def test_the_commands_as_printed_run_in_their_order(here):
    commands = re.findall(r"^    dorakit (.+?)(?:\s+#.*)?$", README, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["validate", "train", "train", "eval", "merge", "quantize"]
    for command in commands:
        arguments = command.split()
        if arguments[0] == "train":
            arguments += ["--set", "training.max_steps=2"]
        if arguments[0] == "eval":
            arguments += ["--limit", "2", "--set", "evaluation.max_new_tokens=2"]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, f"dorakit {command}: {result.output}"
    run = here / "runs" / "my"
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["state"] == "finished"
    for place in ("adapter", "merged", "quantized", "eval"):
        assert (run / place).is_dir(), f"the README says that {place}/ is there now"


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


def test_the_table_names_every_recipe():
    named = set(re.findall(r"\]\((recipes/[\w.-]+\.yaml)\)", README))
    assert named == {f"recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}


def test_links_and_scripts_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target
    for script in re.findall(r"bash (scripts/\S+?)`?[\s`]", README):
        assert (ROOT / script).is_file(), script
