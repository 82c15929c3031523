"""Steps and tokens are those of the training itself."""

import json

from tiny_runs import tiny_recipe

from dorakit.plan import schedule as module
from dorakit.plan.schedule import schedule
from dorakit.training.loop import train


def test_steps_and_tokens_are_those_of_the_run(tmp_path):
    """Dies of rows trained on that are held out, of padding counted, and of an epoch's last short step taken for a whole one."""
    recipe = tiny_recipe(tmp_path, "lora", ("training.epochs=1.5", "training.max_steps=null"))
    planned = schedule(recipe)
    train(recipe, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run-lora" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "train/tokens" in line][-1]
    assert (planned.steps, planned.tokens, planned.documents) == (last["step"], last["train/tokens"], 18)
    assert not planned.is_bound


def test_rows_are_counted_where_the_tokenizer_is_not_here(tmp_path, monkeypatch):
    """Dies of a weight forgotten, and of a bound that is none."""
    recipe = tiny_recipe(tmp_path, "lora", ("data.train.0.weight=1.5", "data.validation.rows=0"))
    exact = schedule(recipe)
    monkeypatch.setattr(module, "local_tokenizer", lambda *_, **__: None)
    bound = schedule(recipe)
    assert (bound.documents, bound.steps) == (exact.documents, exact.steps) == (36, 3)
    assert bound.is_bound and bound.tokens == 3 * 4 * 64 > exact.tokens and "tokenizer" in bound.remark


def test_rows_that_are_not_here(tmp_path):
    """Dies of a plan that fails for want of data, and of one that names no reason."""
    recipe = tiny_recipe(tmp_path, "lora")
    (tmp_path / "train.jsonl").unlink()
    assert schedule(recipe).steps == 3 and "train.jsonl" in schedule(recipe).remark
