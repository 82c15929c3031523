"""What is read of a run: of any state, of any content."""

import pytest
from made_runs import Page, made_run, write, write_lines

from dorakit import Run
from dorakit.report.content import read_content
from dorakit.report.page import render

FILES = [
    "run.json",
    "environment.json",
    "metrics.jsonl",
    "recipe.resolved.yaml",
    "nonfinite.jsonl",
    "analysis.json",
    "eval/base-test.json",
    "merged/merge.json",
    "quantized/quantize.json",
]
DAMAGED = {
    "empty": b"",
    "no JSON": b"{'step': 1}\n{'step': 2}\n",
    "not UTF-8": b"\xff\xfe\x00{\n\xff\n",
    "a list": b"[1, 2]\n[3]\n",
    "too deep": b"[" * 100_000 + b"\n\n",
    "too long a number": b'{"step": ' + b"9" * 5000 + b"}\n",
    "strange types": b'{"step": {"a": [1]}, "schema": [], "state": {}, "notes": 7, "base": "x", "versions": 3, "data": [],'
    b' "changes": {"a": 1}, "correlations": [7], "samples": "abc", "receipt": [1], "perplexity": 4, "relative_error": [],'
    b' "unquantized_layers": 3, "train/loss": "1.5", "micro_batches": [3, {"rows": 4}], "accuracy": "high", "variant": [1]}\n',
    "no numbers": b'{"step": NaN, "train/loss": Infinity, "accuracy": NaN, "bytes_before": Infinity, "seconds": -Infinity}\n',
    "huge numbers": b'{"step": 1e308, "train/loss": 1e308, "seconds": 1e308, "accuracy": 1e308, "correct": 5, "answered": 2}\n'
    b'{"step": -1e308, "train/loss": -1e308}\n',
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_costs_its_part_of_the_page_only(tmp_path, file, damage):
    """Planted bugs caught: RecursionError not caught, a value taken for the type that it should have."""
    run = Run(made_run(tmp_path / "run"))
    (run.path / file).parent.mkdir(exist_ok=True)
    (run.path / file).write_bytes(DAMAGED[damage])
    page = Page(render([read_content(run)]))
    if file != "metrics.jsonl":
        assert "loss 3 → 1" in page.sections[""]
    if damage in ("no JSON", "a list", "too deep") and file != "recipe.resolved.yaml":
        assert file.split("/")[-1] in page.text, "the page says which file could not be read"


def test_only_a_last_line_may_be_cut_short(tmp_path):
    """Planted bugs caught: a complaint about the line that a running training is writing; none about one in the middle."""
    run = Run(made_run(tmp_path / "run"))
    with open(run.metrics_file, "a") as file:
        file.write('{"step": 4, "train/lo')
    content = read_content(run)
    assert content.unreadable == [] and len(content.series["train/loss"]) == 3
    with open(run.metrics_file, "a") as file:
        file.write('\n{"step": 4, "train/loss": 0.5}\n')
    content = read_content(run)
    assert content.unreadable == ["metrics.jsonl: 1 lines are no JSON objects and are left out"]
    assert content.series["train/loss"][-1] == (4, 0.5)


def test_samples_are_the_first_and_the_last(tmp_path):
    """Planted bug caught: the second shown as the last."""
    run = Run(made_run(tmp_path / "run"))
    lines = [{"step": n, "samples": [{"prompt": "hello", "text": f"answer {n}"}]} for n in (2, 4, 6)]
    write_lines(run.metrics_file, lines, "a")
    assert [(s.step, s.answers) for s in read_content(run).samples] == [
        (2, {"hello": "answer 2"}),
        (6, {"hello": "answer 6"}),
    ]


def test_evaluations_are_in_the_order_of_a_models_life(tmp_path):
    """Planted bug caught: the order of file names, in which the adapter comes before its base."""
    run = Run(made_run(tmp_path / "run"))
    for variant in ("adapter", "quantized", "base", "odd", "merged"):
        write(run.eval / f"{variant}-test.json", {"variant": variant, "data": "test.jsonl", "data_path": "t"})
    assert [e.variant for e in read_content(run).evaluations] == ["base", "adapter", "merged", "quantized", "odd"]
