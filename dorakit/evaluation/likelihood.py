"""Answers by likelihood: of several texts that could follow a prompt, the one that the model gives most probability."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import Cache, DynamicCache

from dorakit.data.encoder import Encoder
from dorakit.evaluation.generation import Prediction
from dorakit.evaluation.metrics import Judge, option_in, option_pattern
from dorakit.model.generate import check_prompts, has_plain_cache
from dorakit.model.logits import Logits
from dorakit.model.tasks import CAUSAL_LM
from dorakit.parallel.world import ALONE, World
from dorakit.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dorakit.data.tokens import Question


# Of the prompts' tokens, what part must be common to be read once.
_WORTH = 0.2


def choose_options(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    judge: Judge,
    *,
    options: list[str],
    batch_size: int,
    quiet: bool = False,
    keep: Callable[[int, Prediction], None] | None = None,
    world: World = ALONE,
) -> list[Prediction]:
    """Choose for each question the likeliest among what training teaches, with each option in the place of the right one.

    Of a question without such a text, or whose text names another option first, it is the expected answer.

    Only options that the prompt itself names are candidates, where it names the right one: "answer5" is none where four
    answers are given. `keep` receives the number of a question and its prediction, as soon as there is one. Every rank of
    `world` gives all questions, does its part, and gets all predictions.

    Raises:
        DataError: An expected answer that holds no option.
        ModelError: A prompt longer than the model's positions allow.
    """
    pattern = option_pattern(options)
    rights = [judge(question.answer, "", question.row).expected for question in questions]
    offered = []
    for question, right in zip(questions, rights, strict=True):
        named = set(pattern.findall(question.text))
        offered.append([option for option in options if option in named] if right in named else options)
    texts = []
    for question, right, some in zip(questions, rights, offered, strict=True):
        written, first = question.reply, option_in(question.reply, pattern)
        if first is None or first.group() != right:
            written, first = question.answer, option_in(question.answer, pattern)
        assert first is not None  # the judge has found one
        texts.append([written[: first.start()] + option + written[first.end() :] for option in some])
    encoded = iter(Encoder(tokenizer).continuations([text for some in texts for text in some]))
    candidates = [[next(encoded).tolist() for _ in some] for some in texts]

    def chosen(number: int, scores: Sequence[float]) -> Prediction:
        question, some = questions[number], offered[number]
        best = max(range(len(some)), key=scores.__getitem__)
        return Prediction(
            row=question.row,
            prompt=question.text,
            answer=question.answer,
            generated=texts[number][best],
            expected=rights[number],
            parsed=some[best],
            correct=some[best] == rights[number],
            finished=True,
            log_likelihoods={option: round(score, 6) for option, score in zip(some, scores, strict=True)},
        )

    found = log_likelihoods(
        model,
        [question.prompt_ids for question in questions],
        candidates,
        batch_size=batch_size,
        quiet=quiet,
        world=world,
        scored=None if keep is None else lambda number, scores: keep(number, chosen(number, scores)),
    )
    return [chosen(number, scores) for number, scores in enumerate(found)]


def log_likelihoods(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    candidates: Sequence[Sequence[list[int]]],
    *,
    batch_size: int,
    quiet: bool = False,
    scored: Callable[[int, list[float]], None] | None = None,
    world: World = ALONE,
) -> list[list[float]]:
    """Log p(candidate | prompt), natural logarithm, summed over the candidate's tokens, for each candidate of each prompt.

    Candidates of one prompt that differ in their last token alone share a row, what all prompts begin with is read once,
    and logits are computed only where a candidate's token follows.

    Args:
        model: Any causal model; its training state is as before on return.
        prompts: Token ids, at least one each.
        candidates: For each prompt, token ids of what could follow, at least one each.
        batch_size: Rows a forward pass.
        quiet: No progress bar.
        scored: Called with a prompt's number and its results after the forward pass that completes them.
        world: Its ranks share the forward passes out, which are those of one process, and all have all results.
    """
    rows: dict[tuple[int, tuple[int, ...]], list[tuple[int, int]]] = {}
    for number, some in enumerate(candidates):
        for place, ids in enumerate(some):
            rows.setdefault((number, tuple(ids[:-1])), []).append((place, ids[-1]))
    check_prompts(model, [[*prompts[number], *begun] for number, begun in rows], 1)
    result = [[0.0] * len(some) for some in candidates]
    missing = Counter(number for number, _ in rows)
    order = sorted(rows, key=lambda key: -len(prompts[key[0]]) - len(key[1]))
    was_training = model.training
    model.eval()
    logits = Logits(model)
    common = _common_beginning(model, prompts)
    past = _read(model, common) if common else None
    skipped = len(common)

    def of_batch(chosen: Sequence[tuple[int, tuple[int, ...]]]) -> list[tuple[int, int, float]]:
        """(number, place, result) of each candidate of these rows."""
        width = len(prompts[chosen[0][0]]) + len(chosen[0][1]) - skipped
        input_ids = torch.zeros(len(chosen), width, dtype=torch.long)
        keep = torch.zeros(len(chosen), width, dtype=torch.bool)
        for row, (number, begun) in enumerate(chosen):
            end = len(prompts[number]) + len(begun) - skipped
            input_ids[row, :end] = torch.tensor([*prompts[number][skipped:], *begun])
            keep[row, len(prompts[number]) - 1 - skipped : end] = True
        positions = torch.arange(skipped, skipped + width).expand_as(input_ids)
        inputs = {"input_ids": input_ids, "position_ids": positions}
        logits_NV = logits.at(inputs, keep, _for_rows(past, len(chosen)))
        log_total_N = logits_NV.logsumexp(dim=-1)
        found: list[tuple[int, int, float]] = []
        at = 0
        for number, begun in chosen:
            shared = sum(float(logits_NV[at + i, token] - log_total_N[at + i]) for i, token in enumerate(begun))
            at += len(begun)
            for place, token in rows[number, begun]:
                found.append((number, place, shared + float(logits_NV[at, token] - log_total_N[at])))
            at += 1
        return found

    batches, done = [order[start : start + batch_size] for start in range(0, len(order), batch_size)], 0
    with progress("likelihoods", len(order), quiet=quiet) as tell:
        for a_round in world.in_rounds(batches, of_batch):
            for chosen, found in a_round:
                for number, place, score in found:
                    result[number][place] = score
                for number, _ in chosen:
                    missing[number] -= 1
                    if scored is not None and not missing[number]:
                        scored(number, result[number])
                done += len(chosen)
            tell(done)
    model.train(was_training)
    return result


def _common_beginning(model: PreTrainedModel, prompts: Sequence[list[int]]) -> list[int]:
    """What all prompts begin with, if it can be read once and is worth it.

    The last token of each is left out: its logits are needed. A short beginning is not worth the mask that the rest then
    needs, and rotations that depend on the length of the row differ between beginning and rest.
    """
    rotation = str(getattr(model.config.get_text_config(), "rope_parameters", ""))
    if not has_plain_cache(model) or "longrope" in rotation or "dynamic" in rotation:
        return []
    shortest = min(prompts, key=len, default=[])[:-1]
    equal = (len({prompt[place] for prompt in prompts}) == 1 for place in range(len(shortest)))
    common = [token for token, _ in zip(shortest, itertools.takewhile(bool, equal), strict=False)]
    return common if len(common) * len(prompts) >= _WORTH * sum(map(len, prompts)) else []


@torch.no_grad()
def _read(model: PreTrainedModel, ids: list[int]) -> Cache:
    """Keys and values of one row."""
    cache = DynamicCache(config=model.config)
    CAUSAL_LM.backbone(model)(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True)
    return cache


def _for_rows(past: Cache | None, rows: int) -> Cache | None:
    """A copy for so many rows."""
    if past is not None:
        past = copy.deepcopy(past)
        past.batch_repeat_interleave(rows)
    return past
