"""Tasks of lm-evaluation-harness: through the harness, on what a target names."""

import json
import sys

import pytest
from made_harness_task import ROWS, write_harness_task
from typer.testing import CliRunner

from dorakit import evaluate
from dorakit.cli.app import app
from dorakit.errors import DataError, MachineError, ResourceError, UsageError
from dorakit.evaluation.likelihood import log_likelihoods
from dorakit.target import open_target


def accuracy_of(target):
    opened = open_target(str(target))

    def ids(text):
        return opened.tokenizer(text, add_special_tokens=False).input_ids

    prompts = [ids(f"Question: {row['question']}\nAnswer:") for row in ROWS]
    candidates = [[ids(f" {option}") for option in row["options"]] for row in ROWS]
    scores = log_likelihoods(opened.model, prompts, candidates, batch_size=4, quiet=True)
    hits = [max(range(len(s)), key=s.__getitem__) == row["label"] for s, row in zip(scores, ROWS, strict=True)]
    return sum(hits) / len(ROWS)


@pytest.mark.parametrize("mode", ["dora", "qlora"])
def test_a_runs_adapter_is_measured_by_the_harness(run_of, tmp_path, capsys, mode):
    """Planted bugs caught: the base measured; a bar or a line on stdout; a limit that is not passed on."""
    run = run_of(mode)
    data = str(write_harness_task(tmp_path / "tasks"))
    result = evaluate(run, task="lm-eval:made_choice", data=data, quiet=True)
    assert capsys.readouterr() == ("", "")
    (part,) = result["tasks"]
    assert part["task"] == "lm-eval:made_choice" and part["rows"] == len(ROWS)
    assert part["accuracy"] == result["accuracy"] == accuracy_of(run.path)
    assert part["measures"]["acc,none"] == part["accuracy"]
    assert part["accuracy_standard_error"] == part["measures"]["acc_stderr,none"]
    assert result["output"] == str(run.eval / "adapter-lm-eval-made_choice.json")
    assert json.loads((run.eval / "adapter-lm-eval-made_choice.json").read_text()) == result
    shown = CliRunner().invoke(
        app, ["eval", str(run.path), "--task", "lm-eval:made_choice", "--data", data, "--limit", "2"]
    )
    assert shown.exit_code == 0, shown.output
    assert "lm-eval:made_choice   lm-eval      2" in shown.stdout


def test_several_tasks_and_one_unknown(tmp_path):
    write_harness_task(tmp_path / "tasks")
    write_harness_task(tmp_path / "tasks", "made_twice")
    asked = {"data": str(tmp_path / "tasks"), "quiet": True}
    result = evaluate("tiny:llama", task="lm-eval:made_choice,made_twice", **asked)
    assert [part["task"] for part in result["tasks"]] == ["lm-eval:made_choice", "lm-eval:made_twice"]
    assert result["accuracy"] == pytest.approx(accuracy_of("tiny:llama"))
    with pytest.raises(UsageError, match=r"'made_chioce': no such task\n  did you mean made_choice\? lm-eval: has \d+"):
        evaluate("tiny:llama", task="lm-eval:made_chioce", **asked)


def test_what_the_harness_cannot_do(tmp_path):
    """Planted bug caught: a stranger's task file that ends in a traceback."""
    tasks = write_harness_task(tmp_path / "tasks")
    with pytest.raises(UsageError, match="--scoring beam: tasks of lm-eval: say themselves"):
        evaluate("tiny:llama", task="lm-eval:made_choice", scoring="beam", data=str(tasks))
    with pytest.raises(DataError, match=r"--data .*/nowhere: no such directory; with lm-eval: it is one of task files"):
        evaluate("tiny:llama", task="lm-eval:made_choice", data=str(tmp_path / "nowhere"))
    file = tasks / "made_choice.yaml"
    file.write_text(file.read_text().replace("{{question}}", "{{qestion}}"))
    with pytest.raises(DataError, match=r"made_choice: lm-evaluation-harness stopped: UndefinedError: 'qestion'"):
        evaluate("tiny:llama", task="lm-eval:made_choice", data=str(tasks), quiet=True)


def test_a_hub_that_cannot_be_reached_is_no_fault_of_the_task(tmp_path):
    tasks = write_harness_task(tmp_path / "tasks")
    file = tasks / "made_choice.yaml"
    file.write_text(file.read_text().replace("dataset_path: json", "dataset_path: someone/rows"))
    with pytest.raises(ResourceError, match=r"made_choice: lm-evaluation-harness stopped: ConnectionError: "):
        evaluate("tiny:llama", task="lm-eval:made_choice", data=str(tasks), quiet=True)


def test_without_the_extra_the_line_that_installs_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(MachineError, match=r"is not installed\n  pip install 'dorakit\[eval\]'") as caught:
        evaluate("tiny:llama", task="lm-eval:made_choice", data=str(tmp_path))
    assert caught.value.exit_code == 3
