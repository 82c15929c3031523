"""Trackers: what their libraries wrote is read back, and what one of them raises is survived."""

import json
import os
import socket
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from dying_runs import digest, make_site
from tracker_files import READERS

from dorakit import train
from dorakit.errors import MachineError
from dorakit.recipe.schema import LoggingSection
from dorakit.training import trackers

ALL = f"logging.to=[{', '.join(READERS)}]"
STEPS = 7
pytestmark = pytest.mark.timeout(900)  # the libraries alone take a while to load, three times over


def expected(run: Path) -> dict[str, dict[int, float]]:
    """By the common names, what metrics.jsonl has."""
    figures: dict[str, dict[int, float]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        names = {
            "train/loss": entry.get("train/loss"),
            "train/lr": entry.get("train/learning_rate"),
            "train/grad_norm": entry.get("train/grad_norm"),
            "train/tokens": entry.get("train/tokens"),
            "train/tokens_per_s": entry.get("train/tokens_per_s"),
            "train/mem_gib": "train/memory_bytes" in entry and entry["train/memory_bytes"] / 1024**3,
            "eval/loss": entry.get("validation/loss"),
        }
        for name, value in names.items():
            if value:
                figures.setdefault(name, {})[entry["step"]] = value
    return figures


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A run that all trackers were told of, out of memory in step 5, one step after its checkpoint, and resumed.

    Processes of their own, as trackers need them; what would go out to the network goes to `listener` instead.
    """
    site = make_site(tmp_path_factory.mktemp("told"), steps=STEPS)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        def before():
            for name in list(os.environ):
                if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_")) or name in ("CI", "PYTEST_CURRENT_TEST"):
                    del os.environ[name]
            for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
                os.environ[name] = f"http://127.0.0.1:{listener.getsockname()[1]}"

        settings = ("--set", ALL, "--set", "training.eval_every=5", "--json")
        broken = site.train(*settings, failpoint="step:5=memory", before=before)
        assert broken.code == 4, broken.err
        ended = {name: READERS[name](site.run).ended for name in ("mlflow", "wandb")}
        resumed = site.resume("--json", before=before)
        assert resumed.code == 0, resumed.err
        try:
            asked = listener.accept()[1]
        except BlockingIOError:
            asked = None
    return site, ended, resumed, asked


@pytest.mark.parametrize("tracker", READERS)
def test_a_tracker_holds_what_metrics_do(told, tracker):
    """Each figure of each step once, under the common names, though step 5 was done twice.

    Planted bugs caught: steps told again after a resume; another run begun by it; bytes for GiB; the names of metrics.jsonl.
    """
    site, _, _, _ = told
    wanted, written = expected(site.run), READERS[tracker](site.run)
    assert set(wanted) == set(written.figures) and len(wanted["train/loss"]) == STEPS
    for name, values in written.figures.items():
        assert [step for step, _ in values] == sorted(wanted[name]), name
        for step, value in values:
            if step != 5 or name not in ("train/tokens_per_s", "train/mem_gib"):  # of the process that told it
                assert value == pytest.approx(wanted[name][step], rel=1e-6), (name, step)
    assert len(set(written.runs)) == 1
    assert str(written.settings["adapter.rank"]) == "4" and str(written.settings["adapter.mode"]) == "qdora"


def test_a_tracker_knows_how_it_ended(told):
    """Planted bug caught: a run that broke off stands there as finished, or is never let go of."""
    site, ended, _, _ = told
    assert (ended["mlflow"], READERS["mlflow"](site.run).ended) == ("FAILED", "FINISHED")
    assert (ended["wandb"], READERS["wandb"](site.run).ended) == ("1", "0")


def test_nothing_is_sent(told):
    """Planted bugs caught: MLflow's own telemetry left on; what a library prints mixed into --json."""
    site, _, resumed, asked = told
    assert asked is None
    assert json.loads(resumed.out)["state"] == "finished"
    assert "goes on without" not in "".join(site.facts()["notes"])


def failing(place: str):
    """A tracker that raises where `place` says."""

    class Failing:
        needs = ()
        id, has_told = "x", False

        def __init__(self, tracked):
            print("chatter")
            self.fail("start")

        def log(self, step, figures):
            self.fail("log")

        def finish(self, end):
            self.fail("finish")

        def fail(self, here):
            if here == place:
                raise RuntimeError("no \x1b[2J answer for hf_abcdefghijklmnopqrst\nmore")

    return Failing


@pytest.mark.parametrize("place", ["start", "log", "finish"])
def test_a_tracker_that_fails_changes_nothing(make_recipe, monkeypatch, capsys, tmp_path, place):
    """Planted bugs caught: the run ends with it; a line for every step; its token and its escape sequences shown."""
    plain = train(make_recipe(f"output_dir={tmp_path}/plain"), quiet=True)
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", failing(place))
    run = train(make_recipe("logging.to=[mlflow, tensorboard]"))
    assert run.state == "finished" and digest(run.path) == digest(plain.path)
    (note,) = [line for line in run.read("run.json")["notes"] if "mlflow" in line]
    what = {"start": "did not start", "log": "failed at step 1", "finish": "did not finish"}[place]
    said = rf"mlflow {what}, and the run goes on without it: RuntimeError: no \x1b[2J answer for [hidden]"
    assert note == said
    output = capsys.readouterr()
    assert output.err.count(note) == 1 and output.out == ""
    written = READERS["tensorboard"](run.path).figures["train/loss"]
    assert [step for step, _ in written] == list(expected(run.path)["train/loss"])


@pytest.mark.parametrize("tracker", trackers.TRACKERS)
def test_a_tracker_that_is_missing_leaves_no_run(make_recipe, monkeypatch, tmp_path, tracker):
    """Planted bug caught: found out when the run was made, which then was an unfinished one."""
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MachineError, match=f"{tracker} is not installed\n.*pip install 'dorakit\\[{tracker}\\]'"
    ) as caught:
        train(make_recipe(f"logging.to=[{tracker}]"), quiet=True)
    assert caught.value.exit_code == 3 and not (tmp_path / "runs").exists()


def test_a_recipe_can_name_each_and_an_extra_brings_it():
    """Planted bug caught: a tracker in the table that no recipe can name, or that no extra installs."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    named = get_args(get_args(LoggingSection.model_fields["to"].annotation)[0])
    assert set(named) == set(trackers.TRACKERS) == set(READERS) <= set(project["optional-dependencies"])
