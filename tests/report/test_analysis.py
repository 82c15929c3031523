"""Correlations with their intervals, and the command that shows them."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny_runs import tiny_run
from typer.testing import CliRunner

from dorakit.cli.app import app
from dorakit.errors import RunError
from dorakit.report.analysis import analyze, correlation
from dorakit.report.decomposition import MatrixChange


def change(module, delta_d, delta_m, *, step=1, moved=True):
    return MatrixChange(f"layers.{module}.q_proj", module, "q_proj", step, float(delta_m), float(delta_d), moved)


def drawn(rng, n, rho):
    """Changes whose true correlation is rho, of the sizes that real ones have."""
    x = rng.normal(size=n)
    y = rho * x + np.sqrt(1 - rho**2) * rng.normal(size=n)
    return [change(i, 1e-4 + 1e-6 * x[i], 2.0 + 0.1 * y[i]) for i in range(n)]


def test_slope_and_r_are_numpys():
    """Planted bugs caught: the line of delta-D over delta-M; a point that did not move, which is (0, 0), pulling r up."""
    points = drawn(np.random.default_rng(3), 12, -0.5)
    x, y = [p.delta_d for p in points], [p.delta_m for p in points]
    found = correlation([*points, change(99, 0, 0, moved=False)])
    slope, intercept = np.polyfit(x, y, 1)
    assert (found.n, found.modules) == (12, 12)
    assert found.r == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-9)
    assert (found.slope, found.intercept) == (pytest.approx(slope, rel=1e-6), pytest.approx(intercept, rel=1e-6))
    assert (found.mean_delta_d, found.mean_delta_m) == (pytest.approx(np.mean(x)), pytest.approx(np.mean(y)))


@pytest.mark.parametrize("rho", [0.0, 0.6, -0.9])
def test_the_interval_covers_a_known_correlation(rho):
    """Planted bugs caught: the 50 % interval, which covers half of them; delta-D and delta-M drawn apart, which is an interval
    around 0; points scaled to nothing, which lose their digits.

    The percentile bootstrap of 40 points covers about 92 of 100, not 95.
    """
    rng = np.random.default_rng(7)
    found = [correlation(drawn(rng, 40, rho)) for _ in range(200)]
    covered = np.mean([c.r_low <= rho <= c.r_high for c in found])
    assert 0.87 < covered < 0.98
    assert 0.1 < np.mean([c.r_high - c.r_low for c in found]) < 0.75


def test_the_steps_of_a_matrix_are_no_points_of_their_own():
    """Planted bug caught: points drawn instead of matrices, which halves the interval of a run with four checkpoints."""
    points = drawn(np.random.default_rng(5), 20, 0.3)
    once = correlation(points)
    four = correlation([change(p.layer, p.delta_d, p.delta_m, step=step) for p in points for step in (1, 2, 3, 4)])
    assert (four.n, four.modules) == (80, 20)
    assert four.r == pytest.approx(once.r)
    assert (four.r_low, four.r_high) == (pytest.approx(once.r_low), pytest.approx(once.r_high))


def test_the_interval_is_the_same_each_time():
    """Planted bug caught: draws from a generator without a seed."""
    points = drawn(np.random.default_rng(1), 9, 0.5)
    assert correlation(points) == correlation(points)
    assert correlation(points).r_low != correlation(points, seed=1).r_low


def test_too_few_points_say_so():
    """Planted bugs caught: r = 1 for any two points; an interval of two matrices; a division by a spread of zero."""
    points = drawn(np.random.default_rng(2), 6, 0.5)
    assert correlation([]).n == 0 and correlation([]).mean_delta_m is None
    assert correlation(points[:2]).r is None and correlation(points[:2]).mean_delta_m is not None
    assert correlation(points[:4]).r is not None and correlation(points[:4]).r_low is None
    assert correlation(points).r_low is not None
    assert correlation([change(i, 1e-4, 0.1 * i) for i in range(8)]).r is None


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A DoRA run with three checkpoints."""
    return tiny_run(tmp_path_factory.mktemp("kept"), "dora", ("training.save_every=1", "training.keep_checkpoints=5"))


def test_analyze_groups_by_kind_layer_and_step(kept):
    """Planted bugs caught: steps sorted as texts; a group that takes every matrix; a file that is not what is returned."""
    result = analyze(kept.path)
    assert result["steps"] == [1, 2, 3] and list(result["checkpoints"]) == ["1", "2", "3"]
    assert set(result["kinds"]) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert list(result["layers"]) == ["0", "1"]
    assert {values["n"] for values in result["kinds"].values()} == {2 * 3}
    assert {values["n"] for values in result["layers"].values()} == {7 * 3}
    assert {values["n"] for values in result["checkpoints"].values()} == {14}
    assert result["kinds"]["q_proj"]["steps"]["2"]["n"] == 2
    q = [m for m in result["matrices"] if m["kind"] == "q_proj"]
    assert result["kinds"]["q_proj"]["mean_delta_d"] == pytest.approx(np.mean([m["delta_d"] for m in q]))
    assert result["all"]["n"] == len(result["matrices"]) == 42 and result["all"]["r_low"] < result["all"]["r"]
    written = json.loads((kept.path / "analysis.json").read_text(encoding="utf-8"))
    assert written == {key: value for key, value in result.items() if key != "output"}


def test_what_never_moved_is_named(run_of):
    """Planted bugs caught: a matrix that stood still at one step of several named; one that never moved left out."""
    run = run_of("lora")
    shutil.rmtree(run.checkpoints)
    file = run.adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"].zero_()
    save_file(tensors, file)
    shown = CliRunner().invoke(app, ["analyze", str(run.path)], catch_exceptions=False).output
    assert "never moved, 1 of 14: model.layers.0.mlp.up_proj\n" in shown
    assert json.loads(run.analysis.read_text())["never_moved"] == ["model.layers.0.mlp.up_proj"]


def test_the_command_shows_each_run(kept, run_of):
    """Planted bugs caught: the last run alone shown; [brackets] of an interval taken for markup and dropped."""
    arguments = ["analyze", str(kept.path), str(run_of("full").path)]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert f"{kept.name} · dora on tiny:llama · after step 1, 2, 3" in shown
    assert "run · full on tiny:llama · after step 3" in shown
    assert shown.count("all 14 matrices moved") == 2
    below = next(after for line, after in pairwise(shown.splitlines()) if line.split()[:2] == ["all", "42"])
    for column in ("n: ", "delta-M: ", "delta-D: ", "slope and r: ", "95 %", "r at step: "):
        assert column in below
    line = next(line for line in shown.splitlines() if line.split()[:1] == ["all"])
    assert line.split()[1] == "42" and line.count("[") == 2 and "%" not in line
    assert "[too few]" in next(line for line in shown.splitlines() if line.split()[:1] == ["q_proj"])


def test_json_is_one_object(kept, run_of):
    """Planted bug caught: one object for each run, or the table among it."""
    arguments = ["analyze", str(kept.path), str(run_of("lora").path), "--json"]
    out = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert [run["mode"] for run in json.loads(out)["runs"]] == ["dora", "lora"]
    assert [run["report"] for run in json.loads(out)["runs"]] == [
        run["output"].replace("analysis.json", "report.html") for run in json.loads(out)["runs"]
    ]


def test_the_page_of_a_run_shows_its_analysis(run_of):
    """Planted bug caught: the page is written before analysis.json is, or of the last run alone."""
    run = run_of("dora")
    run.report.write_text("of before")
    result = CliRunner().invoke(app, ["analyze", str(run.path)], catch_exceptions=False)
    assert "Magnitude and direction" in run.report.read_text(encoding="utf-8")
    assert result.output.splitlines()[-3:-1] == [f"written: {run.analysis}", f"written: {run.report}"]


@pytest.mark.parametrize(
    "target, message",
    [
        ("missing", "no such run directory: {path}"),
        ("recipe", "{path} is not a run directory"),
        ("checkpoint", "{path} is not a run directory: it has no run.json\n  did you mean {run}?"),
    ],
)
def test_what_is_no_run_is_refused(kept, tmp_path, target, message):
    """Planted bug caught: a directory above taken for the run that was named."""
    checkpoint = kept.checkpoints / "step-000000001"
    path = {"missing": tmp_path / "no", "recipe": tmp_path, "checkpoint": checkpoint}[target]
    with pytest.raises(RunError) as caught:
        analyze(path)
    assert str(caught.value).startswith(message.format(path=path, run=kept.path))
