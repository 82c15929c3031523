"""`dorakit init`, by flags and asked on a terminal; what it writes is trained."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dorakit import Recipe
from dorakit.cli.app import app, main
from dorakit.errors import DataError, ModelError, UsageError


def run(*arguments):
    return CliRunner().invoke(app, ["init", *arguments], catch_exceptions=False)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": i, "question": f"{i} and one?", "answer": f"{i + 1}"} for i in range(40)]
    Path("my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def test_flags_write_a_recipe_that_trains(here):
    """Planted bug caught: columns that are sniffed and not written, so that training finds no field `instruction`."""
    done = run("--data", "my.jsonl", "--model", "tiny:llama")
    said = done.stdout.splitlines()
    needed, there = re.fullmatch(
        r"memory: about (.*) MiB at the peak of training, (.*) GiB are there \(this machine, .*\)", said.pop(3)
    ).groups()
    assert 1 < float(needed) < 1024 * float(there)
    assert said == [
        "rows:   40 of format instruction (question as instruction, answer as output); not used: id",
        "first:  0 and one? -> 1",
        "tokens: median 34; 99 of 100 rows have at most 34, counted; max_seq_len 64",
        "wrote:  my.yaml",
        "next:   dorakit plan my.yaml  # memory and time",
        "        dorakit data my.yaml  # the rows as the model will see them",
        "        dorakit train my.yaml",
    ]
    arguments = ["train", "my.yaml", "--quiet", "--set", "training.max_steps=2"]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert json.loads(Path("runs/my/run.json").read_text(encoding="utf-8"))["state"] == "finished"


def test_nothing_is_asked_off_a_terminal(here):
    """Planted bug caught: a prompt that waits for ever in a script."""
    with pytest.raises(UsageError, match="no --data and no --model given"):
        run()
    with pytest.raises(UsageError, match="no --model given"):
        run("--data", "my.jsonl")


def test_an_existing_file_stays(here):
    """Planted bug caught: a recipe that somebody has worked on is overwritten."""
    Path("my.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=r"my\.yaml exists: give another --output"):
        run("--data", "my.jsonl", "--model", "tiny:llama")
    assert Path("my.yaml").read_text(encoding="utf-8") == "mine"


def test_a_recipe_elsewhere_finds_rows_and_base(here):
    """Planted bug caught: paths as typed, which a recipe in another directory reads from there."""
    (here / "base").mkdir()
    from dorakit.model.source import resolve

    for file in resolve("tiny:llama").directory.iterdir():
        (here / "base" / file.name).symlink_to(file)
    # A link out of its directory is refused, so the files are copied.
    for link in list((here / "base").iterdir()):
        content = link.read_bytes()
        link.unlink()
        link.write_bytes(content)
    done = run("--data", "my.jsonl", "--model", "base", "--output", "recipes/of mine.yaml", "--mode", "lora", "--json")
    report = json.loads(done.stdout)
    assert (report["data"], report["base"], report["recipe"]) == ("../my.jsonl", "../base", "recipes/of mine.yaml")
    assert (report["rows"], report["max_seq_len"], report["tokens"]["counted"]) == (40, 64, True)
    plan = Recipe.from_yaml("recipes/of mine.yaml")
    assert Path(plan.data.root, plan.data.train[0].path).samefile("my.jsonl")
    assert Path(plan.model.base).samefile("base")


def test_a_base_that_is_not_here_is_estimated(here):
    """Planted bug caught: a download of gigabytes to count tokens; or an estimate that is called a count."""
    report = json.loads(run("--data", "my.jsonl", "--model", "someone/model", "--json").stdout)
    assert report["tokens"]["counted"] is False
    assert "estimated at 4 characters a token" in Path("my.yaml").read_text(encoding="utf-8")
    assert Recipe.from_yaml("my.yaml").data.train[0].prompt == "default"


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (("--data", "mi.jsonl"), DataError, r"no such file: mi\.jsonl (.|\n)*did you mean my\.jsonl"),
        (("--data", "empty.jsonl"), DataError, r"empty\.jsonl is empty"),
        (("--data", "rows.xml"), DataError, r"rows\.xml is of no known kind"),
        (("--data", "broken.jsonl"), DataError, r"broken\.jsonl:2: not JSON"),
        (("--model", "./nowhere"), ModelError, r"no such model directory"),
        (("--model", "pkg:no_such_package/a.gguf"), ModelError, r"'no_such_package' is not installed"),
        (("--model", "tiny:no_such"), ModelError, r"tiny:no_such"),
        (("--model", "what:ever"), UsageError, r"'what:ever' is not a hub id"),
        (("--mode", "qdra"), UsageError, r"mode 'qdra' is unknown\n +did you mean qdora\?"),
    ],
)
def test_what_cannot_be_used_is_said_and_nothing_is_left(here, flags, error, message):
    """Planted bug caught: the recipe is written before what it names is known to be usable."""
    Path("empty.jsonl").touch()
    Path("rows.xml").write_text("<rows/>", encoding="utf-8")
    Path("broken.jsonl").write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    told = {"--data": "my.jsonl", "--model": "tiny:llama", **dict([flags])}
    with pytest.raises(error, match=message):
        run(*(part for flag in told.items() for part in flag))
    assert list(here.glob("*.yaml")) == []


@pytest.mark.faults
def test_what_is_not_given_is_asked_on_a_terminal(here):
    """Planted bug caught: questions to a stdout that is read by a program; or a wrong answer that ends all."""
    (here / "other.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "dorakit", "init"], stdin=its_end, stdout=its_end, stderr=its_end, close_fds=True,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    os.close(its_end)
    answers = [("rows (", "mi.jsonl"), ("did you mean my.jsonl", ""), ("rows (", "my.jsonl")]
    answers += [("base model (", "tiny:llama"), ("mode (", ""), ("dorakit train my.yaml", "")]
    seen = ""
    for expected, answer in answers:
        seen += _read_until(terminal, expected)
        if answer or expected == "mode (":
            os.write(terminal, f"{answer}\n".encode())
    assert process.wait(60) == 0
    os.close(terminal)
    assert "40 of format instruction" in seen
    assert Recipe.from_yaml("my.yaml").adapter.mode == "qdora"


def test_a_question_can_be_left(monkeypatch, capsys):
    """Planted bug caught: Ctrl-C or Ctrl-D at a question is reported as a bug of dorakit."""

    def leave(**_):
        raise typer.Abort  # what Typer makes of either

    monkeypatch.setattr("dorakit.cli.app.app", leave)
    with pytest.raises(SystemExit) as left:
        main()
    assert (left.value.code, capsys.readouterr().err) == (130, "stopped\n")


def _read_until(terminal: int, expected: str) -> str:
    text, end = "", time.monotonic() + 250
    while expected not in text:
        assert time.monotonic() < end, f"{expected!r} did not come; there was {text!r}"
        if select.select([terminal], [], [], 1)[0]:
            try:
                text += os.read(terminal, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                raise AssertionError(f"ended before {expected!r}: {text!r}") from None
    return text
