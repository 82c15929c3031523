"""What is scored is what is trained: whoever learnt the training text perfectly is judged right, or the metric is refused."""

import json

import pytest
from tiny_runs import tiny_recipe
from typer.testing import CliRunner

from dorakit import Recipe
from dorakit.cli.app import app
from dorakit.data.formats import read_samples
from dorakit.data.sources import Row
from dorakit.data.tokens import Question
from dorakit.errors import DataError
from dorakit.evaluation.likelihood import choose_options
from dorakit.evaluation.metrics import judge_of
from dorakit.evaluation.task import rows_to_measure
from dorakit.evaluation.taught import check_taught, expected_of, in_one_frame
from dorakit.model.load import load_base
from dorakit.model.tiny import tiny_tokenizer
from dorakit.recipe.schema import EvaluationSection, SourceSection

TAUGHT, OTHER = "the correct answer is true", "the correct answer is false"
FORMS = {
    "completion": {"prompt": "Is it? ", "completion": TAUGHT},
    "instruction": {"instruction": "Is it?", "output": TAUGHT},
    "chat": {"messages": [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": TAUGHT}]},
}
BOOLEAN = {"metric": "option_likelihood", "options": ["true", "false"]}
SENTENCES = {"metric": "option_likelihood", "options": [TAUGHT, OTHER]}


def samples(form, **more):
    source = SourceSection(path="rows.jsonl", format=form)
    return read_samples([Row({**FORMS[form], **more}, "rows.jsonl:1")], source, evaluation=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("section", [BOOLEAN, SENTENCES], ids=["words", "sentences"])
def test_candidates_are_what_training_writes(tmp_path, form, section):
    """LLM-Adapters' rows: an answer of one word beside the sentence that is taught. Planted bugs caught: "true" and "false"
    scored, which the model never learnt to write; sentences as options found in no answer.
    """
    (tmp_path / "test.jsonl").write_text(json.dumps({**FORMS[form], "answer": "true"}) + "\n")
    plan = tiny_recipe(tmp_path, "lora", (
        f"data.train=[{{path: test.jsonl, format: {form}}}]", "evaluation.metric=option_likelihood",
        f"evaluation.options={json.dumps(section['options'])}",
    ))  # fmt: skip
    (tmp_path / "test.jsonl").write_text(json.dumps({**FORMS[form], "answer": "true"}) + "\n")
    base = load_base("tiny:llama", dtype="float32")
    questions = rows_to_measure(plan, tiny_tokenizer()).questions
    judge = judge_of(plan.evaluation)
    how = {"options": plan.evaluation.options, "batch_size": 2, "quiet": True}
    (prediction,) = choose_options(base.model, base.tokenizer, questions, judge, **how)
    assert prediction.generated in (TAUGHT, OTHER)
    assert prediction.correct == (prediction.generated == TAUGHT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("section", "answer", "fits"),
    [
        (BOOLEAN, "true", True),
        (BOOLEAN, "false", False),
        (SENTENCES, "true", True),
        ({"metric": "option", "options": ["true", "false"]}, "true", True),
        ({"metric": "exact_match"}, None, True),
        ({"metric": "exact_match"}, "true", False),
        ({"metric": "last_number"}, "7", False),
        ({"metric": "none"}, "7", True),
    ],
)
def test_what_is_taught_is_judged_right_or_refused(form, section, answer, fits):
    """Planted bug caught: exact_match against an answer column beside the sentence that is taught, which is always 0 %."""
    section, rows = EvaluationSection(**section), samples(form, **({} if answer is None else {"answer": answer}))
    if fits:
        assert check_taught(rows, section) == []
        assert section.metric == "none" or judge_of(section)(expected_of(rows[0], section), TAUGHT, "").correct
        return
    with pytest.raises(
        DataError, match=rf"{section.metric} would judge every answer wrong .* rows.jsonl:1 teaches '{TAUGHT}'"
    ):
        check_taught(rows, section)


def test_some_rows_that_teach_another_answer_are_counted():
    rows = [*samples("completion", answer="true"), *samples("completion", answer="false")]
    (note,) = check_taught(rows, EvaluationSection(**BOOLEAN))
    assert note.startswith("1 of 2 rows teach an answer that option_likelihood judges wrong, the first: rows.jsonl:1")


def test_validate_says_it_before_anything_is_trained(tmp_path):
    """Planted bug caught: found by the first evaluation, after hours of training."""
    tiny_recipe(tmp_path, "lora")
    (tmp_path / "test.jsonl").write_text(
        json.dumps({"prompt": "1 + 1 =", "completion": " it is 2", "answer": "2"}) + "\n"
    )
    asked = ["validate", str(tmp_path / "lora.yaml")]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 2 and "evaluation.metric" in refused.stderr and "teaches ' it is 2'" in refused.stderr
    maybe = [*asked, "--set", "evaluation.metric=option", "--set", 'evaluation.options=["2", "maybe"]']
    assert "no training row that was read teaches 'maybe'" in CliRunner().invoke(app, maybe).stdout


def test_a_think_block_of_the_template_is_part_of_what_is_scored(tmp_path):
    """As Qwen3's template writes the newest answer. Planted bug caught: the bare answer scored, which never follows so."""
    template = (
        "{% for m in messages %}{{ '<' + m['role'] + '>' }}{% if m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}"
        "{% endif %}{{ m['content'] + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )
    tiny_recipe(tmp_path, "lora")
    (tmp_path / "template.jinja").write_text(template)
    (tmp_path / "test.jsonl").write_text(json.dumps({**FORMS["chat"], "answer": "true"}) + "\n")
    plan = Recipe.from_yaml(str(tmp_path / "lora.yaml"), [
        "data.train=[{path: test.jsonl, format: chat}]", f"data.chat_template={tmp_path}/template.jinja",
        "evaluation.metric=option", "evaluation.options=[\"true\", \"false\"]",
    ])  # fmt: skip
    (question,) = rows_to_measure(plan, tiny_tokenizer()).questions
    assert question.reply == f"<think>\n\n</think>\n\n{TAUGHT}" and question.text.endswith("<assistant>")


def question(reply, answer="B"):
    return Question([5], answer, "a.jsonl:1", "Which? A or B", reply)


def test_reasoning_of_the_rows_is_not_scored():
    """Planted bug caught: the row's own reasoning in front of every candidate, which gives the answer away."""
    section = EvaluationSection(metric="option_likelihood", options=["A", "B"])
    same = [question("<think>\n\n</think>\n\nB"), question("<think>\n\n</think>\n\nA", "A")]
    assert in_one_frame(same, section) == (same, [])
    reasoned = [question("<think>A is wrong, so B</think>B"), question("<think>so A</think>A", "A")]
    bare, (line,) = in_one_frame(reasoned, section)
    assert [one.reply for one in bare] == ["", ""] and "the bare answers are scored" in line
