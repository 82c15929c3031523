"""`dorakit compare` on a tiny model: cells are runs, nothing is done twice, nothing unlike is compared."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from dying_runs import dorakit

from dorakit import Run
from dorakit.comparison import execution
from dorakit.comparison.cells import Cell, cell_recipe, check_alike, environment_notes, grid
from dorakit.comparison.sweep import compare
from dorakit.errors import DataError, Interrupted, RunError, UsageError
from dorakit.methods import UPDATES
from dorakit.recipe.schema import Recipe

RECIPE = """\
version: 1
model: {base: tiny:llama, architecture: llama, dtype: float32}
adapter: {mode: lora, rank: 4, alpha: 8}
data:
  train: [{path: rows.jsonl, format: completion}]
  validation: {rows: 8}
  max_seq_len: 256
training: {epochs: 1, batch_size: 8, micro_batch_size: 8, log_every: 10, eval_every: 0, save_every: 2, sample_rows: 0}
optimizer: {name: adamw, learning_rate: 1e-2, schedule: constant}
evaluation: {path: rows.jsonl, metric: option_likelihood, options: ["yes", "no"]}
"""


@pytest.fixture
def recipe(tmp_path):
    rows = [{"prompt": f"Is {i} even? ", "completion": "no" if i % 2 else "yes"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "general.txt").write_text(
        "The river runs past the mill.\nA page of a book that nobody reads any more.\n"
    )
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def commands(monkeypatch):
    """The commands that were run, each in a fork of this process, which has torch loaded."""
    seen = []

    def forked(arguments):
        place = arguments[arguments.index("--resume") + 1 if "--resume" in arguments else 1]
        seen.append((Path(place).name.removesuffix(".yaml"), arguments[0]))
        return dorakit(*arguments).code

    monkeypatch.setattr(execution, "_exit_code", forked)
    return seen


def test_a_whole_comparison(recipe, tmp_path, commands):
    """Planted bugs caught: finished cells trained again; alpha left behind when the rank moves; other batches per mode; a
    cell's page of before it was measured, or one that takes the record of the arguments for a result.
    """
    asked = {"modes": ["lora", "qdora"], "output": tmp_path / "out", "general": tmp_path / "general.txt", "quiet": True}
    findings, place = compare(recipe, **asked)
    assert [(name, what) for name, what in commands] == [
        (f"{mode}-r4-lr0.01-seed42", what) for mode in ("lora", "qdora") for what in ("train", "eval", "eval", "eval")
    ]
    runs = {mode: Run.open(place / f"{mode}-r4-lr0.01-seed42") for mode in ("lora", "qdora")}
    fingerprints = {run.read("run.json")["data"]["fingerprint"] for run in runs.values()}
    assert len(fingerprints) == 1 and all(run.state == "finished" for run in runs.values())
    for method in findings.methods:
        measured = json.loads((runs[method.mode].eval / "comparison.json").read_text())
        assert method.score == measured["accuracy"] and len(method.cells[0].rows) == 40
        text = [
            json.loads((runs[method.mode].eval / f"{n}.json").read_text())["loss"] for n in ("general", "general-base")
        ]
        assert method.cells[0].forgotten == text[0] - text[1] != 0
    assert json.loads((place / "comparison.json").read_text())["sentence"] == findings.sentence
    assert findings.notes == [
        "32 of 40 test rows are training rows too: on those, accuracy says what was remembered and not what was learned."
    ]
    page = (place / "comparison.html").read_text(encoding="utf-8")
    assert findings.sentence in page and 'href="qdora-r4-lr0.01-seed42/report.html"' in page
    report = runs["qdora"].report.read_text(encoding="utf-8")
    assert 'id="evaluation"' in report and "cannot be read" not in report

    commands.clear()
    again, _ = compare(recipe, **asked)
    assert not commands and again.as_dict() == findings.as_dict()

    wider, _ = compare(recipe, **asked, ranks=[4, 2])
    assert {name for name, _ in commands} == {"lora-r2-lr0.01-seed42", "qdora-r2-lr0.01-seed42"}
    assert Run.open(place / "lora-r2-lr0.01-seed42").recipe.adapter.alpha == 4
    assert [method.name for method in wider.methods] == ["lora r=4", "lora r=2", "qdora r=4", "qdora r=2"]

    commands.clear()
    with pytest.raises(RunError, match=r"of another comparison:\n  training.max_grad_norm: .* there, 0.5 asked for"):
        compare(recipe, **asked, overrides=["training.max_grad_norm=0.5"])
    assert not commands
    for mode in ("lora", "qdora"):  # as if another base had been trained
        runs[mode].update(is_twin=True)
    with pytest.raises(RunError, match="--twin: True there, False asked for"):
        compare(recipe, **asked)


def test_rows_that_are_not_there_are_known_before_a_cell_is_trained(recipe, tmp_path, commands, monkeypatch):
    """Planted bugs caught: an absent evaluation file found after the first training; no word on where its path starts."""
    monkeypatch.chdir("/")
    says = r"no such file: gone\.jsonl .*\n(.*\n)*  gone\.jsonl starts from /.*: data\.root, else the directory of the recipe"
    for key in ("data.train.0.path", "evaluation.path"):
        with pytest.raises(DataError, match=says):
            compare(recipe, output=tmp_path / "out", overrides=[f"data.root={recipe.parent}", f"{key}=gone.jsonl"])
    assert not (tmp_path / "out").exists()


def test_a_recipe_without_a_metric_is_compared_by_its_loss(recipe, tmp_path, commands):
    """As `dorakit init` writes them. Planted bugs caught: refused; the loss of other rows; losses of rows mixed up."""
    losses = ["evaluation.metric=none", "evaluation.options=[]"]
    asked = {"modes": ["lora", "dora"], "output": tmp_path / "out", "quiet": True}
    findings, place = compare(recipe, **asked, overrides=[*losses, "evaluation.path=null"])
    for method in findings.methods:
        run = Run.open(place / f"{method.mode}-r4-lr0.01-seed42")
        measured = json.loads((run.eval / "comparison.json").read_text())
        assert method.score == pytest.approx(measured["loss"]) and measured["rows"] == 8
        assert method.score == pytest.approx(run.read("run.json")["best_validation_loss"], rel=1e-4)  # of its only one
    assert findings.measure.name == "validation loss" and "8 validation rows" in findings.sentence
    assert findings.notes[0].startswith(
        "The recipe has no evaluation.metric, so runs are compared by their loss on the"
    )
    page = (place / "comparison.html").read_text(encoding="utf-8")
    assert findings.notes[0] in page and findings.sentence in page
    on_test_rows, _ = compare(recipe, output=tmp_path / "other", quiet=True, overrides=losses)
    assert on_test_rows.measure.name == "loss" and len(on_test_rows.methods[0].cells[0].rows) == 40


def test_what_cells_are_measured_on_may_not_change_in_between(recipe, tmp_path, commands):
    """Planted bugs caught: rows of one name are taken for the same; the loss on a text that is another by now."""
    asked = {"output": tmp_path / "out", "general": tmp_path / "general.txt", "quiet": True}
    first, _ = compare(recipe, **asked)
    commands.clear()
    (tmp_path / "general.txt").write_text("Another text, on which the loss is another one.\n")
    again, _ = compare(recipe, **asked)
    assert [what for _, what in commands] == ["eval", "eval"]
    assert again.methods[0].cells[0].forgotten != first.methods[0].cells[0].forgotten
    (tmp_path / "test.jsonl").write_text((tmp_path / "rows.jsonl").read_text())
    asked = {"output": tmp_path / "other", "quiet": True, "overrides": [f"evaluation.path={tmp_path}/test.jsonl"]}
    compare(recipe, **asked)
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    rows[0]["completion"] = "no"
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RunError, match=r"test.jsonl: other rows than when this comparison began"):
        compare(recipe, **asked, modes=["lora", "dora"])


def test_a_twin_is_told_as_one(recipe, tmp_path, commands):
    """Planted bug caught: a method is recommended for what a random model does."""
    findings, place = compare(recipe, output=tmp_path / "out", twin=True, quiet=True)
    page = (place / "comparison.html").read_text()
    assert findings.notes[0].startswith("A twin: a tiny random base") and "A twin: a tiny random base" in page
    assert json.loads((place / "comparison.json").read_text())["notes"] == findings.notes


def test_a_stopped_comparison_goes_on(recipe, tmp_path, monkeypatch):
    """Planted bugs caught: the signal ends us and not the cell; the unfinished cell is refused or begun anew."""
    monkeypatch.setenv("DORAKIT_FAILPOINT", "step:3=sigterm")
    with pytest.raises(Interrupted, match=r"stopped in lora-r4-lr0.01-seed42; the same command goes on") as caught:
        compare(recipe, output=tmp_path / "out", quiet=True)
    assert caught.value.exit_code == 143
    monkeypatch.delenv("DORAKIT_FAILPOINT")
    findings, place = compare(recipe, output=tmp_path / "out", quiet=True)
    run = Run.open(place / "lora-r4-lr0.01-seed42")
    assert "going on after step 3 (bitwise)" in run.log_file.read_text() and len(findings.methods) == 1


def test_a_signal_is_handed_on(tmp_path):
    """Once, and only to the cell. Planted bug caught: the parent dies and leaves an orphan that trains on."""

    code = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(9)); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, process_group=0)
    process.stdout.readline()
    with execution._forwarding(process):
        os.kill(os.getpid(), signal.SIGTERM)
        assert process.wait(timeout=30) == 9


def test_cells_that_saw_other_rows_are_refused(tmp_path):
    """Planted bug caught: compared as if nothing were."""

    def run(name, files, fingerprint, dtype="float32"):
        (tmp_path / name).mkdir()
        facts = {"schema": 1, "state": "finished", "base": {"files": files}, "data": {"fingerprint": fingerprint}}
        facts |= {"notes": [], "computing": {"dtype": dtype}}
        (tmp_path / name / "run.json").write_text(json.dumps(facts))
        return Run.open(tmp_path / name)

    one, other = Cell("lora", 4, 1e-3, 1), Cell("dora", 4, 1e-3, 1)
    base = run("a", {"w": "1"}, "x")
    check_alike([(one, base), (Cell("dora", 4, 1e-3, 2), run("b", {"w": "1"}, "y"))])
    with pytest.raises(RunError, match=r"dora-r4-lr0.001-seed1 and lora-r4-lr0.001-seed1 .* their rows differ"):
        check_alike([(one, base), (other, run("c", {"w": "1"}, "y"))])
    with pytest.raises(RunError, match="their base differ"):
        check_alike([(one, base), (other, run("d", {"w": "2"}, "x"))])
    with pytest.raises(RunError, match="their dtype differ"):
        check_alike([(one, base), (other, run("e", {"w": "1"}, "x", "bfloat16"))])


def test_cells_of_other_machines_are_named(tmp_path):
    """Planted bugs caught: seconds of two processors compared in silence; what is the same in all cells told too."""

    def run(cell, **computing):
        (tmp_path / cell.name).mkdir()
        facts = {"schema": 1, "state": "finished", "base": {}, "notes": []}
        facts["computing"] = {"torch": "2.13.0", "processor": "A", "threads": "2", **computing}
        (tmp_path / cell.name / "run.json").write_text(json.dumps(facts))
        return Run.open(tmp_path / cell.name)

    cells = [Cell(mode, 4, 1e-3, 1) for mode in ("lora", "dora", "full")]
    alike = {cell: run(cell) for cell in cells}
    assert environment_notes(alike) == []
    other, third = Cell("qdora", 4, 1e-3, 1), Cell("qlora", 4, 1e-3, 1)
    assert environment_notes({**alike, other: run(other, processor="B"), third: run(third, torch="2.12.0")}) == [
        "Runs were not all trained alike, so their seconds and memory cannot be compared: "
        "torch 2.13.0 (4 runs, the first is lora-r4-lr0.001-seed1) or 2.12.0 (qlora-r4-lr0.001-seed1); "
        "processor A (4 runs, the first is lora-r4-lr0.001-seed1) or B (qdora-r4-lr0.001-seed1)."
    ]


def test_the_grid(recipe):
    """Planted bugs caught: full fine-tuning once per rank; seeds not counted from the recipe's."""
    plan = Recipe.from_yaml(str(recipe))
    cells = grid(plan, modes=["full", "dora"], ranks=[2, 4], learning_rates=[1e-3, 1e-4], seeds=2)
    assert [cell.name for cell in cells[:6]] == [
        "full-lr0.001-seed42", "full-lr0.0001-seed42", "dora-r2-lr0.001-seed42",
        "dora-r2-lr0.0001-seed42", "dora-r4-lr0.001-seed42", "dora-r4-lr0.0001-seed42",
    ]  # fmt: skip
    assert len(cells) == 12 and {cell.seed for cell in cells} == {42, 43}
    only = grid(plan, modes=[], ranks=[], learning_rates=[], seeds=1)
    assert only == [Cell("lora", 4, 1e-2, 42)]
    made = cell_recipe(recipe, cells[4], recipe.parent / "out", ["adapter.dropout=0.1"], twin=False)
    assert (made.adapter.mode, made.adapter.rank, made.adapter.alpha, made.adapter.dropout) == ("dora", 4, 8.0, 0.1)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"modes": ["lora", "dorra"]}, "--modes: 'dorra' is no mode; there are full, lora, dora, qlora, qdora"),
        ({"modes": ["lora", "lora"]}, "--modes: lora is named twice"),
        ({"ranks": [0]}, "expected numbers above 0"),
        ({"learning_rates": [0.0]}, "expected numbers above 0"),
        ({"seeds": 0}, "--seeds 0"),
        (
            {"overrides": ["evaluation.path=null", "data.validation.rows=0"]},
            "neither evaluation.path nor data.validation names rows, so there is nothing to compare by\n  hold rows out: --set",
        ),
        ({"general": "nowhere.txt"}, "no such file"),
    ],
)
def test_bad_axes_are_refused_before_anything_is_trained(recipe, tmp_path, asked, message):
    """Planted bug caught: found out when the first cells are done."""
    if "general" in asked:
        asked = {"general": tmp_path / asked["general"]}
    with pytest.raises(UsageError) as caught:
        compare(recipe, output=tmp_path / "out", quiet=True, **asked)
    assert message in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep_best", ["false", "true"])
def test_a_rate_is_chosen_by_the_weights_that_are_tested(recipe, tmp_path, commands, keep_best):
    """Planted bug caught: the lowest loss on the way, where the last step's weights are tested."""
    settings = (
        f"training.keep_best={keep_best}",
        "training.eval_every=1",
        "optimizer.learning_rate=0.1",
        "adapter.mode=full",
    )
    findings, place = compare(recipe, overrides=settings, output=tmp_path / "cmp", quiet=True)
    run = Run.open(next(place.glob("full-*")))
    losses = [entry["validation/loss"] for entry in map(json.loads, run.metrics_file.read_text().splitlines())
              if "validation/loss" in entry]  # fmt: skip
    assert losses[-1] > 1.1 * min(losses)
    assert findings.best[0].mean(lambda cell: cell.validation_loss) == (
        min(losses) if keep_best == "true" else losses[-1]
    )


def test_rates_that_are_equal_to_six_digits_have_names_of_their_own():
    names = {Cell("lora", 4, rate, 1).name for rate in (1e-3, 1.0000001e-3)}
    assert names == {"lora-r4-lr0.001-seed1", "lora-r4-lr0.0010000001-seed1"}


def test_a_name_that_output_dir_would_fill_in_is_refused(recipe, tmp_path):
    with pytest.raises(UsageError, match=r"--output .*\{name\}: "):
        compare(recipe, output=tmp_path / "cmp-{name}", quiet=True)


@pytest.mark.parametrize("changed", ["rows.jsonl", "test.jsonl"])
def test_changed_rows_are_refused_before_anything_is_trained(recipe, tmp_path, commands, changed):
    """Between seeds too. Planted bug caught: rows compared within a seed alone."""
    (tmp_path / "test.jsonl").write_text((tmp_path / "rows.jsonl").read_text())
    settings = (f"evaluation.path={tmp_path}/test.jsonl", "training.max_steps=1")
    how = {"overrides": settings, "output": tmp_path / "cmp", "quiet": True}
    compare(recipe, **how)
    done = len(commands)
    rows = (tmp_path / changed).read_text().splitlines(keepends=True)
    (tmp_path / changed).write_text("".join(rows[:-1]))
    with pytest.raises(RunError, match=rf"{changed}: other rows than when this comparison began"):
        compare(recipe, seeds=2, **how)
    assert len(commands) == done
    (tmp_path / changed).write_text("".join(rows))
    compare(recipe, seeds=2, **how)


def test_a_metric_that_judges_what_is_taught_wrong_is_refused_first(recipe, tmp_path, commands):
    rows = [{"prompt": f"Is {i} even? ", "completion": f"It is {i % 2}.", "answer": "yes"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="would judge every answer wrong"):
        compare(recipe, output=tmp_path / "cmp", quiet=True)
    assert not commands


@pytest.mark.parametrize("update", UPDATES)
def test_a_cell_of_every_update(tmp_path, update):
    """Planted bug caught: alpha set for an update that has none, which is an error."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "version: 1\nmodel: {base: 'tiny:llama'}\n"
        f"adapter: {{mode: lora, update: {update}, rank: 4}}\n"
        "data: {train: [{path: rows.jsonl, format: text}]}\noptimizer: {learning_rate: 1e-3}\n"
    )
    for mode in ("lora", "qdora", "full"):
        rank = None if mode == "full" else 8
        made = cell_recipe(recipe, Cell(mode, rank, 1e-4, 0), tmp_path / "out", [], twin=False)
        assert made.adapter.mode == mode
        assert mode == "full" or (made.adapter.update, made.adapter.rank) == (update, 8)
