"""Answers: to the questions of test rows, judged, and to prompts typed by a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dorakit.errors import DataError, UsageError
from dorakit.evaluation.metrics import Judge, proportion
from dorakit.evaluation.sampling import Sampling, sampled_ids
from dorakit.interruptions import explain_out_of_memory
from dorakit.progress import progress, say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dorakit.data.tokens import Question
    from dorakit.recipe.schema import Recipe
    from dorakit.target import Target


@dataclass(frozen=True)
class Prediction:
    """One answered question. `finished` is False where max_new_tokens cut the answer off; `log_likelihoods` is of each
    option where the answer was chosen and not generated.
    """

    row: str
    prompt: str
    answer: str
    generated: str
    expected: str
    parsed: str | None
    correct: bool
    finished: bool
    log_likelihoods: dict[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    judge: Judge,
    *,
    max_new_tokens: int,
    batch_size: int,
    quiet: bool = False,
) -> list[Prediction]:
    """Answer greedily and judge each answer.

    Raises:
        DataError: An expected answer that cannot be judged; found before anything is generated.
    """
    from dorakit.model.generate import generate_ids

    for question in questions:
        judge(question.answer, "", question.row)
    with progress("answers", len(questions), quiet=quiet) as tell:
        answers = generate_ids(
            model,
            tokenizer,
            [question.prompt_ids for question in questions],
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=tell,
        )
    return [
        judged(question, ids, tokenizer, judge, max_new_tokens=max_new_tokens)
        for question, ids in zip(questions, answers, strict=True)
    ]


def judged(
    question: Question,
    ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    judge: Judge,
    *,
    max_new_tokens: int,
) -> Prediction:
    """The generated ids as a judged answer; as many ids as were allowed are a cut-off one."""
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    verdict = judge(question.answer, text, question.row)
    return Prediction(
        row=question.row,
        prompt=question.text,
        answer=question.answer,
        generated=text,
        expected=verdict.expected,
        parsed=verdict.parsed,
        correct=verdict.correct,
        finished=len(ids) < max_new_tokens,
    )


def summary(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Accuracy with its standard error, and how many answers held nothing to compare or were cut off."""
    accuracy, error = proportion(sum(p.correct for p in predictions), len(predictions))
    return {
        "accuracy": accuracy,
        "accuracy_standard_error": error,
        "correct": sum(p.correct for p in predictions),
        "answered": len(predictions),
        "unparsed": sum(p.parsed is None for p in predictions),
        "unfinished": sum(not p.finished for p in predictions),
    }


@explain_out_of_memory("smaller: fewer prompts at once, a lower --max-new-tokens")
def answer_prompts(
    target: str,
    prompts: Sequence[str],
    *,
    compare: bool = False,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 42,
    system: str | None = None,
    raw: bool = False,
    base_model: str | None = None,
    accept_changes: Sequence[str] = (),
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Answer prompts with what `target` names.

    Args:
        target: Anything that `open_target` takes.
        prompts: Texts, asked as the training rows ask where a recipe is known; else one user turn each where the
            tokenizer has a chat template.
        compare: Answer with the base too: the adapter switched off, or the base that a run in mode full began with.
        max_new_tokens: Tokens an answer at most.
        temperature: 0 is greedy; above, answers are drawn one after the other.
        seed: Of the draws.
        system: A system turn before each prompt.
        raw: Give the prompts as they are.
        base_model: Base of an adapter directory, instead of the one that it names.
        accept_changes: Files of the target that may have changed since they were written, each DIRECTORY/FILE.
        quiet: Print nothing.

    Returns:
        One object per prompt: prompt, text, and base_text with `compare`.

    Raises:
        UsageError: A prompt that is no text, `system` without a chat template or for a run on other rows than chats, or
            `compare` of a model that has no base.
    """
    from dorakit.adapters.attach import base_only
    from dorakit.data.turns import is_encodable
    from dorakit.target import open_target

    if system is not None and raw:
        raise UsageError("--system goes into the chat template, and --raw leaves the template out; give one of them")
    for flag, text in [*(("--prompt", prompt) for prompt in prompts), ("--system", system or "")]:
        if not is_encodable(text):
            raise UsageError(f"{flag} {text[:60]!r}: not UTF-8 text")
    opened = open_target(target, base_model=base_model, accept_changes=accept_changes)
    if compare and opened.kind == "model":
        raise UsageError(f"--compare: {target} is a whole model, with no base to compare with")
    for line in opened.notes:
        say(line, quiet=quiet)
    ids = _prompt_ids(opened, prompts, system=system, raw=raw, quiet=quiet)
    sampling = Sampling(max_new_tokens, temperature, seed)
    texts = _texts(opened, ids, sampling)
    if not compare:
        return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]
    if opened.adapter is None:
        opened = open_target(target, base_only=True)
        base_texts = _texts(opened, ids, sampling)
    else:
        with base_only(opened.model):
            base_texts = _texts(opened, ids, sampling)
    return [
        {"prompt": prompt, "text": text, "base_text": base}
        for prompt, text, base in zip(prompts, texts, base_texts, strict=True)
    ]


def _texts(target: Target, ids: list[list[int]], sampling: Sampling) -> list[str]:
    from dorakit.model.generate import generate_ids

    if sampling.temperature:
        answers = [sampled_ids(target, prompt, sampling, number=number) for number, prompt in enumerate(ids, start=1)]
    else:
        answers = generate_ids(
            target.model, target.tokenizer, ids, max_new_tokens=sampling.max_new_tokens, batch_size=min(8, len(ids))
        )
    return [str(target.tokenizer.decode(answer, skip_special_tokens=True)) for answer in answers]


def _prompt_ids(
    target: Target, prompts: Sequence[str], *, system: str | None, raw: bool, quiet: bool
) -> list[list[int]]:
    """As the training rows ask where a recipe is known, else a user's turn, else the text itself."""
    from dorakit.data.asked import encode_asked
    from dorakit.data.encoder import Encoder

    tokenizer = target.tokenizer
    ready_template_(target)  # also for `raw`: generation looks up in the template which token ends a turn
    if target.recipe is not None and system is None and not raw:
        return encode_asked(list(prompts), target.recipe.data, tokenizer, place="--prompt")
    if system is not None:
        check_system(target)
    if raw or not tokenizer.chat_template:
        if not raw:
            say("the tokenizer has no chat template: prompts are given as they are", quiet=quiet)
        return [ids.tolist() for ids in Encoder(tokenizer).beginnings(list(prompts))]
    turns = [] if system is None else [{"role": "system", "content": system}]
    hint = "--raw leaves the template out"
    return [template_ids(tokenizer, [*turns, {"role": "user", "content": prompt}], hint) for prompt in prompts]


def ready_template_(target: Target) -> None:
    """Give the tokenizer the chat template of the recipe, where there is one, and try it.

    Raises:
        DataError: It cannot be used.
    """
    from dorakit.data.chat import install_template_, try_template_of

    data = None if target.recipe is None else target.recipe.data
    if data is not None:
        install_template_(target.tokenizer, data)
    try_template_of(target.tokenizer, data)


def check_system(target: Target) -> None:
    """Refuse a system message that the target has no place for.

    Raises:
        UsageError: The rows it was trained on are no chats, or there is no chat template.
    """
    if target.recipe is not None and not asks_in_turns(target.recipe):
        raise UsageError(
            f"--system: {target.name} was trained on rows of format {target.recipe.data.train[0].format}, which have no "
            "system turn\n  write the text into the prompt, or leave it out"
        )
    if not target.tokenizer.chat_template:
        raise UsageError(f"--system: the tokenizer of {target.name} has no chat template to put it into")


def asks_in_turns(recipe: Recipe) -> bool:
    """Whether the rows that a recipe trains on first go through the chat template."""
    source = recipe.data.train[0]
    return source.format == "chat" or source.prompt == "chat"


def template_ids(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]], hint: str) -> list[int]:
    """Ids of turns in the chat template, up to where the assistant's answer begins.

    Raises:
        DataError: The template refuses these turns; the message ends with the hint.
    """
    from dorakit.data.encoder import Encoder

    try:
        text = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template raises what it likes
        raise DataError(f"the chat template refuses this prompt: {error}\n  {hint}") from None
    return [int(number) for number in Encoder(tokenizer).texts([str(text)])[0]]
