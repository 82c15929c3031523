"""Deterministic generation in batches: greedy, or the best of some beams.

The greedy loop is ours, and rows leave it when they are done, because in transformers' `generate` a batch lasts as long
as its longest answer; cache, masks and positions are transformers' own. Beams, and models that keep another state than
keys and values, go through `generate`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from dorakit.errors import ModelError
from dorakit.model.load import input_device
from dorakit.model.stops import stop_token_ids
from dorakit.words import counted


def generate_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    num_beams: int = 1,
    progress: Callable[[int], None] | None = None,
    stop_ids: Iterable[int] | None = None,
) -> list[list[int]]:
    """Continue each prompt until a stop token or `max_new_tokens`, greedily or by beam search.

    Prompts are batched by length, longest first, so that a batch that does not fit in memory fails at once. The model's
    own generation_config (sampling, penalties) plays no part.

    Args:
        model: Any causal model; adapters may be attached. Its training state is as before on return.
        tokenizer: Gives the padding token.
        prompts: Token ids, at least one each.
        max_new_tokens: New tokens a prompt at most.
        batch_size: Prompts a batch.
        num_beams: 1 is greedy; with more, the finished beam of the highest mean log-probability per token is the answer.
        progress: Called after each batch with the number of prompts done so far.
        stop_ids: Tokens that end an answer; None for those of model/stops.py.

    Returns:
        The new ids of each prompt, in the order given, without the stop token. One of length `max_new_tokens` did not
        come to an end.

    Raises:
        ModelError: A prompt is empty, or longer than the model's positions allow.
    """
    stops = sorted(stop_token_ids(tokenizer, model.generation_config) if stop_ids is None else set(stop_ids))
    check_prompts(model, prompts, max_new_tokens)
    pad_id = tokenizer.pad_token_id
    if pad_id is None:
        pad_id = stops[0] if stops else 0
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    answers: list[list[int]] = [[] for _ in prompts]
    answer = _greedy if num_beams == 1 and has_plain_cache(model) else partial(_generate, num_beams=num_beams)
    with ready_to_generate(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            width = len(prompts[chosen[0]])
            ids = torch.full((len(chosen), width), pad_id)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(chosen):
                ids[row, width - len(prompts[index]) :] = torch.tensor(prompts[index])
                mask[row, width - len(prompts[index]) :] = 1
            ids, mask = ids.to(input_device(model)), mask.to(input_device(model))
            for index, new in zip(chosen, answer(model, ids, mask, max_new_tokens, stops, pad_id), strict=True):
                answers[index] = _until_stop(new, stops)
            if progress is not None:
                progress(start + len(chosen))
    return answers


def has_plain_cache(model: PreTrainedModel) -> bool:
    """Whether the model keeps keys and values, and nothing else, of what it has read."""
    layers = DynamicCache(config=model.config).layers
    return bool(
        model._supports_default_dynamic_cache()
        and model._supports_logits_to_keep()
        and "past_key_values" in inspect.signature(model.forward).parameters
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    )


@torch.no_grad()  # not inference_mode: what adapters cache must stay fit for training
def _greedy(
    model: PreTrainedModel, ids_BT: Tensor, mask_BT: Tensor, max_new_tokens: int, stops: list[int], pad_id: int
) -> list[list[int]]:
    """New ids of each left-padded row, a stop token included."""
    cache = DynamicCache(config=model.config)
    answers: list[list[int]] = [[] for _ in ids_BT]
    rows = list(range(len(ids_BT)))
    positions_BT = (mask_BT.cumsum(dim=-1) - 1).clamp_min_(0)
    while True:
        logits = model(
            input_ids=ids_BT,
            # Without padding no mask is needed, and transformers takes its fast path.
            attention_mask=None if bool(mask_BT.all()) else mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            # An index and not 1: of a slice torch makes a product per row, with a copy of the head's weight for each.
            logits_to_keep=torch.tensor([ids_BT.shape[1] - 1], device=ids_BT.device),
        ).logits
        chosen_B = logits[:, -1].argmax(dim=-1)
        chosen = chosen_B.tolist()
        for row, token in zip(rows, chosen, strict=True):
            answers[row].append(token)
        kept = [place for place, token in enumerate(chosen) if token not in stops]
        if not kept or len(answers[rows[kept[0]]]) == max_new_tokens:
            return answers
        if len(kept) < len(rows):
            rows = [rows[place] for place in kept]
            which = torch.tensor(kept, device=chosen_B.device)
            cache.batch_select_indices(which)
            chosen_B, mask_BT, positions_BT = chosen_B[which], mask_BT[which], positions_BT[which]
        ids_BT = chosen_B[:, None]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), 1)], dim=-1)
        positions_BT = positions_BT[:, -1:] + 1


def _generate(
    model: PreTrainedModel,
    ids_BT: Tensor,
    mask_BT: Tensor,
    max_new_tokens: int,
    stops: list[int],
    pad_id: int,
    *,
    num_beams: int,
) -> list[list[int]]:
    """The same through transformers, of any number of beams; rows that are done are padded up to the longest."""
    form = GenerationConfig(
        do_sample=False,
        num_beams=num_beams,
        num_return_sequences=1,
        # With beams: the sum of a beam's log-probabilities is divided by its length, and a row goes on while a beam that
        # is not finished could still win.
        length_penalty=1.0,
        early_stopping=False,
        max_new_tokens=max_new_tokens,
        use_cache=True,
        eos_token_id=stops or None,
        pad_token_id=pad_id,
    )
    read = {}
    if num_beams > 1 and ids_BT.shape[1] > 1 and has_plain_cache(model):
        # transformers would read the prompt once per beam.
        read["past_key_values"] = _read_but_last(model, ids_BT, mask_BT)
        read["past_key_values"].batch_repeat_interleave(num_beams)
    output = model.generate(ids_BT, attention_mask=mask_BT, generation_config=form, **read)
    new: list[list[int]] = output[:, ids_BT.shape[1] :].tolist()
    return new


@torch.no_grad()
def _read_but_last(model: PreTrainedModel, ids_BT: Tensor, mask_BT: Tensor) -> DynamicCache:
    """Keys and values of left-padded rows, of all but the last token."""
    cache = DynamicCache(config=model.config)
    model(
        input_ids=ids_BT[:, :-1],
        attention_mask=mask_BT[:, :-1],
        position_ids=(mask_BT.cumsum(dim=-1) - 1).clamp_min_(0)[:, :-1],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return cache


def check_prompts(model: PreTrainedModel, prompts: list[list[int]], max_new_tokens: int) -> None:
    """Refuse prompts that the model cannot continue.

    Raises:
        ModelError: One is empty, or longer than the model's positions allow.
    """
    if any(not prompt for prompt in prompts):
        raise ModelError(f"prompt {[bool(p) for p in prompts].index(False) + 1} holds no token: nothing to continue")
    positions = num_positions(model)
    longest = max(map(len, prompts), default=0)
    if positions is not None and longest + max_new_tokens > positions:
        raise ModelError(
            f"a prompt of {counted(longest, 'token')} and {max_new_tokens} new ones exceed the model's {positions} positions\n"
            "  lower max_new_tokens or shorten the prompt"
        )


def num_positions(model: PreTrainedModel) -> int | None:
    """How many tokens, prompt and answer together, the model was made for; None where its config states no limit."""
    positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions


def _until_stop(ids: list[int], stops: list[int]) -> list[int]:
    for place, token in enumerate(ids):
        if token in stops:
            return ids[:place]
    return ids


@contextlib.contextmanager
def ready_to_generate(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode and a neutral generation_config, which would otherwise fill whatever ours leaves open."""
    was_training = model.training
    own, model.generation_config = model.generation_config, GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        model.generation_config = own
        model.train(was_training)
