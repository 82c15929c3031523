"""One rule for the options of all commands: a name means the same everywhere, -o writes, every help has examples that parse."""

import inspect
import json
import re
import shlex
import typing

import pytest
import typer
from printed import ROOT
from typer.models import OptionInfo, ParameterInfo
from typer.testing import CliRunner

from dorakit.cli.app import app

FUNCTIONS = {command.name: command.callback for command in app.registered_commands}
# (option, command) whose help or type is its own, and why.
OWN = {
    ("--from", "import"): "a toolkit, where train takes the adapter to begin with",
    ("--data", "init"): "any rows at all; eval asks for test rows in the recipe's form, or for the tasks' directory",
    ("--nproc", "plan"): "a list: plan compares several numbers of processes and starts none",
    ("--json", "chat"): "an object a turn",
    ("--quiet", "doctor"): "what warns or fails is left",
    ("--quiet", "validate"): "problems are left",
    ("--quiet", "data"): "counts are left",
    ("--quiet", "plan"): "the summary is left",
}
# Commands that write what they were asked for; with -q they print its path and nothing else.
WRITING = {"train", "merge", "quantize", "export", "compare", "report", "import", "analyze"}
# Their result lies in the runs themselves, one each.
WITHOUT_OUTPUT = {"analyze"}


def options(name):
    """(flag, type, declaration) of each option, as the function behind the command declares them."""
    found = []
    for hint in typing.get_type_hints(FUNCTIONS[name], include_extras=True).values():
        for option in getattr(hint, "__metadata__", ()):
            if isinstance(option, OptionInfo):
                found.append((declared(option)[0].partition("/")[0], hint.__origin__, option))
    return found


def declared(option):
    """The names of an option: in this style, Typer keeps the first where its default would be."""
    return [name for name in (option.default, *option.param_decls) if isinstance(name, str)]


def is_path_only(option):
    return option.help.startswith("Print the path of the result")


def examples(command):
    block = command.help.partition("Examples:")[2]
    return [line.strip() for line in block.splitlines() if line.strip()]


def test_an_option_means_the_same_in_every_command():
    """Planted bugs caught: another help text of --set, --limit as a number of something else, -n for another option."""
    meanings: dict[str, dict[tuple, list[str]]] = {}
    for name in FUNCTIONS:
        for flag, kind, option in options(name):
            if (flag, name) in OWN or is_path_only(option):
                continue
            meaning = (option.help, str(kind), option.min, tuple(declared(option)))
            meanings.setdefault(flag, {}).setdefault(meaning, []).append(name)
    assert not {name: found for name, found in meanings.items() if len(found) > 1}
    letters: dict[str, set[str]] = {}
    for name in FUNCTIONS:
        for flag, _, option in options(name):
            for short in (part for part in declared(option) if not part.startswith("--")):
                letters.setdefault(short, set()).add(flag)
    assert not {short: names for short, names in letters.items() if len(names) > 1}


def test_the_exceptions_are_ones():
    for flag, name in OWN:
        assert flag in [one for one, _, _ in options(name)], (flag, name)


def test_what_writes_takes_o_and_prints_the_path_alone():
    given = {name: {flag: option for flag, _, option in options(name)} for name in FUNCTIONS}
    assert {name for name, found in given.items() if "--output" in found} == WRITING - WITHOUT_OUTPUT | {
        "init", "schema", "eval",
    }  # fmt: skip
    assert {name for name, found in given.items() if "--quiet" in found and is_path_only(found["--quiet"])} == WRITING
    for found in given.values():
        if "--output" in found:
            assert declared(found["--output"]) == ["--output", "-o"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_option_is_declared_in_the_same_style(name):
    """Planted bug caught: `= typer.Option(...)` as a default, which the tests above would not see."""
    defaults = [parameter.default for parameter in inspect.signature(FUNCTIONS[name]).parameters.values()]
    assert not [default for default in defaults if isinstance(default, ParameterInfo)]
    assert all(declared(option) for _, _, option in options(name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_default_is_shown_once_and_by_the_help_itself(name):
    """Planted bug caught: `Default: the recipe's.` written into a help text."""
    for flag, _, option in options(name):
        assert not re.search(r"\bdefaults?\b", option.help, re.IGNORECASE), (name, flag)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_examples_parse(name):
    """Planted bugs caught: an example with an option that is gone, and a command without one."""
    command = typer.main.get_command(app).commands[name]
    lines = examples(command)
    assert lines, f"{name} has no Examples: block"
    for line in lines:
        words = shlex.split(re.split(r" [<>|] ", line)[0])
        assert words[:2] == ["dorakit", name], line
        with command.make_context(name, words[2:]) as context:
            assert not context.args


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_recipes_of_examples_are_whole(name):
    """Those of an example without --twin need no download: the rows are here and so is the base.

    Planted bugs caught: a recipe that is gone, and one whose data or base a fresh clone lacks.
    """
    for line in examples(typer.main.get_command(app).commands[name]):
        words = shlex.split(line)
        twin = [word for word in words if word == "--twin"]
        for recipe in (word for word in words if re.match(r"recipes(/|$)", word)):
            result = CliRunner().invoke(app, ["validate", str(ROOT / recipe), "--json", *twin])
            assert result.exit_code == 0, f"{line}: {result.output}"
            bases = [found["base"] for found in json.loads(result.stdout)["recipes"]]
            assert bases and all(base.startswith(("tiny:", "pkg:")) for base in bases), (line, bases)
