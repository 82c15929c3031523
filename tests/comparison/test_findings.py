"""Conclusions from made results: what is best, what is at one rate, what is said."""

from dataclasses import replace

import numpy as np
import pytest

from dorakit.comparison.cells import Cell
from dorakit.comparison.findings import find
from dorakit.comparison.measure import Measure
from dorakit.comparison.methods import CellResult
from dorakit.errors import RunError


def result(mode, rate, seed, right, *, rank=8, loss=1.0, seconds=10.0, rows=200, name="row", forgotten=None):
    """A cell that answers the first `right` rows rightly."""
    return CellResult(
        cell=Cell(mode, rank, rate, seed),
        rows={f"{name} {i}": (float(i < right), 1) for i in range(rows)},
        unparsed=0,
        validation_loss=loss,
        seconds=seconds,
        peak_memory_bytes=10**9,
        trained_parameters=1000,
        forgotten=forgotten,
    )


def test_the_sentence_tells_what_the_recommended_method_forgets():
    """Planted bugs caught: the least and the most mixed up; the winner's figure said where another is recommended."""
    better = [result("lora", 1e-3, 1, 80, forgotten=0.1), result("full", 1e-3, 1, 150, rank=None, forgotten=0.5)]
    sentence = find(better, fixed_rate=1e-3).sentence
    assert sentence.startswith("Use full here")
    assert "But it forgets +0.500 nats a token of the general text, lora r=8 +0.100." in sentence
    alike = [
        result("lora", 1e-3, 1, 100, seconds=5.0, forgotten=0.1),
        result("dora", 1e-3, 1, 101, seconds=9.0, forgotten=0.3),
    ]
    sentence = find(alike, fixed_rate=1e-3).sentence
    assert "lora r=8 trains fastest" in sentence
    assert sentence.endswith("It also forgets the least: +0.100 nats a token of the general text.")


def test_a_winner_is_named_with_its_margin():
    """Planted bug caught: the interval of the wrong pair."""
    findings = find([result("lora", 1e-3, 1, 80), result("dora", 1e-3, 1, 150)], fixed_rate=1e-3)
    assert findings.winner.name == "dora r=8"
    assert findings.against_best["lora r=8"].mean == pytest.approx(0.35)
    assert findings.sentence.startswith("Use dora r=8 here: on 200 test rows and 1 seed it is better than all others")


def test_what_cannot_be_told_apart_is_said():
    """And which is cheapest. Planted bug caught: the highest mean is recommended whatever its interval."""
    results = [
        result("lora", 1e-3, 1, 100, seconds=5),
        result("dora", 1e-3, 1, 101, seconds=9),
        result("full", 1e-3, 1, 20),
    ]
    sentence = find(results, fixed_rate=1e-3).sentence
    assert "dora r=8, lora r=8 cannot be told apart on 200 test rows" in sentence
    assert "Worse than dora r=8: full r=8." in sentence and "lora r=8 trains fastest (5 s a run)" in sentence


def test_the_rate_is_chosen_by_validation_loss_and_the_other_column_is_not_swept():
    """Planted bugs caught: chosen on the test rows; the fixed column swept too."""
    results = [
        result("lora", 1e-3, 1, 90, loss=0.5), result("lora", 1e-2, 1, 120, loss=0.6),
        result("dora", 1e-3, 1, 80, loss=0.9), result("dora", 1e-2, 1, 70, loss=0.4),
    ]  # fmt: skip
    findings = find(results, fixed_rate=1e-3)
    assert findings.chosen_by == "validation loss"
    assert [(m.mode, m.learning_rate, m.score) for m in findings.best] == [
        ("lora", 1e-3, 0.45),
        ("dora", 1e-2, 0.35),
    ]
    assert [(m.mode, m.learning_rate, m.score) for m in findings.fixed] == [
        ("lora", 1e-3, 0.45),
        ("dora", 1e-3, 0.4),
    ]


def test_a_choice_on_the_test_rows_is_said():
    """Where no rows are held out. Planted bug caught: the flattery is kept quiet."""
    results = [result("lora", rate, 1, right, loss=None) for rate, right in ((1e-3, 90), (1e-2, 120))]
    results += [result("dora", rate, 1, right, loss=None) for rate, right in ((1e-3, 20), (1e-2, 30))]
    findings = find(results, fixed_rate=1e-3)
    assert findings.chosen_by == "accuracy on the test rows" and "flatters all" in findings.sentence
    assert findings.best[0].learning_rate == 1e-2


def test_a_choice_on_the_rows_that_are_tested_is_said_of_a_loss_too():
    """Where the recipe names no test rows. Planted bug caught: a loss is always believed to be of other rows."""
    results = [result("lora", rate, 1, 90, loss=rate) for rate in (1e-3, 1e-2)]
    assert "flatters all" not in find([*results, result("dora", 1e-3, 1, 90)], fixed_rate=1e-3).sentence
    on_validation = find(
        [*results, result("dora", 1e-3, 1, 90)], fixed_rate=1e-3, measure=Measure(rows="validation rows")
    )
    assert "chosen on the validation rows, which flatters all" in on_validation.sentence


@pytest.mark.parametrize(("right", "verdict"), [(0, "wrongly"), (2, "rightly")])
def test_rows_that_are_all_alike_are_said(right, verdict):
    """Planted bug caught: "a difference of up to 0.0% is possible" of two rows."""
    results = [result(mode, 1e-3, 1, right, rows=2) for mode in ("lora", "dora")]
    assert (
        f"cannot be told apart on 2 test rows and 1 seed: every row is answered {verdict} by all "
        "(a difference of up to 100.0% is possible)"
    ) in find(results, fixed_rate=1e-3).sentence


def by_loss(mode, rate, nats, *, rows=60, **facts):
    """A cell with so much loss per token, with some noise over its rows of 1 to 9 tokens."""
    one = result(mode, rate, 1, 0, **facts)
    noise = np.random.default_rng(7).normal(0, 0.2, rows)
    tokens = [1 + i % 9 for i in range(rows)]
    return replace(one, rows={f"row {i}": ((nats + noise[i]) * tokens[i], tokens[i]) for i in range(rows)})


LOSS = Measure("validation loss", "validation rows", is_loss=True)


def test_the_lower_loss_wins():
    """Planted bugs caught: the higher one; the lead's sign turned; percent of nats."""
    findings = find([by_loss("lora", 1e-3, 1.2), by_loss("dora", 1e-3, 1.1)], fixed_rate=1e-3, measure=LOSS)
    assert findings.winner.name == "dora r=8" and findings.against_best["lora r=8"].mean == pytest.approx(0.1)
    assert findings.sentence.startswith(
        "Use dora r=8 here: on 60 validation rows and 1 seed its validation loss is lower than that of all others, "
        "by at least 0.1000 nats a token"
    )
    row = findings.as_dict()["methods"][0]
    assert findings.as_dict()["measure"] == "validation loss" and row["loss"] == pytest.approx(1.2, abs=0.1)
    assert "accuracy" not in row
    few = find([by_loss("lora", 1e-3, 1.2, rows=2), by_loss("dora", 1e-3, 1.1, rows=2)], fixed_rate=1e-3, measure=LOSS)
    assert "cannot be told apart by their validation loss on 2 validation rows" in few.sentence
    assert "so few validation rows cannot say how large a difference is possible" in few.sentence


def test_the_rate_is_chosen_by_the_loss_that_is_compared():
    """Where both are of the same rows. Planted bug caught: the lowest along the way, which the finished model has not."""
    results = [
        by_loss("lora", 1e-3, 1.0, loss=0.9), by_loss("lora", 1e-2, 2.0, loss=0.5),
        by_loss("dora", 1e-3, 1.5, loss=0.9), by_loss("dora", 1e-2, 1.4, loss=0.9),
    ]  # fmt: skip
    findings = find(results, fixed_rate=1e-3, measure=LOSS)
    assert findings.chosen_by == "validation loss" and "flatters all" in findings.sentence
    assert [(m.mode, m.learning_rate) for m in findings.best] == [("lora", 1e-3), ("dora", 1e-2)]
    on_test_rows = find(results, fixed_rate=1e-3, measure=Measure("loss", "test rows", is_loss=True))
    assert [(m.mode, m.learning_rate) for m in on_test_rows.best] == [("lora", 1e-2), ("dora", 1e-3)]
    assert "flatters" not in on_test_rows.sentence


def test_more_comparisons_ask_for_more():
    """Planted bug caught: each of many intervals at 95 %."""
    rng = np.random.default_rng(3)
    few = [result("dora", 1e-3, 1, 110), result("lora", 1e-3, 1, 95)]
    many = [*few, *(result("lora", 1e-3, 1, int(60 + rng.integers(20)), rank=rank) for rank in (1, 2, 4, 16, 32, 64))]
    one, several = find(few, fixed_rate=1e-3), find(many, fixed_rate=1e-3)
    assert several.against_best["lora r=8"].low < one.against_best["lora r=8"].low


def test_seeds_are_paired_by_number():
    """Planted bug caught: in the order in which they came."""
    results = [result("lora", 1e-3, 2, 50), result("lora", 1e-3, 1, 100), result("dora", 1e-3, 1, 110)]
    results.append(result("dora", 1e-3, 2, 60))
    findings = find(results, fixed_rate=1e-3)
    assert [cell.cell.seed for cell in findings.methods[0].cells] == [1, 2]
    assert findings.methods[0].spread == pytest.approx(np.std([0.5, 0.25], ddof=1))


def test_other_rows_are_refused():
    """Planted bug caught: rows compared by their number."""
    with pytest.raises(RunError, match="were measured on other rows"):
        find([result("lora", 1e-3, 1, 50), result("dora", 1e-3, 1, 50, name="line")], fixed_rate=1e-3)
