"""generation_config.json as it goes with a model or an adapter: the base's, and every stop that was trained.

transformers, vLLM, SGLang and Ollama end an answer at what this file lists. None of them asks the chat template.
"""

from __future__ import annotations

import copy
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from dorakit.data.chat import try_template_of
from dorakit.errors import DataError, ModelError
from dorakit.model.configs import read_object
from dorakit.model.stops import stop_token_ids

_FILE = "generation_config.json"


def read_generation_config(directory: Path) -> GenerationConfig | None:
    """The one in a directory; None where there is none.

    Raises:
        ModelError: It cannot be read.
    """
    path = directory / _FILE
    if not path.is_file():
        return None
    try:
        return GenerationConfig.from_dict(read_object(path))
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} cannot be used: {str(error).splitlines()[0]}") from None


def write_generation_config(
    directory: Path, stated: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Write what the model came with, its list of stops completed; lines to print."""
    written = copy.deepcopy(stated) if stated is not None else GenerationConfig()
    stops, notes = tried_stops(tokenizer, stated)
    written.eos_token_id = stops if len(stops) != 1 else stops[0]
    # Not save_pretrained, which refuses what some models ship (a temperature without sampling).
    written.to_json_file(directory / _FILE)
    return notes


def tried_stops(tokenizer: PreTrainedTokenizerBase, stated: GenerationConfig | None) -> tuple[list[int], list[str]]:
    """`stop_token_ids` after a trial of the chat template, without one that cannot be used; a line that says so."""
    try:
        try_template_of(tokenizer, None)
    except DataError as error:
        plain = copy.copy(tokenizer)
        plain.chat_template = None
        reason = str(error).splitlines()[0]
        return stop_token_ids(plain, stated), [f"{reason}: a stop token that only it names is not listed in {_FILE}"]
    return stop_token_ids(tokenizer, stated), []
