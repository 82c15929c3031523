"""Which rows an evaluation measures."""

import json

import datasets
import pytest
from tiny_runs import tiny_recipe

from dorakit import evaluate
from dorakit.data.tokens import encode
from dorakit.errors import DataError, RunError
from dorakit.evaluation.rows import settings_of
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
    assert "the chat template writes the date, and the run did not keep that of its beginning" in note


def asked(recipe, **settings):
    """The first words of the rows measured, in their order, and the notes."""
    measured = rows_to_measure(recipe, tiny_tokenizer(), **settings)
    return [question.text for question in measured.questions], measured.notes


def test_a_data_set_is_measured_on_its_test_split(recipe, tmp_path):
    """Planted bug caught: the training source's split, so that train rows are measured."""
    save_splits(tmp_path / "dd", train=3, validation=4, test=5, extra=2)
    assert {text.split()[0] for text in asked(recipe("evaluation.path=dd"))[0]} == {"test"}
    for settings in ({}, {"data": str(tmp_path / "dd")}):
        plan = recipe("evaluation.path=dd", "evaluation.split=extra")
        assert asked(plan, **settings) == (["extra 0 =", "extra 1 ="], [])
    held_out = ["evaluation.path=null", "data.validation={path: dd}"]
    assert {text.split()[0] for text in asked(recipe(*held_out))[0]} == {"validation"}
    assert len(encode(recipe(*held_out).data, tiny_tokenizer(), seed=1).validation) == 4
    assert {text.split()[0] for text in asked(recipe(*held_out, "data.validation.split=train"))[0]} == {"train"}
    save_splits(tmp_path / "dd", train=3)
    with pytest.raises(DataError, match=r"has no split 'test'; it has train\n.*name one"):
        asked(recipe("evaluation.path=dd"))


def test_offset_and_limit_belong_to_the_recipes_rows(recipe, tmp_path):
    """Planted bugs caught: an offset ignored for validation rows; a limit applied to --data and an offset not."""
    plan = recipe("evaluation.path=null")
    everything, _ = asked(plan)
    assert len(everything) == 6
    assert asked(recipe("evaluation.path=null", "evaluation.offset=2", "evaluation.limit=3"))[0] == everything[2:5]
    with pytest.raises(DataError, match=r"evaluation.offset 6 skips all of the 6 validation rows"):
        asked(recipe("evaluation.path=null", "evaluation.offset=6"))
    of_a_file = recipe("evaluation.path=null", "data.validation={path: test.jsonl}", "evaluation.offset=5")
    assert len(asked(of_a_file)[0]) == 2
    plan = recipe("evaluation.offset=2", "evaluation.limit=3", "evaluation.split=train")
    texts, notes = asked(plan, data=str(tmp_path / "test.jsonl"))
    assert len(texts) == 7
    assert [note.split(" (")[0] for note in notes] == [
        "not read: evaluation.offset 2",
        "not read: evaluation.limit 3",
        "not read: evaluation.split train",
    ]


@pytest.mark.parametrize(("own", "asked_for", "measured"), [(2, 3, 2), (3, 2, 2), (None, 3, 3), (3, None, 3)])
def test_of_two_limits_the_smaller_counts(recipe, own, asked_for, measured):
    """Planted bug caught: the larger one in the settings by which results are told apart."""
    plan = recipe(f"evaluation.limit={'null' if own is None else own}")
    rows = rows_to_measure(plan, tiny_tokenizer(), limit=asked_for)
    assert len(rows.documents) == measured
    assert settings_of(plan, rows, asked_for, of_recipe=True)["limit"] == measured


def test_the_prompt_of_test_rows_is_that_of_validation_rows_too(recipe):
    """Planted bug caught: evaluation.prompt ignored where there is no evaluation.path."""
    form = "{path: train.jsonl, format: instruction, columns: {instruction: prompt, output: completion}}"
    common = [f"data.train=[{form}]", "data.max_seq_len=512", "evaluation.prompt='Q: {instruction} A:'"]
    for held_out in ("{rows: 6}", "{path: test.jsonl}"):
        texts, _ = asked(recipe("evaluation.path=null", f"data.validation={held_out}", *common))
        assert len(texts) in (6, 7) and all(text.startswith("Q: ") and text.endswith(" A:") for text in texts)


def test_results_of_files_of_one_name_stand_side_by_side(run_of, tmp_path):
    """Planted bug caught: the result of piqa/test.jsonl written over that of boolq/test.jsonl."""
    run = run_of("lora")
    recipe = run.recipe_with(["evaluation.metric=none"])

    def output(directory):
        file = tmp_path / directory / "test.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows(2, "row")))
        result = evaluate(run, recipe=recipe, data=str(file), quiet=True)
        assert result["data_path"] == str(file.resolve())
        return result["output"].removeprefix(f"{run.eval}/")

    names = ["adapter-test.json", "adapter-piqa-test.json", "adapter-piqa-test-2.json", "adapter-piqa-test-3.json"]
    places = ["boolq", "piqa", "other/piqa", "third/piqa"]
    assert [output(place) for place in places] == names
    assert [output(place) for place in places] == names
