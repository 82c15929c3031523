"""The page about a comparison says what was found, links to what is there, and needs nothing but itself."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from made_runs import Page, made_run, write, write_lines

from dorakit import Recipe, Run
from dorakit.comparison.cells import Cell
from dorakit.comparison.charts import accuracy_charts
from dorakit.comparison.findings import find
from dorakit.comparison.measure import Measure
from dorakit.comparison.methods import CellResult
from dorakit.comparison.page import Comparison, render, write_comparison
from dorakit.report.page import MAX_BYTES

RECIPE = """\
version: 1
model: {base: tiny:llama}
adapter: {mode: lora, rank: 4, alpha: 8}
data: {train: [{path: rows.jsonl, format: text}]}
training: {epochs: 1}
optimizer: {learning_rate: 1e-3}
"""
NASTY = "<script>alert(1)</script></style><b onclick=x>&{{ 7*7 }}\x1b[2J"


def result(mode, rank, rate, seed, right, *, loss=1.0, forgotten=None):
    """A cell that answers the first `right` of 100 rows rightly."""
    return CellResult(
        cell=Cell(mode, rank, rate, seed),
        rows={f"test.jsonl:{i}": (float(i < right), 1) for i in range(100)},
        unparsed=3,
        validation_loss=loss,
        seconds=12.5,
        peak_memory_bytes=2 * 10**9,
        trained_parameters=12_345,
        forgotten=forgotten,
    )


def compared(
    tmp_path, results, *, fixed_rate=1e-3, base="tiny:llama", data="test.jsonl", notes=(), measure=Measure()
) -> Comparison:
    """A comparison of made runs, each with a page but the last."""
    recipe = tmp_path / "my.yaml"
    recipe.write_text(RECIPE)
    runs = {}
    for one in results:
        path = made_run(
            tmp_path / "out" / one.cell.name, mode=one.cell.mode, rank=one.cell.rank or 8, base={"name": base}
        )
        write(path / "eval" / "comparison.json", {"data": data, "metric": "exact_match"})
        write_lines(path / "metrics.jsonl", [{"step": 3, "validation/loss": one.validation_loss}], "a")
        (path / "report.html").write_text("a page")
        runs[one.cell] = Run.open(path)
    runs[results[-1].cell].report.unlink()
    findings = replace(find(results, fixed_rate=fixed_rate, measure=measure), notes=list(notes))
    return Comparison(Recipe.from_yaml(str(recipe)), tmp_path / "out", findings, runs)


SWEPT = [
    result("full", None, 1e-3, 1, 70, forgotten=0.5), result("full", None, 1e-3, 2, 74, forgotten=0.7),
    result("full", None, 1e-2, 1, 20, loss=4.0, forgotten=3.0), result("full", None, 1e-2, 2, 20, loss=4.0, forgotten=3.0),
    result("dora", 4, 1e-3, 1, 30, loss=2.0, forgotten=0.1), result("dora", 4, 1e-3, 2, 36, loss=2.0, forgotten=0.1),
    result("dora", 4, 1e-2, 1, 60, forgotten=0.2), result("dora", 4, 1e-2, 2, 64, forgotten=0.2),
    result("dora", 8, 1e-3, 1, 71, forgotten=0.1), result("dora", 8, 1e-3, 2, 73, forgotten=0.1),
    result("dora", 8, 1e-2, 1, 10, loss=4.0, forgotten=0.2), result("dora", 8, 1e-2, 2, 10, loss=4.0, forgotten=0.2),
]  # fmt: skip


def test_the_page_says_what_was_found(tmp_path):
    """Planted bugs caught: the winner's lead under another method; the fixed rate's accuracy and the best one's swapped; a
    spread of another method; a track that runs from 0 to 1 under a heading of 60 to 75 %.
    """
    comparison = compared(tmp_path, SWEPT)
    found = comparison.findings
    page = Page(write_comparison(comparison).read_text(encoding="utf-8"))
    assert found.sentence in page.sections[""]
    heads = page.row("method")
    cells = dict(zip(heads, page.row("dora r=4"), strict=True))
    assert heads[2] == "60 to 75 %"
    ahead = found.against_best["dora r=4"]
    assert cells["accuracy"] == "62.0 % ± 2.8" and cells["at rate"] == "0.01" and cells["at 0.001"] == "33.0 %"
    assert cells[f"{found.winner.name} ahead by"] == f"+10.0 % [{ahead.low * 100:+.1f}, {ahead.high * 100:+.1f}]"
    costs = [cells[name] for name in ("seconds", "peak memory", "trained parameters", "forgotten")]
    assert costs == ["12.5 s", "2.00 GB", "12,345", "+0.200"]
    assert dict(zip(heads, page.row("full"), strict=True))["forgotten"] == "+0.600"
    marks = [attributes["style"] for tag, attributes in page.tags if tag == "b" and "style" in attributes]
    assert marks == ["left:80.0%", "left:13.3%", "left:80.0%"], "in the order of the methods: 72, 62 and 72 %"
    told = page.sections["compared"]
    for part in (
        "learning rates0.001, 0.01",
        "ranks4, 8",
        "seeds1, 2",
        "alpha / rank2",
        "100 rows of test.jsonl, exact_match",
    ):
        assert part in told


def test_a_comparison_by_loss_is_told_as_one(tmp_path):
    """Planted bugs caught: percent of nats; a heading of accuracy; a word that is explained nowhere."""
    results = [
        replace(result(mode, 4, rate, 1, 0), rows={f"{i}": (nats * (2 + i), 2 + i) for i in range(30)})
        for mode, rate, nats in (("lora", 1e-3, 1.25), ("dora", 1e-3, 1.5), ("lora", 1e-2, 2.0), ("dora", 1e-2, 3.0))
    ]
    measure = Measure("validation loss", "validation rows", is_loss=True)
    comparison = compared(tmp_path, results, measure=measure)
    page = Page(render(comparison))
    cells = dict(zip(page.row("method"), page.row("dora r=4"), strict=True))
    assert cells["validation loss"] == "1.5" and cells["lora r=4 ahead by"].startswith("+0.2500 [+0.2")
    assert "1.225 to 1.525" in cells and cells["at 0.001"] == "1.5"
    assert "accuracy" not in page.text.lower() and "Nats are the unit of the loss" in page.text
    assert page.row("lora-r4-lr0.01-seed1")[1] == "2" and "30 rows of test.jsonl, loss" in page.sections["compared"]
    (chart,) = map(str, accuracy_charts(comparison.findings))
    assert "Validation loss against learning rate" in chart and "lora: 1.25 at rate 0.001, 2 at rate 0.01" in chart


def test_every_cell_is_there_with_a_link_to_its_page(tmp_path):
    """Planted bugs caught: absolute links, which die when the directory moves; a link to a page that is not there."""
    comparison = compared(tmp_path, SWEPT)
    write_comparison(comparison)
    moved = shutil.move(comparison.output, tmp_path / "elsewhere")
    page = Page((Path(moved) / "comparison.html").read_text(encoding="utf-8"))
    links = [a["href"] for tag, a in page.tags if tag == "a" and not a["href"].startswith("#")]
    assert len(links) == len(SWEPT) - 1 and all((Path(moved) / link).is_file() for link in links)
    for one in SWEPT:
        assert page.row(one.cell.name)[1:4] == [
            f"{one.score:.1%}".replace("%", " %"),
            "3",
            f"{one.validation_loss:g}",
        ]


def test_accuracy_is_drawn_against_rank_and_rate(tmp_path):
    """Planted bugs caught: methods at another rate than their best in the chart of ranks; rates on a linear axis, where all but
    the largest lie on each other; seeds left out; full fine-tuning at rank 0.
    """
    by_rank, of_full, of_dora = map(str, accuracy_charts(compared(tmp_path, SWEPT).findings))
    assert "Accuracy against rank" in by_rank and "dora: 62 at rank 4, 72 at rank 8" in by_rank
    assert "full, no rank: 72 at rank 4, 72 at rank 8" in by_rank and "line s1 dashed" in by_rank
    assert "full: accuracy against learning rate" in of_full and "no rank: 72 at rate 0.001, 20 at rate 0.01" in of_full
    assert "r = 4: 33 at rate 0.001, 62 at rate 0.01" in of_dora and "r = 8: 72 at rate 0.001" in of_dora
    assert of_dora.count('class="dot s1 open"') == 4, "two seeds at two rates"
    middle = [result("dora", 4, rate, 1, 50) for rate in (1e-4, 1e-3, 1e-2)]
    (chart,) = map(str, accuracy_charts(find(middle, fixed_rate=1e-3)))
    assert 'x="50.0%" y="100%" dy="1.5em" class="x">' in chart
    assert accuracy_charts(find(middle[:1], fixed_rate=1e-4)) == []


def test_whatever_cells_hold_is_shown_as_text(tmp_path):
    """Planted bugs caught: a template with `safe` in it; a script of a data set's name; a page that loads something."""
    text = render(compared(tmp_path, SWEPT, base=NASTY, data=NASTY, notes=[NASTY]))
    page = Page(text)
    assert page.text.count("<script>alert(1)</script>") == 3 and "\x1b" not in text and "{{ 7*7 }}" in page.text
    policies = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe") and not [n for n in attributes if n.startswith("on")]
        assert not [v for v in attributes.values() if "//" in (v or "")]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for tag, a in page.tags if tag == "a" and a["href"].startswith("#")} <= set(ids)


def test_a_small_comparison_has_no_empty_parts(tmp_path):
    """Planted bugs caught: columns of a sweep that was none; an empty chart; a bar of one seed."""
    page = Page(render(compared(tmp_path, [result("lora", 4, 1e-3, 1, 50, loss=1.0)])))
    assert page.row("method") == [
        "method",
        "accuracy",
        "45 to 55 %",
        "lora r=4 ahead by",
        "seconds",
        "peak memory",
        "trained parameters",
    ]
    assert "axes" not in page.sections and "#axes" not in [a.get("href") for _, a in page.tags]
    assert [tag for tag, _ in page.tags if tag == "i"] == [] and "±" not in page.sections["methods"]


def test_a_large_comparison_fits(tmp_path):
    """Planted bugs caught: curves of every cell at full length; more methods drawn than there are colours and dashes for."""
    results = [result("lora", rank, 1e-3, seed, 50) for rank in range(1, 31) for seed in range(4)]
    comparison = compared(tmp_path, results)
    for run in comparison.runs.values():
        lines = [{"step": n, "train/loss": 3 + n % 7, "validation/loss": 2 + n % 5} for n in range(2000)]
        run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = render(comparison)
    assert len(text.encode()) < MAX_BYTES
    page = Page(text)
    assert len([1 for tag, _ in page.tags if tag == "polyline"]) == 1 + 2 * 16
    assert page.row("lora-r30-lr0.001-seed3")
