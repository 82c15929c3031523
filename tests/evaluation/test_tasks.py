"""Tasks measured end to end on tiny models: figures, files, and going on after an interruption."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace

import made_tasks
import pytest
from made_tasks import KINDS, LETTERS, SIGNS, task_row, write_letters, write_task
from tiny_runs import forget_digests
from typer.testing import CliRunner

from dorakit import evaluate
from dorakit.cli.app import app
from dorakit.errors import GateError, RunError, UsageError
from dorakit.evaluation.likelihood import log_likelihoods
from dorakit.evaluation.tasks import answering, table
from dorakit.model.generate import generate_ids
from dorakit.target import open_target


@pytest.fixture
def letters(monkeypatch, tmp_path):
    """A new task is one entry; its data."""
    monkeypatch.setitem(table.TASKS, "letters", LETTERS)
    write_letters(tmp_path, SIGNS[:11])
    return tmp_path


def predictions(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def without_times(lines):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_beams_are_judged_and_counted(letters, tmp_path):
    """Planted bugs caught: greedy answers; predictions in the order of lengths; a chat template; unparsed not counted."""
    asked = {"task": "letters", "data": str(letters), "output": tmp_path / "r.json", "quiet": True}
    evaluate("tiny:llama", **asked)
    said = [p["parsed"] or "Z" for p in predictions(tmp_path / "r.predictions.jsonl")]
    right = [sign if number % 3 else "0" for number, sign in enumerate(said)]
    write_letters(letters, right)
    result = evaluate("tiny:llama", **asked)
    opened = open_target("tiny:llama")
    (part,) = result["tasks"]
    kept = predictions(tmp_path / "r.predictions.jsonl")
    assert [p["row"] for p in kept] == [f"{letters}/letters.test.json[{i}]" for i in range(11)]
    correct = unparsed = 0
    for number, prediction in enumerate(kept):
        assert prediction["prompt"].endswith(f" {number * number} :")
        (new,) = generate_ids(
            opened.model,
            opened.tokenizer,
            [opened.tokenizer(prediction["prompt"], add_special_tokens=False).input_ids],
            max_new_tokens=6,
            batch_size=1,
            num_beams=4,
        )
        assert prediction["generated"] == opened.tokenizer.decode(new, skip_special_tokens=True)
        hits = re.findall(f"[{SIGNS}]", prediction["generated"])
        correct += hits[:1] == [right[number]]
        unparsed += not hits
    assert unparsed and correct
    assert (part["correct"], part["unparsed"], part["rows"]) == (correct, unparsed, 11)
    assert part["accuracy"] == result["accuracy"] == correct / 11
    assert part["unparsed_rate"] == unparsed / 11
    share = correct / 11
    assert part["accuracy_standard_error"] == pytest.approx(math.sqrt(share * (1 - share) / 11))
    assert part["settings"]["num_beams"] == 4 and part["settings"]["stop_ids"] == [
        opened.tokenizer.convert_tokens_to_ids("<|im_end|>")
    ]
    assert json.loads((tmp_path / "r.json").read_text()) == result


@pytest.mark.parametrize("name", ["ARC-Easy", "hellaswag"])
def test_logprob_takes_the_likeliest_response(tmp_path, name):
    """Planted bugs caught: the bare option scored; an option that the row does not offer; the rows' order lost."""
    write_task(tmp_path, name, 7)
    result = evaluate(
        "tiny:llama", task=name, scoring="logprob", data=str(tmp_path), output=tmp_path / "r.json", quiet=True
    )
    opened = open_target("tiny:llama")
    for number, prediction in enumerate(predictions(tmp_path / "r.predictions.jsonl")):
        options = [f"{KINDS[name][0]}{i}" for i in (1, 2, 3, 4)]
        ids = [opened.tokenizer(f"the correct answer is {o}", add_special_tokens=False).input_ids for o in options]
        prompt = opened.tokenizer(prediction["prompt"], add_special_tokens=False).input_ids
        (scores,) = log_likelihoods(opened.model, [prompt], [ids], batch_size=1, quiet=True)
        assert prediction["log_likelihoods"] == pytest.approx(dict(zip(options, scores, strict=True)), rel=1e-4)
        assert prediction["parsed"] == max(zip(scores, options, strict=True))[1]
        assert prediction["correct"] == (prediction["parsed"] == task_row(name, number)["answer"])
    assert result["tasks"][0]["unparsed"] == 0


def test_the_mean_over_tasks_is_unweighted(tmp_path):
    """Planted bugs caught: a mean over rows; a standard error that does not shrink with the number of tasks."""
    write_task(tmp_path, "ARC-Easy", 8)
    write_task(tmp_path, "boolq", 3)
    asked = {"scoring": "logprob", "data": str(tmp_path), "quiet": True}
    result = evaluate("tiny:llama", task="boolq,ARC-Easy", output=tmp_path / "r.json", **asked)
    boolq, arc = result["tasks"]
    assert (boolq["task"], arc["task"]) == ("boolq", "ARC-Easy")
    assert boolq["accuracy"] != arc["accuracy"]
    assert result["accuracy"] == pytest.approx((boolq["accuracy"] + arc["accuracy"]) / 2)
    errors = [part["accuracy_standard_error"] for part in (boolq, arc)]
    assert result["accuracy_standard_error"] == pytest.approx(math.sqrt(errors[0] ** 2 + errors[1] ** 2) / 2)
    assert result["rows"] == 11
    for name, part in (("boolq", boolq), ("ARC-Easy", arc)):
        assert part["predictions"] == str(tmp_path / f"r.{name}.predictions.jsonl")
        alone = evaluate("tiny:llama", task=name, **asked)
        assert alone["accuracy"] == part["accuracy"] and alone["output"] is None


_KILLED = """
import os, sys
from dorakit import evaluate
from dorakit.evaluation.tasks import answering, table
data, output, calls = sys.argv[1], sys.argv[2], int(sys.argv[3])
whole = answering.generate_ids
def generate_ids(*arguments, **options):
    global calls
    calls -= 1
    if calls < 0:
        os._exit(9)  # as a kill does: nothing is closed or flushed
    return whole(*arguments, **options)
answering.generate_ids = generate_ids
sys.path.insert(0, sys.argv[4])
from made_tasks import LETTERS
table.TASKS["letters"] = LETTERS
evaluate("tiny:llama", task="letters", data=data, output=output, batch_size=2, quiet=True)
"""


def test_a_killed_evaluation_goes_on_where_it_stopped(letters, tmp_path, monkeypatch, capsys):
    """Planted bugs caught: answers that wait in a buffer; rows answered twice, or not at all; half a line taken for an
    answer; a result where there is none yet."""
    whole = evaluate("tiny:llama", task="letters", data=str(letters), output=tmp_path / "whole.json", batch_size=2)
    killed = tmp_path / "out" / "r.json"
    unfinished = killed.with_name("r.unfinished.jsonl")
    for calls, lines in (("2", 4), ("1", 6)):
        arguments = [str(letters), str(killed), calls, os.path.dirname(made_tasks.__file__)]
        done = subprocess.run([sys.executable, "-c", _KILLED, *arguments], check=False)
        assert done.returncode == 9
        assert len(predictions(unfinished)) == lines
        with open(unfinished, "a", encoding="utf-8") as file:
            file.write(json.dumps(predictions(unfinished)[0])[:-9])
    assert not killed.exists() and not killed.with_name("r.predictions.jsonl").exists()
    answered = []
    generate = answering.generate_ids
    monkeypatch.setattr(
        answering, "generate_ids", lambda *given, **options: answered.extend(given[2]) or generate(*given, **options)
    )
    capsys.readouterr()
    result = evaluate("tiny:llama", task="letters", data=str(letters), output=killed, batch_size=2)
    assert "letters: 6 of 11 answers are there already" in capsys.readouterr().err
    assert len(answered) == 5
    assert result["accuracy"] == whole["accuracy"] and result["tasks"][0]["answered_before"] == 6
    kept = predictions(killed.with_name("r.predictions.jsonl"))
    assert without_times(kept) == without_times(predictions(tmp_path / "whole.predictions.jsonl"))
    assert not unfinished.exists()
    answered.clear()
    again = evaluate("tiny:llama", task="letters", data=str(letters), output=killed, batch_size=2)
    assert not answered
    assert again["tasks"][0]["answered_before"] == 11 and again["accuracy"] == whole["accuracy"]


def test_only_what_is_the_same_is_taken_from_before(run_of, letters, capsys):
    """Planted bugs caught: the weights, the settings or the row left out of the key."""
    run = run_of("dora")

    def reused(limit=None, **changes):
        result = evaluate(run, **{"task": "letters", "data": str(letters), "limit": limit, **changes})
        return result["tasks"][0]["answered_before"]

    assert reused() == 0
    file = run.eval / "adapter-letters-beam.predictions.jsonl"
    first = file.read_bytes()
    assert reused() == 11
    rows = json.loads((letters / "letters.test.json").read_text())
    rows[3]["instruction"] += "?"
    rows[5]["answer"] = "Z"
    (letters / "letters.test.json").write_text(json.dumps(rows))
    assert reused() == 9
    config = forget_digests(run.adapter) / "adapter_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "lora_alpha": content["lora_alpha"] * 2}))
    capsys.readouterr()
    assert reused() == 0
    assert "letters: the answers beside" in capsys.readouterr().err
    config.write_text(json.dumps(content))
    assert reused(output=str(run.eval / "adapter-letters-beam.json")) == 0  # the other alpha's have taken their place
    file.write_bytes(first)
    assert reused() == 9
    table.TASKS["letters"] = replace(LETTERS, max_new_tokens=5)
    assert reused() == 0


def test_results_of_a_run_lie_in_it_and_replace_no_longer_ones(run_of, tmp_path):
    """Planted bugs caught: --base that measures the adapter or takes its answers; a sample that replaces all rows."""
    run = run_of("dora")
    asked = {"task": "ARC-Easy", "scoring": "logprob", "quiet": True}
    for number in (1, 2):
        write_task(tmp_path / f"data{number}", "ARC-Easy", 6)
    with_adapter = evaluate(run, data=str(tmp_path / "data1"), **asked)
    without = evaluate(run, data=str(tmp_path / "data1"), base=True, **asked)
    evaluate(run, data=str(tmp_path / "data1"), limit=2, **asked)
    evaluate(run, data=str(tmp_path / "data2"), **asked)
    names = ["adapter-ARC-Easy-logprob", "adapter-ARC-Easy-logprob-2", "adapter-ARC-Easy-logprob-first2"]
    assert sorted(file.stem for file in run.eval.glob("*.json")) == [*names, "base-ARC-Easy-logprob"]
    assert with_adapter["output"] == str(run.eval / f"{names[0]}.json")
    scores = [predictions(run.eval / f"{n}.predictions.jsonl") for n in (names[0], "base-ARC-Easy-logprob")]
    assert all(a["log_likelihoods"] != b["log_likelihoods"] for a, b in zip(*scores, strict=True))
    assert without["tasks"][0]["answered_before"] == 0


def test_two_evaluations_do_not_write_one_file(letters, tmp_path, monkeypatch):
    """Planted bug caught: two writers whose answers mix."""
    asked = {"task": "letters", "data": str(letters), "output": tmp_path / "r.json", "quiet": True}
    generate = answering.generate_ids

    def second(*given, **options):
        monkeypatch.setattr(answering, "generate_ids", generate)
        with pytest.raises(RunError, match=r"r.unfinished.jsonl is being written by another evaluation"):
            evaluate("tiny:llama", **asked)
        return generate(*given, **options)

    monkeypatch.setattr(answering, "generate_ids", second)
    assert evaluate("tiny:llama", **asked)["rows"] == 11


def test_the_command_shows_a_row_for_each_task_and_gates_the_mean(tmp_path):
    write_task(tmp_path, "ARC-Easy", 4)
    write_task(tmp_path, "boolq", 3)
    command = ["eval", "tiny:llama", "--task", "boolq,ARC-Easy", "--scoring", "logprob", "--data", str(tmp_path)]
    result = CliRunner().invoke(app, [*command, "--limit", "2"])
    assert result.exit_code == 0
    assert re.search(r"boolq +logprob +2 +[\d.]+% ± [\d.]+% +0.0% +[\d.]+", result.stdout)
    assert re.search(r"mean +4 +[\d.]+% ± [\d.]+% +0.0%", result.stdout)
    assert "tiny:llama · model · first 2 rows" in result.stdout
    assert "the answers are not kept; with --output" in result.stderr and "likelihoods: 2/2" in result.stderr
    result = CliRunner().invoke(app, [*command, "--json", "--quiet", "--min", "accuracy=1.01"])
    assert isinstance(result.exception, GateError)
    content = result.exception.result
    assert [part["rows"] for part in content["tasks"]] == [3, 4] and result.stderr == ""
    assert str(result.exception) == f"accuracy is {content['accuracy']:.4g}, --min asked for 1.01"
    result = CliRunner().invoke(app, [*command, "--quiet", "--max", "loss=1"])
    assert isinstance(result.exception, UsageError) and "not measured; tasks have none" in str(result.exception)


def test_what_does_not_go_together(run_of):
    run = run_of("lora")
    for more, said in (
        (["--scoring", "logprob"], "--scoring logprob goes with --task"),
        (["--task", "boolq", "--set", "evaluation.limit=3"], "--set evaluation.limit=3: --task says itself"),
        (["--task", "lm-eval:arc_easy", "--nproc", "2"], "--task lm-eval:arc_easy: measured by one process"),
    ):
        result = CliRunner().invoke(app, ["eval", str(run.path), *more])
        assert isinstance(result.exception, UsageError) and said in str(result.exception)
