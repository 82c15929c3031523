"""The page says what the files say, whatever they hold, and needs nothing but itself."""

import json
import re

import pytest
from made_runs import Page, evaluation, made_run, write, write_lines
from tiny_runs import tiny_recipe
from typer.testing import CliRunner

from dorakit import Run, train
from dorakit.cli.app import app
from dorakit.errors import UsageError
from dorakit.report import page as page_module
from dorakit.report.content import read_content
from dorakit.report.numbers import figure, wilson_interval
from dorakit.report.page import MAX_BYTES, render, write_page, write_report
from dorakit.report.text import clipped

NASTY = (
    "<script>alert(1)</script></svg></style><img src=x onerror=alert(2)>\"'&{{ 7*7 }}"
    "\x1b[2J\x00\u202e\ud800 hf_abcdefghijklmnop1234"
)


def shown(run) -> Page:
    return Page(render([read_content(run)]))


def figures(text: str) -> list[str]:
    return re.findall(r"[\d.,]+(?:e-?\d+)?", text)


def test_the_page_of_a_real_run_says_what_its_files_say(run_of):
    """Planted bugs caught: KL of the supervised positions under all; sizes before and after swapped; tokens/s of the
    last step under throughput; a base's accuracy as the adapter's; a source of another line.
    """
    run = run_of("dora")
    run.update(seconds=0.1)  # where three steps took less, it says 0
    runner = CliRunner()
    for command in (["eval", "--base"], ["eval"], ["merge"], ["quantize"]):
        result = runner.invoke(app, [command[0], str(run.path), *command[1:], "--quiet"], catch_exceptions=False)
        assert result.exit_code == 0
    result = runner.invoke(app, ["report", str(run.path), "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)["output"] == str(run.report)
    page = Page(run.report.read_text(encoding="utf-8"))
    facts = run.read("run.json")
    for told in (
        f"trained parameters{facts['trained_parameters']:,}",
        f"throughput{facts['tokens'] / facts['seconds']:,.0f} tokens/s",
        f"peak memory{facts['peak_memory_bytes'] / 1e6:.1f} MB",
    ):
        assert told in page.sections[""]
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    losses = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
    assert f"loss {losses[1]:.4g} → {losses[3]:.4g}" in page.sections[""]
    for step, loss in losses.items():
        assert page.row(str(step))[1] == f"{loss:.4g}"

    for variant in ("base", "adapter"):
        content = json.loads((run.eval / f"{variant}-test.json").read_text())
        cells = page.row(variant)
        low, high = wilson_interval(content["correct"], content["answered"])
        assert cells[1].startswith(
            f"{content['accuracy'] * 100:.1f} % ± {content['accuracy_standard_error'] * 100:.1f}"
        )
        assert figures(cells[2]) == [f"{low * 100:.1f}", f"{high * 100:.1f}"]
        assert cells[4:7] == [f"{content['loss']:.4g}", f"{content['perplexity']:.4g}", f"{content['rows']}"]

    receipt = json.loads((run.merged / "merge.json").read_text())["receipt"]
    merge = page.sections["merge"]
    for where, told in (("supervised", "trained tokens"), ("all", "tokens, prompts among them")):
        part = merge.split(f"over {receipt[where]['positions']} {told}")[1]
        assert figures(part.split("KL ")[1])[0] == figure(receipt[where]["kl"])
        assert f"largest logit difference {figure(receipt[where]['max_logit_difference'])}" in part
    content = json.loads((run.quantized / "quantize.json").read_text())
    quantize = page.sections["quantize"]
    assert f"{content['bytes_before'] / 1e6:.1f} MB → {content['bytes_after'] / 1e6:.1f} MB" in quantize
    assert f"{content['perplexity']['before']:.4g} → {content['perplexity']['after']:.4g} over" in quantize

    rank = next(row for row in page.rows if row[0] == "adapter.rank")
    resolved = (run.path / "recipe.resolved.yaml").read_text()
    assert rank[1:] == ["4", re.search(r"rank: 4  # (.*)", resolved)[1]]
    assert run.read("environment.json")["versions"]["torch"] in page.sections["environment"]


def test_whatever_a_run_holds_is_shown_as_text(tmp_path):
    """Planted bugs caught: autoescape off, `safe` in the template, a text that does not go through `clipped`."""
    run = Run(made_run(tmp_path / "<b>run&", notes=[NASTY], state="training"))
    write_lines(run.metrics_file, [{"step": n, "samples": [{"prompt": NASTY, "text": NASTY * 2}]} for n in (1, 2)], "a")
    nasty = evaluation("adapter", correct=1, answered=4, generated=NASTY, data=NASTY, metric=NASTY)
    nasty["samples"][0] |= {"prompt_tail": NASTY, "answer": NASTY}
    write(run.eval / "adapter-test.json", nasty)
    write(run.eval / "odd.json", {**nasty, "variant": NASTY, "tasks": {NASTY: nasty}})
    write(
        run.merged / "merge.json", {"onto": NASTY, "dtype": NASTY, "receipt": {"compared_on": NASTY}, "notes": [NASTY]}
    )
    write(run.quantized / "quantize.json", {"format": NASTY, "source": NASTY, "unquantized_layers": [NASTY]})
    write(run.path / "environment.json", {NASTY: NASTY, "versions": {NASTY: NASTY}})
    write_lines(
        run.nonfinite_file, [{"step": NASTY, "grad_norm": NASTY, "micro_batches": [{"loss": "nan", "rows": [NASTY]}]}]
    )
    change = {"module": NASTY, "kind": NASTY, "step": 1, "delta_m": 0.1, "delta_d": 0.2}
    write(run.path / "analysis.json", {"matrices": [change], "kinds": {NASTY: {"r": 0.5}}, "never_moved": [NASTY]})
    recipe = (run.path / "recipe.resolved.yaml").read_text() + f"name: {NASTY[:60]}  # {NASTY[:60]}\n"
    (run.path / "recipe.resolved.yaml").write_text(recipe)
    text = render([read_content(run)])
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "img"), f"a text became a tag: {tag}"
        assert not [name for name in attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") > 20
    for control in ("\x1b", "\x00", "\u202e", "\ud800"):
        assert control not in text
    assert "\\x1b[2J" in page.text and "hf_abc" not in text and "{{ 7*7 }}" in page.text
    assert "<b>run&" in page.sections[""]


@pytest.mark.parametrize("number", [1, 3])
def test_nothing_is_asked_of_anywhere(tmp_path, number):
    """Planted bugs caught: a font or a script of another place; no policy that would stop one that slipped in."""
    runs = [Run(made_run(tmp_path / f"run-{n}", notes=["see https://example.org/x.js"])) for n in range(number)]
    for run in runs:
        write(run.eval / "base-test.json", evaluation("base", correct=1, answered=4))
    text = render([read_content(run) for run in runs])
    page = Page(text)
    policies = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form", "image", "use")
        for name, value in attributes.items():
            assert "//" not in (value or ""), f"<{tag} {name}={value}>"
            assert name not in ("src", "srcset", "action", "data") and (name != "href" or value.startswith("#"))
    assert "@import" not in text and "url(" not in text
    places = {attributes.get("id") for _, attributes in page.tags}
    assert {a["href"][1:] for tag, a in page.tags if tag == "a"} <= places, "a link inside the page leads nowhere"


def test_names_of_marks_are_unique(tmp_path):
    """Planted bug caught: two charts with one id, so that both are read out as the first."""
    runs = [Run(made_run(tmp_path / f"run-{n}")) for n in range(2)]
    change = {"module": "m", "kind": "q_proj", "step": 1, "delta_m": 0.1, "delta_d": 0.2}
    for run in runs:
        write(run.path / "analysis.json", {"matrices": [change, {**change, "kind": "v_proj"}]})
    ids = [a["id"] for _, a in Page(render([read_content(run) for run in runs])).tags if "id" in a]
    assert len(ids) == len(set(ids)) and "change-1-1-title" in ids


def test_a_long_run_fits_and_keeps_its_spike(tmp_path):
    """Planted bugs caught: all points drawn; every hundredth, which misses the one step that went wrong."""
    run = Run(made_run(tmp_path / "run"))
    with open(run.metrics_file, "w") as file:
        for step in range(1, 100_001):
            loss = 77.0 if step == 54_321 else 2 + step % 7 / 10
            file.write(
                f'{{"step": {step}, "train/loss": {loss}, "train/grad_norm": 0.5, "train/tokens_per_s": {step % 13}}}\n'
            )
    text = render([read_content(run)])
    assert len(text.encode()) < 300_000
    page = Page(text)
    lines = [a["points"].split() for tag, a in page.tags if tag == "polyline"]
    assert max(map(len, lines)) <= 1000
    top = min((place.split(",") for place in lines[0]), key=lambda place: float(place[1]))
    assert float(top[0]) / 1000 * 99_999 + 1 == pytest.approx(54_321, abs=60)
    assert "100,000" in [row[0] for row in page.rows if row]


def test_a_page_never_passes_a_megabyte(tmp_path):
    """Planted bug caught: texts of models at full length, run after run."""
    runs = [Run(made_run(tmp_path / f"run-{n}", notes=["<" * 90_000] * 30)) for n in range(16)]
    for run in runs:
        answers = [{"prompt": f"{n}" + "&" * 9_000, "text": '"' * 9_000} for n in range(12)]
        write_lines(run.metrics_file, [{"step": n, "samples": answers} for n in (1, 2)], "a")
    output = write_page(runs, tmp_path / "all.html")
    assert 100_000 < output.stat().st_size < MAX_BYTES
    Page(output.read_text(encoding="utf-8"))


def test_a_text_that_is_cut_says_so(tmp_path):
    """Planted bug caught: an answer that ends in the middle as if the model had stopped there."""
    run = Run(made_run(tmp_path / "run"))
    write_lines(run.metrics_file, [{"step": 1, "samples": [{"prompt": "p", "text": "x" * 2500}]}], "a")
    assert "x" * 2000 + " … (500 more characters)" in shown(run).sections["samples"]


def test_a_secret_is_not_shown_for_being_cut():
    """Planted bugs caught: cut first and looked at then, so that half a secret stays; a megabyte looked at in full."""
    secret = "https://user:" + "p" * 400 + "@example.org"
    for before in range(0, 5000, 50):
        for after in (1, 10_000):
            assert "p" * 20 not in clipped("x" * before + " " + secret + " " + "y" * after, 1000)
        assert "p" * 20 not in clipped("x" * (before % 430) + (" " + secret) * 40, 1000), "hiding makes a text shorter"
    assert clipped("a" * 3000, 1000) == clipped("a" * 2000, 1000).replace("(1,000", "(2,000")
    assert clipped("a" * 50_000, 1000) == "a" * 1000 + " … (49,000 more characters)"
    assert clipped("short", 1000) == "short"


def test_several_runs_stand_side_by_side(tmp_path):
    """Planted bugs caught: a column under another run's name; settings that are alike among those that differ; two
    directories of one name told as one.
    """
    first = Run(made_run(tmp_path / "a" / "run", mode="lora", rank=8, steps=3))
    second = Run(made_run(tmp_path / "b" / "run", mode="dora", rank=4, steps=6))
    third = Run(made_run(tmp_path / "c" / "other", mode="dora", rank=8, steps=2, state="failed"))
    write(second.eval / "adapter-test.json", evaluation("adapter", correct=3, answered=4))
    page = Page(write_page([first, second, third], tmp_path / "page.html").read_text(encoding="utf-8"))
    names = ["a/run", "b/run", "c/other"]
    assert [[cell.strip() for cell in row] for row in page.rows if row and "b/run" in row[2:3]] == [["", *names]] * 2
    assert page.row("last loss") == ["last loss", "1", "0.5", "1.5"]
    assert page.row("state") == ["state", "finished", "finished", "failed"]
    assert page.row("adapter · test.jsonl · exact_match")[1:] == ["–", "75.0 % ± 21.7", "–"]
    # Settings are also told of each run, where key, value and source make three cells.
    differing = [row for row in page.rows if len(row) == 4 and "." in row[0] and " · " not in row[0]]
    assert differing == [["adapter.mode", "lora", "dora", "dora"], ["adapter.rank", "8", "4", "8"]]
    lines = [a["class"] for tag, a in page.tags if tag == "polyline"]
    assert lines[:3] == ["line s1", "line s2", "line s3"]
    keys = [a["class"] for tag, a in page.tags if tag == "a" and "key" in a.get("class", "")]
    assert keys == ["key s1", "key s2", "key s3"]


@pytest.mark.parametrize(("state", "told"), [("training", "This run is unfinished"), ("failed", "This run failed")])
def test_a_run_that_did_not_finish_says_so(tmp_path, state, told):
    """Planted bug caught: half a run told as a whole one."""
    run = Run(made_run(tmp_path / "run"))
    write(run.path / "run.json", {"schema": 1, "state": state, "base": {"name": "tiny:llama"}, "notes": []})
    page = shown(run)
    assert told in page.sections[""] and "after 3 steps" in page.sections[""]
    assert ("dorakit train --resume" in page.text) == (state == "training")
    assert "This run" not in shown(Run(made_run(tmp_path / "other"))).text


def test_what_is_not_there_leaves_no_trace(tmp_path):
    """Planted bugs caught: an empty chart, a heading over nothing, a link to it; a whole run without its chapters."""
    bare = tmp_path / "bare"
    write(bare / "run.json", {"schema": 1, "state": "training", "notes": []})
    page = shown(Run(bare))
    assert set(page.sections) == {""}
    assert "Nothing has been logged yet." in page.text
    assert [tag for tag, _ in page.tags if tag in ("svg", "table", "section", "a")] == []
    full = Run(made_run(tmp_path / "full", notes=["a note"]))
    write_lines(full.metrics_file, [{"step": 3, "samples": [{"prompt": "p", "text": "t"}]}], "a")
    write(full.eval / "base-test.json", evaluation("base", correct=1, answered=4))
    write(full.merged / "merge.json", {"onto": "trained", "receipt": "none"})
    write(full.quantized / "quantize.json", {"format": "nf4"})
    write(full.path / "analysis.json", {"matrices": [{"kind": "q_proj", "delta_m": 0.1, "delta_d": 0.2}]})
    page = shown(full)
    chapters = ["curves", "samples", "evaluation", "changes", "merge", "quantize", "notes", "recipe", "environment"]
    assert [name for name in page.sections if name] == chapters
    assert [a["href"] for tag, a in page.tags if tag == "a"] == [f"#{name}" for name in chapters]
    assert "compared with the model before mergingno" in page.sections["merge"]


def test_answers_to_one_row_stand_beside_each_other(tmp_path):
    """Planted bugs caught: answers to other rows set beside each other; right for wrong."""
    run = Run(made_run(tmp_path / "run"))
    write(run.eval / "base-test.json", evaluation("base", correct=0, answered=4, generated="five"))
    write(run.eval / "adapter-test.json", evaluation("adapter", correct=4, answered=4))
    other = evaluation("adapter", correct=4, answered=4, data_path="/rows/other.jsonl")
    write(run.eval / "adapter-other.json", other)
    told = " ".join(shown(run).sections["evaluation"].split())
    row = "…two plus two =expectedfour"
    assert f"{row} base wrongfive adapter rightfour" in told
    assert told.count(row) == 2


def test_magnitude_and_direction_are_drawn_by_kind(tmp_path):
    """Planted bugs caught: magnitude on the axis of direction; a correlation under another kind's chart; matrices that
    never moved drawn as points that the correlation is not over.
    """
    run = Run(made_run(tmp_path / "run"))
    matrices = [
        {
            "module": f"layers.{n}.q_proj",
            "kind": "q_proj",
            "step": 10,
            "delta_m": 0.1 * n,
            "delta_d": 0.5 + n,
            "moved": True,
        }
        for n in range(4)
    ]
    matrices.append({**matrices[0], "module": "layers.0.v_proj", "kind": "v_proj", "step": 20})
    matrices.append({**matrices[0], "module": "layers.9.q_proj", "delta_m": 0.0, "delta_d": 0.0, "moved": False})
    known = {"n": 4, "slope": 0.1, "intercept": -0.05, "r": 0.875, "r_low": 0.5, "r_high": 0.95}
    few = {"n": 1, "slope": None, "intercept": None, "r": None, "r_low": None, "r_high": None}
    content = {
        "schema": 1,
        "matrices": matrices,
        "kinds": {"q_proj": known, "v_proj": few},
        "all": {**known, "n": 5, "r": -0.25, "r_low": None, "r_high": None},
        "never_moved": ["layers.9.q_proj"],
    }
    write(run.path / "analysis.json", content)
    text = render([read_content(run)])
    first, second = re.findall(r'<figure class="chart">(?:(?!</figure>).)*plot scatter.*?</figure>', text)
    assert "q_proj" in first and "r = 0.88 [0.50, 0.95], n = 4" in first and 'class="fit"' in first
    assert "v_proj" in second and "r =" not in second and 'class="fit"' not in second
    assert "ΔD, direction from 0.5 to 3.5, ΔM, magnitude from 0 to 0.3" in first
    assert first.count("<circle") == 4 and "layers.3.q_proj, step 10" in first
    assert "step 10" in first and "step 20" in first, "the legend of colours is in the first chart"
    told = Page(text).sections["changes"]
    assert "all matricesr = -0.25, n = 5" in told and "never moved: 1layers.9.q_proj" in told


def test_steps_that_were_not_taken_are_told(tmp_path):
    """Planted bugs caught: the rows of a whole step blamed, not those of the micro-batch; a count of the shown records."""
    run = Run(made_run(tmp_path / "run", skipped_steps=60))
    good, bad = {"loss": "12.5", "rows": ["train.jsonl:4"]}, {"loss": "nan", "rows": ["train.jsonl:7"]}
    write_lines(run.nonfinite_file, [{"step": 2, "grad_norm": "nan", "micro_batches": [good, bad]}] * 60)
    page = shown(run)
    assert "60 steps not taken" in page.sections["notes"] and "The first 50 are shown" in page.sections["notes"]
    assert [row for row in page.rows if row == ["2", "nan", "train.jsonl:7"]]
    assert "train.jsonl:4" not in page.text
    assert "not finite: no step taken" in page.sections["curves"]


def test_held_out_rows_stand_before_the_curves(tmp_path):
    """Planted bugs caught: before and after swapped; a row's answers under another row; rows mixed with the recipe's prompts;
    nothing of a run that has not come to its end.
    """
    rows = [{"row": f"rows.jsonl:{n}", "prompt": f"asked {n}", "expected": f"wanted {n}"} for n in (4, 9)]
    run = Run(made_run(tmp_path / "run"))
    before = [{**row, "text": f"base of {row['row'][-1]}"} for row in rows]
    write_lines(run.metrics_file, [{"step": 0, "samples": [{"prompt": "own", "text": "first"}, *before]}])
    unfinished = shown(run)
    assert "base of 4after training–" in unfinished.sections["answers"].replace("\n", "")
    lines = [
        {"step": 1, "train/loss": 3.0, "samples": [{"prompt": "own", "text": "last"}]},
        {"step": 1, "samples": [{**row, "text": f"tuned on {row['row'][-1]}"} for row in reversed(rows)]},
    ]
    write_lines(run.metrics_file, lines, "a")
    page = shown(run)
    assert list(page.sections).index("answers") < list(page.sections).index("curves")
    told = page.sections["answers"].replace("\n", "")
    for n in (4, 9):
        assert f"asked {n}answer in the datawanted {n}before trainingbase of {n}after trainingtuned on {n}" in told
    assert "own" not in told and "before trainingfirstafter step 1last" in page.sections["samples"].replace("\n", "")
    assert "answers" not in shown(Run(made_run(tmp_path / "plain"))).sections


def test_validation_rows_that_were_trained_on_stand_beside_the_loss(run_of, tmp_path):
    """Of a real run, whose notes say so. Planted bugs caught: told at the foot of the page only; never."""
    assert "trained on too" not in shown(run_of("lora")).text
    recipe = tiny_recipe(tmp_path, "lora")
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("".join(line + "\n" for line in rows[:6] * 4))
    page = shown(train(recipe, quiet=True))
    assert re.search(r"validation [\d.]+ \(6 of 6 rows were trained on too\)", page.sections[""])
    assert "validation rows trained on too6 of 6" in page.sections[""]


def test_the_result_on_the_most_rows_is_told_first(tmp_path):
    """Planted bug caught: a lucky ten rows in the place of a hundred."""
    run = Run(made_run(tmp_path / "run"))
    for name, answered, correct in (("adapter-test", 10, 10), ("adapter-test-2", 100, 40)):
        settings = {"rows": name, "limit": None if answered == 100 else 10}
        write(run.eval / f"{name}.json", evaluation("adapter", correct=correct, answered=answered, settings=settings))
    write(run.eval / "base-test.json", evaluation("base", correct=1, answered=10, settings={"rows": "adapter-test"}))
    page = shown(run)
    assert "exact_match 40.0" in page.sections[""] and "(base" not in page.sections[""]


def test_tasks_of_an_evaluation_have_a_row_each(tmp_path):
    """Planted bugs caught: only the mean of several tasks shown; a single task told twice; no interval for a mean."""
    run = Run(made_run(tmp_path / "run"))
    boolq = {"task": "boolq", "scoring": "generate", "accuracy": 0.75, "correct": 3, "answered": 4, "rows": 4}
    piqa = {**boolq, "task": "piqa", "accuracy": 0.25, "correct": 1}
    values = {"task": "commonsense", "variant": "adapter", "rows": 8, "accuracy": 0.5, "accuracy_standard_error": 0.1}
    write(run.eval / "adapter-commonsense.json", {**values, "tasks": [boolq, piqa]})
    write(run.eval / "adapter-boolq.json", {**values, "task": "boolq", "accuracy": 0.75, "tasks": [boolq]})
    page = shown(run)
    rows = [(row[1].split("%")[0].strip(), row[3], row[-1]) for row in page.rows if row and row[0] == "adapter"]
    mean = ("50.0", "", "commonsense, mean of 2 tasks")
    assert rows == [("75.0", "generate", "boolq"), mean, ("75.0", "generate", "boolq"), ("25.0", "generate", "piqa")]
    (interval,) = [row[2] for row in page.rows if row and row[-1] == mean[-1]]
    assert figures(interval) == ["30.4", "69.6"]
    assert "boolq 75.0\xa0% ± 10.0" in page.sections[""]


def test_wilsons_interval():
    """Planted bug caught: the normal interval, which is empty at 0 of 10. Figures of Newcombe (1998), table I, method 3."""
    for (correct, answered), expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
    }.items():
        assert wilson_interval(correct, answered) == pytest.approx(expected, abs=5e-5)


def test_a_report_that_fails_costs_a_line(tmp_path, capsys, monkeypatch):
    """Planted bugs caught: a full disk after the last step makes a finished training an error; a traceback; silence."""
    run = Run(made_run(tmp_path / "run"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page_module, "write_whole", full)
    assert write_report(run) is None and not run.report.exists()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"no report: [Errno 28] No space left on device; `dorakit report {run.path}` tries again\n"
    monkeypatch.undo()
    assert write_report(run).stat().st_size > 5000
    assert capsys.readouterr().err == ""


def test_the_command_says_where_the_page_is(tmp_path):
    """Planted bugs caught: several runs written into the first one's directory; a file that is no page overwritten."""
    first, second = (made_run(tmp_path / name) for name in ("one", "two"))
    runner = CliRunner()
    result = runner.invoke(app, ["report", str(first)], catch_exceptions=False)
    assert result.output.split() == ["written:", str(first / "report.html")]
    (tmp_path / "notes.txt").write_text("mine")
    for arguments, told in (
        ([str(first), str(second)], "--output FILE"),
        ([str(first), "--output", str(tmp_path / "notes.txt")], "name a .html file"),
        ([str(first)] * 17 + ["--output", str(tmp_path / "x.html")], "at most 16"),
    ):
        with pytest.raises(UsageError, match=told):
            runner.invoke(app, ["report", *arguments], catch_exceptions=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    target = tmp_path / "deep" / "both.html"
    runner.invoke(app, ["report", str(first), str(second), "-o", str(target), "-q"], catch_exceptions=False)
    assert Page(target.read_text(encoding="utf-8")).row("last loss") == ["last loss", "1", "1"]
