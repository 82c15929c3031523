"""Rows shared out over ranks are measured as by one process."""

import json

import pytest
from groups import dorakit_group
from tiny_runs import tiny_run


@pytest.mark.parametrize("metric", ["exact_match", "option_likelihood"])
def test_as_one_process(tmp_path, metric):
    """Planted bugs caught: a mean of the ranks' means; answers or losses of rows in the order of ranks; likelihoods in
    batches of a rank's own.
    """
    run = tiny_run(tmp_path, "dora")
    options = ["--set", f"evaluation.metric={metric}"]
    if metric.startswith("option"):
        options += ["--set", "evaluation.options=[' 82', ' 84', ' 86', ' 88', ' 90', ' 92', ' 94']"]
    found = []
    for size in (1, 2, 4):
        file = tmp_path / f"{size}.json"
        ended = dorakit_group(size, "eval", run.path, *options, "--output", file, "--json")
        assert ended.codes == [0] * size, ended.ranks
        assert all(rank.out == rank.err == "" for rank in ended.ranks[1:])
        result, answers = json.loads(file.read_text()), file.with_suffix(".predictions.jsonl").read_text()
        lines = [json.loads(line) for line in file.with_suffix(".losses.jsonl").read_text().splitlines()]
        rows = [(line["row"], line["digest"], line["tokens"]) for line in lines]
        found.append([result["loss"], *(line["nats"] for line in lines)])
        for moving in ("seconds", "output", "predictions", "losses", "loss", "perplexity"):
            result.pop(moving)
        found.append((result, answers, rows))
    assert found[1] == found[3] == found[5]
    assert found[0] == pytest.approx(found[2], rel=1e-5)
    assert found[0] == pytest.approx(found[4], rel=1e-5)


def test_a_gate_is_everybodys(tmp_path):
    run = tiny_run(tmp_path, "dora")
    ended = dorakit_group(2, "eval", run.path, "--min", "accuracy=1")
    assert ended.codes[0] == 5 and len(ended.errors) == 1
