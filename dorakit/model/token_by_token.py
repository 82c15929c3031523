"""One answer, handed over token by token while it is made: greedy, or drawn at a temperature.

It goes through transformers' `generate`: with one row, the loop in model/generate.py has nothing to gain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from dorakit.model.generate import check_prompts, ready_to_generate
from dorakit.model.stops import stop_token_ids


def stream_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[int],
    *,
    max_new_tokens: int,
    take: Callable[[int], None],
    is_stopped: Callable[[], bool],
    temperature: float = 0.0,
) -> list[int]:
    """Continue one prompt and hand over each token as soon as it is chosen.

    Args:
        model: Any causal model; adapters may be attached. Its training state is as before on return.
        tokenizer: Gives the padding token.
        prompt: Token ids, at least one.
        max_new_tokens: New tokens at most.
        take: Called with each new id, in order; never with the stop token.
        is_stopped: Asked after each token; true ends the answer there.
        temperature: 0 is greedy. Above, ids are drawn from the whole softmax of logits / temperature, with torch's own
            generator: its seed is the caller's.

    Returns:
        What `take` was given. An answer of `max_new_tokens` ids did not come to an end.

    Raises:
        ModelError: The prompt is empty, or longer than the model's positions allow.
    """
    stops = sorted(stop_token_ids(tokenizer, model.generation_config))
    check_prompts(model, [prompt], max_new_tokens)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (stops or [0])[0]
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    )
    form = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=stops or None, pad_token_id=pad_id, **sampling)
    ids_BT = torch.tensor([prompt], device=model.device)
    streamer = _Streamer(stops, take)
    with ready_to_generate(model):
        model.generate(
            ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            generation_config=form,
            streamer=streamer,
            stopping_criteria=[lambda ids, _, **__: torch.full((len(ids),), is_stopped(), device=ids.device)],
        )
    return streamer.ids


class _Streamer:
    """What transformers' generate hands the prompt and then each new token to."""

    def __init__(self, stops: list[int], take: Callable[[int], None]):
        self.ids: list[int] = []
        self._stops = stops
        self._take = take
        self._is_prompt = True

    def put(self, value: Tensor) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        for token in value.flatten().tolist():
            if token not in self._stops:
                self.ids.append(token)
                self._take(token)

    def end(self) -> None:
        """Nothing is held back here."""
