"""Which rows an evaluation measures."""

import json

import datasets
import pytest
from tiny_runs import tiny_recipe

from dorakit import evaluate
from dorakit.data.tokens import encode
from dorakit.errors import RunError
from dorakit.evaluation.task import rows_to_measure
from dorakit.model.tiny import tiny_tokenizer


def rows(count, word):
    return [{"prompt": f"{word} {i} =", "completion": f" {i}"} for i in range(count)]


def save_splits(directory, **splits):
    """A saved DatasetDict whose rows name their split."""
    made = {name: datasets.Dataset.from_list(rows(count, name)) for name, count in splits.items()}
    datasets.DatasetDict(made).save_to_disk(directory)


@pytest.fixture
def recipe(tmp_path):
    """Load the small recipe with overrides; its data root is the test's directory."""
    return lambda *overrides: tiny_recipe(tmp_path, "lora", overrides)


def test_held_out_rows_of_two_splits_of_one_path(recipe, tmp_path):
    """Planted bug caught: rows looked up by path and index, which the other split has too."""
    save_splits(tmp_path / "dd", one=20, two=20)
    sources = "[{path: dd, format: completion, split: one}, {path: dd, format: completion, split: two}]"
    plan = recipe(f"data.train={sources}", "evaluation.path=null", "data.validation.rows=9")
    encoded = encode(plan.data, tiny_tokenizer(), seed=plan.training.seed)
    expected = [document.input_ids.tolist() for document in encoded.validation]
    measured = rows_to_measure(plan, tiny_tokenizer())
    assert [document.input_ids.tolist() for document in measured.documents] == expected
    asked = {question.text for question in measured.questions}
    assert len(asked) == measured.num_rows == 9
    assert {text.split()[0] for text in asked} == {"one", "two"}


@pytest.mark.parametrize("change", ["training.seed=7", "data.validation.rows=5", "data.max_seq_len=16"])
def test_validation_rows_that_training_did_not_hold_out_are_refused(trained, change):
    """Planted bug caught: rows drawn again by another seed or recipe, most of which were trained on."""
    run = trained("lora")
    before = run.read("run.json")["data"]["fingerprint"]
    with pytest.raises(RunError, match=rf"changed since training(.|\n)*then {before}\n  now  (.|\n)*--data FILE"):
        evaluate(run, recipe=run.recipe_with(["evaluation.path=null", change]), quiet=True)


def test_validation_rows_of_a_file_that_changed_are_refused(run_of, tmp_path):
    run = run_of("lora")
    unchanged = run.recipe_with(["evaluation.path=null"])
    assert evaluate(run, recipe=unchanged, quiet=True)["notes"] == []
    changed = tmp_path / "train.jsonl"
    changed.write_text("".join(json.dumps(row) + "\n" for row in rows(24, "other")))
    with pytest.raises(RunError, match="changed since training"):
        evaluate(run, recipe=run.recipe_with(["evaluation.path=null", f"data.root={tmp_path}"]), quiet=True)


def test_what_cannot_be_checked_is_said(run_of):
    """A run of before fingerprints, and a template that gives other tokens every day."""
    run = run_of("lora")
    recipe = run.recipe_with(["evaluation.path=null"])
    run.update(data={})
    (note,) = evaluate(run, recipe=recipe, quiet=True)["notes"]
    assert note.endswith("held out is not known: its run.json has no fingerprint of the data")
    run.update(data={"fingerprint": "of yesterday"})
    dated = tiny_tokenizer()
    dated.chat_template = "{{ strftime_now('%d') }}{% for m in messages %}{{ m['content'] }}{% endfor %}<|im_end|>"
    chat = (
        "[{path: train.jsonl, format: instruction, prompt: chat, columns: {instruction: prompt, output: completion}}]"
    )
    recipe = run.recipe_with(["evaluation.path=null", f"data.train={chat}", "data.train_on=all"])
    (note,) = rows_to_measure(recipe, dated, run=run).notes
    assert "the chat template writes today's date" in note
