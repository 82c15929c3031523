"""How an answer is chosen: greedily, or drawn at a temperature. `chat` and `generate` share it, and so draw alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dorakit.target import Target


@dataclass(frozen=True)
class Sampling:
    """Greedy at temperature 0; above, drawn by the seed and the number of the prompt, from 1."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 42


def sampled_ids(
    target: Target,
    prompt: list[int],
    sampling: Sampling,
    *,
    number: int,
    take: Callable[[int], None] = lambda _: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> list[int]:
    """Continue one prompt, token by token; see `stream_ids`. The same number draws the same tokens again."""
    from dorakit.model.token_by_token import stream_ids
    from dorakit.training.device import seed_draws

    seed_draws(sampling.seed, "chat", number)
    return stream_ids(
        target.model,
        target.tokenizer,
        prompt,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        take=take,
        is_stopped=is_stopped,
    )
