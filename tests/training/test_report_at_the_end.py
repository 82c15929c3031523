"""`dorakit train` ends with the page about its run."""

import json

import pytest
from tiny_runs import tiny_recipe
from typer.testing import CliRunner

from dorakit import Run
from dorakit.cli.app import app
from dorakit.report import page

RUNNER = CliRunner()


def test_a_training_ends_with_its_page(tmp_path):
    """Planted bugs caught: no page; one of the run as it was before its end; a page that nobody is told of."""
    recipe = tiny_recipe(tmp_path, "dora")
    result = RUNNER.invoke(app, ["train", recipe.origin.path], catch_exceptions=False)
    run = Run.open(tmp_path / "run-dora")
    assert "Finished after 3 steps" in run.report.read_text(encoding="utf-8")
    last = [line.strip() for line in result.stderr.splitlines()[-3:]]
    assert last == [f"report: {run.report}", f"next:  dorakit eval {run.path}", f"dorakit merge {run.path}"]

    asked = ["train", recipe.origin.path, "--json", "--quiet"]
    told = json.loads(RUNNER.invoke(app, asked, catch_exceptions=False).stdout)
    assert told["report"] == f"{told['run']}/report.html" and told["run"].endswith("run-dora-2")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_page_that_cannot_be_written_fails_no_training(tmp_path, monkeypatch, as_json):
    """Planted bugs caught: exit code 1 after hours of training; a path told at which there is nothing."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "write_whole", full)
    recipe = tiny_recipe(tmp_path, "lora")
    arguments = ["train", recipe.origin.path, *(["--json"] if as_json else [])]
    result = RUNNER.invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0 and Run.open(tmp_path / "run-lora").state == "finished"
    assert "no report: [Errno 28] No space left on device" in result.stderr and "report: /" not in result.stderr
    if as_json:
        assert json.loads(result.stdout)["report"] is None
