"""Which rows an evaluation measures."""

import datasets
import pytest
from tiny_runs import tiny_recipe

from dorakit.data.tokens import encode
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
