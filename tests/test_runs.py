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
    """Planted bugs caught: the base's accuracy taken for the run's; a symbolic link listed as one more run."""
    done = made_run(tmp_path / "done", mode="dora", best_validation_loss=0.5)
    write(done / "eval" / "base.json", evaluation("base", correct=9, answered=10))
    write(done / "eval" / "adapter.json", evaluation("adapter", correct=7, answered=10))
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
