"""Text of a model, a file or a row is shown on the terminal and does not steer it."""

import ast
import itertools
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_runs import made_run
from safetensors.torch import load_file, save_file
from tiny_runs import tiny_recipe
from typer.testing import CliRunner

import dorakit
from dorakit import Run
from dorakit.cli import app
from dorakit.errors import RunError
from dorakit.evaluation import generation, task
from dorakit.model.load import load_base
from dorakit.place import find_target
from dorakit.progress import say
from dorakit.terminal import json_line, printable
from dorakit.training.metrics import Metrics

# Title, wiped screen, a C1 introducer, backspaces, direction of writing, and what rich would take for its own marks.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\b\b\r\u202egnp.\x7f [bold]x[/bold] [/] :skull:"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x9b31m\x08\x08\r\u202egnp.\x7f [bold]x[/bold] [/] :skull:"


def steers(text):
    return [c for c in text if not c.isprintable() and c not in "\n\t"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HOSTILE, SHOWN),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("Übung, 日本語\u3000。 10\u202f000 €\u00a0", "Übung, 日本語\u3000。 10\u202f000 €\u00a0"),
        ("می\u200cخواهم 👩\u200d🚀", "می\u200cخواهم 👩\u200d🚀"),
        ("\ud800 \U000e0041", r"\ud800 \U000e0041"),
    ],
)
def test_what_is_not_to_look_at_is_spelled_out(text, shown):
    """Planted bugs caught: C1 controls and the direction of writing left; blanks of other scripts called controls."""
    assert printable(text) == shown


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6))
def test_json_means_what_it_meant(content):
    line = json_line(content)
    assert json.loads(line) == content
    assert "\n" not in line and printable(line) == line


def run_cli(*arguments):
    result = CliRunner().invoke(app.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.exception
    return result


@pytest.mark.parametrize("compare", [False, True])
@pytest.mark.parametrize("as_json", [False, True])
def test_generated_text(monkeypatch, compare, as_json):
    """Planted bug caught: only the answer of the adapter is looked at."""
    answer = {"prompt": HOSTILE, "text": HOSTILE, **({"base_text": HOSTILE} if compare else {})}
    monkeypatch.setattr(generation, "answer_prompts", lambda *_, **__: [answer, answer])
    flags = [*(["--compare"] if compare else []), *(["--json"] if as_json else [])]
    out = run_cli("generate", "x", "-p", "x", *flags).stdout
    assert not steers(out)
    if as_json:
        assert json.loads(out)["answers"] == [answer, answer]
    elif not compare:
        assert out.count(SHOWN) == 4


def test_evaluated_samples_and_names(monkeypatch):
    """Planted bug caught: names of files taken for rich's marks."""
    sample = {"prompt_tail": HOSTILE, "answer": HOSTILE, "generated": HOSTILE, "correct": False}
    result = {
        "target": HOSTILE,
        "variant": "adapter",
        "data": HOSTILE,
        "rows": 1,
        "tokens": 1,
        "loss": 1.0,
        "perplexity": 2.7,
        "metric": "exact_match",
        "accuracy": 0.0,
        "accuracy_standard_error": 0.0,
        "correct": 0,
        "answered": 1,
        "unparsed": 0,
        "unfinished": 0,
        "samples": [sample],
        "output": HOSTILE,
        "notes": [],
    }
    monkeypatch.setattr(task, "evaluate", lambda *_, **__: result)
    out = run_cli("eval", "x").stdout
    assert not steers(out)
    assert out.replace("\n", "").count("[bold]x[/bold] [/] :skull:") >= 4
    assert json.loads(run_cli("eval", "x", "--json").stdout) == result


def test_lines_while_training(tmp_path, capsys):
    run = Run(tmp_path)
    with Metrics(run, tiny_recipe(tmp_path, "lora"), total_steps=1, start_step=0, quiet=False) as metrics:
        metrics.say(HOSTILE)
        metrics.write({"step": 1, "samples": [{"text": HOSTILE}]})
    say(HOSTILE, quiet=False)
    err = capsys.readouterr().err
    assert not steers(err) and err.replace("\n", "") == SHOWN * 2
    assert not steers(run.log_file.read_text()) and not steers(run.metrics_file.read_text())
    assert json.loads(run.metrics_file.read_text())["samples"] == [{"text": HOSTILE}]


def test_the_time_that_is_left(tmp_path, capsys, monkeypatch):
    """Planted bugs caught: the time of all steps, or of those that are done."""
    monkeypatch.setattr("dorakit.training.metrics.time.monotonic", itertools.count(0, 6).__next__)  # 6 s a step
    with Metrics(Run(tmp_path), tiny_recipe(tmp_path, "lora"), total_steps=40, start_step=0, quiet=False) as metrics:
        for step in (1, 2, 3):
            metrics.step(step, 100)
        metrics.train(3, loss=1.0, rate=1e-3, grad_norm=1.0, num_tokens=300, memory_bytes=0)
    assert "step 3/40  loss 1.0000  lr 1.00e-03  17 tok/s  0.0 GB  ETA 3:42" in capsys.readouterr().err


def test_values_of_a_recipe(tmp_path):
    """YAML can spell what it may not contain. Planted bug caught: the table of --explain prints values as they are."""
    recipe = tiny_recipe(tmp_path, "lora")
    text = (tmp_path / "lora.yaml").read_text().replace("path: train.jsonl", 'path: "\\e]0;owned\\a.jsonl"')
    (tmp_path / "lora.yaml").write_text(text)
    for flags in ([], ["--explain"], ["--json", "--explain"]):
        result = run_cli("validate", "--twin", recipe.origin.path, *flags)
        assert "owned" in result.stdout
        assert not steers(result.stdout) and not steers(result.stderr)


def said_by(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["dorakit", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        app.main()
    return caught.value.code, capsys.readouterr()


def test_names_of_tensors_in_a_model(tmp_path, monkeypatch, capsys):
    """A note and an error. Planted bug caught: a name out of a downloaded file printed as it is."""
    base = load_base("tiny:llama", dtype="float32")
    base.model.save_pretrained(tmp_path / "model")
    base.tokenizer.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "model.\x1b]0;owned\x07": torch.ones(1)}, file, metadata={"format": "pt"})
    shown = run_cli("generate", tmp_path / "model", "-p", "x", "--raw", "--max-new-tokens", 1)
    assert "1 tensors in the files are not part of the model" in shown.stderr and "owned" in shown.stderr
    assert not steers(shown.stderr)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "tiny:llama"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    prefix = "base_model.model.model.\x1b[2Jowned"
    parts = {f"{prefix}.lora_A.weight": torch.ones(2, 4), f"{prefix}.lora_B.weight": torch.ones(4, 2)}
    save_file(parts, adapter / "adapter_model.safetensors")
    capsys.readouterr()  # transformers' bars, of what is saved above
    code, said = said_by(monkeypatch, capsys, "generate", adapter, "-p", "x")
    assert code == 2 and "owned" in said.err
    assert not steers(said.err)


# What a person may copy into a shell, up to a path.
_COMMAND = re.compile(r"(dorakit [a-z]+( -?-[a-z-]+)*|\b(rm -r|mv)) $")


def unquoted(source: str) -> list[str]:
    """Values that an f-string puts behind a command without `typed`."""
    tree, found = ast.parse(source), []
    quoted = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("typed(")
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for before, value in itertools.pairwise(parts):
            if (
                isinstance(before, ast.Constant)
                and isinstance(value, ast.FormattedValue)
                and _COMMAND.search(before.value)
            ):
                text = ast.unparse(value.value)
                is_fixed = text in quoted or text.startswith(("typed(", "'")) or text.isupper()
                found += [] if is_fixed else [text]
    return found


def test_advice_quotes_its_paths():
    """A path may hold a blank, or a command. Planted bug caught: `dorakit merge {run.path}`."""
    files = sorted(Path(dorakit.__file__).parent.rglob("*.py"))
    odd = {file.name: names for file in files if (names := unquoted(file.read_text(encoding="utf-8")))}
    assert odd == {}
    assert unquoted('f"  dorakit train --resume {run.path}"') == ["run.path"] and not unquoted('f"rm -r {typed(x)}"')


def test_advice_about_a_run_with_a_strange_name(tmp_path):
    run = made_run(tmp_path / "x; touch PWNED #")
    with pytest.raises(RunError) as caught:
        find_target(f"{run}/merged")
    assert f"dorakit merge {shlex.quote(str(run))}`" in str(caught.value)
