import json
import os

import pytest
from made_runs import evaluation, made_run, write
from typer.testing import CliRunner

from dorakit.cli.app import app
from dorakit.errors import UsageError
from dorakit.lock import hold


def listed(*arguments):
    outcome = CliRunner().invoke(app, ["runs", *map(str, arguments), "--json"])
    assert outcome.exit_code == 0, outcome.output
    return json.loads(outcome.stdout)["runs"]


def test_runs_are_listed_the_latest_first(tmp_path):
    """Planted bugs caught: the base's accuracy taken for the run's; the lowest for the best; a symbolic link listed as one more
    run.
    """
    done = made_run(tmp_path / "done", mode="dora", best_validation_loss=0.5)
    write(done / "eval" / "base.json", evaluation("base", correct=9, answered=10))
    for name, correct in (("a-first-try", 5), ("adapter", 7), ("with-beams", 6)):
        write(done / "eval" / f"{name}.json", evaluation("adapter", correct=correct, answered=10))
    later = made_run(tmp_path / "comparison" / "lora-r8", state="training")
    os.utime(done / "run.json", (1, 1))
    (tmp_path / "latest").symlink_to(done)
    first, second = listed(tmp_path)
    assert first["path"] == str(later) and first["state"] == "stopped" and first["accuracy"] is None
    assert second["path"] == str(done) and (second["mode"], second["rank"]) == ("dora", 8)
    assert (second["accuracy"], second["measured"], second["validation_loss"]) == (0.7, "adapter", 0.5)
    with hold(later / "run.lock", of=later):
        assert listed(tmp_path)[0]["state"] == "training"
    shown = CliRunner().invoke(app, ["runs", str(tmp_path)]).stdout
    assert "70.0%" in shown and "dora r=8" in shown and "stopped" in shown


def stopped(place, *, logged=(), **facts):
    """A run without the facts of an end, as a killed one leaves it."""
    path = made_run(place, state="training", **facts)
    known = json.loads((path / "run.json").read_text())
    write(path / "run.json", {key: value for key, value in known.items() if key != "steps"})
    (path / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in logged) + '{"step": 99, "train/loss": 9.'
    )
    return path


def test_a_killed_run_shows_how_far_it_came(tmp_path):
    """Planted bugs caught: neither step nor loss; a line cut short read as the last; the last validation for the lowest; a
    checkpoint after the last logged step overlooked.
    """
    logged = [
        {"step": 10, "train/loss": 2.5}, {"step": 10, "validation/loss": 1.5}, {"step": 20, "train/loss": 2.25},
        {"step": 20, "validation/loss": 1.75}, {"step": 20, "samples": []},
    ]  # fmt: skip
    killed = stopped(tmp_path / "killed", logged=logged)
    (row,) = listed(tmp_path)
    assert (row["state"], row["steps"], row["loss"], row["validation_loss"]) == ("stopped", 20, 2.25, 1.5)
    (killed / "checkpoints" / "step-000000025").mkdir(parents=True)
    (killed / "checkpoints" / "aside-step-000000040").mkdir()
    assert listed(tmp_path)[0]["steps"] == 25
    shown = CliRunner().invoke(app, ["runs", str(tmp_path)]).stdout
    assert "2.2500" in shown and "1.5000" in shown and " 25 " in shown
    stopped(tmp_path / "at once")
    at_once = next(row for row in listed(tmp_path) if row["path"].endswith("at once"))
    assert (at_once["steps"], at_once["loss"], at_once["validation_loss"]) == (None, None, None)


@pytest.mark.parametrize("width", [9, 40, 80, 200])
def test_no_path_and_no_word_is_broken(tmp_path, monkeypatch, width):
    """Planted bugs caught: a path folded in the middle; a state of two halves; a figure that is cut to fit."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(tmp_path)
    names = ["short", "llama3-commonsense-qdora-rank-32-third-try", "comparison/qdora-r16-lr0.0003-seed42"]
    for name in names:
        run = made_run(tmp_path / "runs" / name, mode="qdora", rank=16, best_validation_loss=0.5)
        write(run / "eval" / "adapter.json", evaluation("adapter", correct=7, answered=10))
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "run.json").write_text("{")
    lines = CliRunner().invoke(app, ["runs"]).stdout.splitlines()
    words = " ".join(lines).replace(",", "").split()
    for name in names:
        assert f"runs/{name}" in words
    for word in ("finished", "qdora", "r=16", "0.5000", "70.0%", "damaged"):
        assert words.count(word) == (1 if word == "damaged" else 3), word
    assert any(line.startswith("runs/bad: ") and "not valid JSON" in line for line in lines)
    if width >= 80:
        whole = [line for line in lines if not line.startswith("runs/bad: ")]
        assert max(map(len, whole)) <= width
    is_table = any("state" in line and "validation" in line for line in lines)
    assert is_table == (width == 200)


def test_the_time_is_left_out_first(tmp_path, monkeypatch):
    """Planted bug caught: lines for each run where a table fits but for its least column."""
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.chdir(tmp_path)
    made_run(tmp_path / "runs" / "my", mode="qdora", rank=16, best_validation_loss=0.5)
    shown = CliRunner().invoke(app, ["runs"]).stdout
    assert "changed" in shown and "accuracy" not in shown, "a column without a value takes no room"
    made_run(tmp_path / "runs" / "my-recipe-of-today-2", mode="qdora", rank=16, best_validation_loss=0.5)
    shown = CliRunner().invoke(app, ["runs"]).stdout
    assert "state" in shown and "changed" not in shown and "runs/my-recipe-of-today-2" in shown


def test_a_damaged_run_does_not_hide_the_others(tmp_path):
    """Planted bug caught: the first damaged run.json ends the listing."""
    made_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    states = {row["path"].rsplit("/", 1)[-1]: row["state"] for row in listed(tmp_path)}
    assert states["good"] == "finished" and states["bad"].startswith("damaged: ")
    outcome = CliRunner().invoke(app, ["runs", str(tmp_path / "absent")])
    assert isinstance(outcome.exception, UsageError) and "no such directory" in str(outcome.exception)


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
