import itertools

import pytest
import torch

from dorakit.data.tokens import Question
from dorakit.errors import DataError
from dorakit.evaluation.likelihood import choose_options, log_likelihoods
from dorakit.evaluation.metrics import judge_of
from dorakit.model.load import load_base
from dorakit.recipe.schema import EvaluationSection

PROMPTS = [list(range(5, 5 + length)) for length in (3, 9, 1, 20)]
# The first prompt's share a row, the second's differ in length, the third's in their first token, the fourth has one.
CANDIDATES = [[[7, 8, 9], [7, 8, 4]], [[7], [7, 8], [7, 8, 9, 10]], [[3, 8], [4, 8]], [[6]]]


def definition(model, prompt, candidate):
    """No batch, no padding, all logits."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + candidate])).logits[0].float().log_softmax(dim=-1)
    return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(candidate))


@pytest.mark.parametrize(
    ("architecture", "batch_size"),
    # One size for the slow one.
    [*itertools.product(["llama", "qwen2", "gemma2", "mamba"], [1, 3, 16]), ("falcon_h1", 3)],
)
@pytest.mark.parametrize(
    "prompts", [PROMPTS, [[*range(30, 40), *prompt] for prompt in PROMPTS]], ids=["", "alike at first"]
)
def test_batches_of_any_size_give_the_definition(architecture, batch_size, prompts):
    """Planted bugs caught: logits of the token itself instead of the one before; the last token alone; a shared row
    read at another row's place; positions that begin at 0 behind what is read once; its keys those of the batch before."""
    model = load_base(f"tiny:{architecture}", dtype="float32", attention="auto").model
    model.train()
    found = log_likelihoods(model, prompts, CANDIDATES, batch_size=batch_size, quiet=True)
    assert model.training
    model.eval()
    for prompt, candidates, scores in zip(prompts, CANDIDATES, found, strict=True):
        assert scores == pytest.approx([definition(model, prompt, c) for c in candidates], rel=1e-5)


def test_the_likeliest_of_the_options_that_the_prompt_names():
    """Planted bug caught: an option chosen that the question does not offer."""
    base = load_base("tiny:llama", dtype="float32")
    section = EvaluationSection(metric="option_likelihood", options=["answer1", "answer2", "answer3"])
    prompts = ["Answer format: answer1/answer3 ", "Which? "]
    answer = "the correct answer is answer3"
    questions = [Question(list(text.encode()), answer, f"row {i}", text) for i, text in enumerate(prompts)]
    predictions = choose_options(
        base.model, base.tokenizer, questions, judge_of(section), options=section.options, batch_size=8, quiet=True
    )
    for question, prediction, offered in zip(
        questions, predictions, [["answer1", "answer3"], section.options], strict=True
    ):
        ids = {o: base.tokenizer(answer.replace("answer3", o), add_special_tokens=False).input_ids for o in offered}
        scores = {o: definition(base.model.eval(), question.prompt_ids, ids[o]) for o in offered}
        assert prediction.log_likelihoods == pytest.approx(scores, rel=1e-5)
        best = max(scores, key=scores.get)
        assert prediction.parsed == best
        assert prediction.generated == f"the correct answer is {best}"
        assert prediction.correct == (best == "answer3")


def test_an_answer_without_an_option():
    base = load_base("tiny:llama", dtype="float32")
    section = EvaluationSection(metric="option_likelihood", options=["yes", "no"])
    question = Question([5], "perhaps", "rows.jsonl:3", "Is it? ")
    with pytest.raises(DataError, match=r"rows.jsonl:3: the answer 'perhaps' holds none"):
        choose_options(
            base.model, base.tokenizer, [question], judge_of(section), options=section.options, batch_size=1, quiet=True
        )
