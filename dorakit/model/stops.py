"""The tokens that end an answer: one notion for masks, generation, evaluation and everything that is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

_PROBE = "dorakit"
_SYSTEM = {"role": "system", "content": "?"}
_USER = {"role": "user", "content": "?"}
_ANSWER = {"role": "assistant", "content": _PROBE}
_CALL = {
    "role": "assistant",
    "content": "",
    # Some templates (Mistral's) take no other length of an id than nine.
    "tool_calls": [{"type": "function", "id": "dorakit00", "function": {"name": _PROBE, "arguments": {}}}],
}
_TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "?", "parameters": {"type": "object", "properties": {}}},
}


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Every special token: those with a role, and those that tokenizer.json alone marks, as Llama 3's <|eot_id|>."""
    marked = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys(token for token in [*tokenizer.all_special_tokens, *marked] if token))


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, stated: GenerationConfig | None) -> list[int]:
    """Tokens that end an answer: the tokenizer's end of a text, what the chat template ends a turn with, what is stated.

    A stranger's template is tried first (data/trial.py): it is rendered here.

    Args:
        tokenizer: With the chat template of its training.
        stated: What the model came with.
    """
    found = [tokenizer.eos_token_id, *map(tokenizer.convert_tokens_to_ids, _ends_of_turns(tokenizer))]
    listed = getattr(stated, "eos_token_id", None)
    found += listed if isinstance(listed, list) else [listed]
    return list(dict.fromkeys(number for number in found if isinstance(number, int)))


def _ends_of_turns(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The special tokens that the chat template ends the assistant's last turn with: of an answer, and of a tool call."""
    if not tokenizer.chat_template:
        return
    specials = special_tokens(tokenizer)
    rest = _behind_probe(tokenizer, [_USER, _ANSWER]) or _behind_probe(tokenizer, [_SYSTEM, _USER, _ANSWER])
    places = {token: rest.find(token) for token in specials if token in rest}
    if places:  # the first one, and of two that begin there the longer
        yield min(places, key=lambda token: (places[token], -len(token)))
    # What stands behind a call's name may hold marks of the call itself, so that only the very end counts.
    rest = _behind_probe(tokenizer, [_USER, _CALL], tools=[_TOOL]).rstrip()
    yield from sorted((token for token in specials if rest.endswith(token)), key=len)[-1:]


def _behind_probe(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, Any]], **options: Any) -> str:
    """What the template writes behind the probe; nothing where it refuses the turns or leaves the probe out."""
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, **options))
    except Exception:  # a template raises what it likes; one that refuses these turns tells nothing
        return ""
    return text.rpartition(_PROBE)[2] if _PROBE in text else ""
