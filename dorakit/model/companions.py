"""Files of a base that other programs read and transformers does not write again: they go with a model that is made of it.

llama.cpp's converter asks for tokenizer.model of Gemma and Llama 2, and for added_tokens.json beside it; Ollama for
special_tokens_map.json too; older programs for vocab.json and merges.txt; vLLM and SGLang for the preprocessors of a model
that sees images.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dorakit.model.load import pad_

_OF_VOCABULARY = ("*.model", "tekken.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt")
_OF_ROLES = ("special_tokens_map.json",)
_OF_OTHER_INPUT = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def copy_companions(model: PreTrainedModel, directory: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Copy what is not in the directory yet and still true of the tokenizer that was saved there; lines to print.

    Args:
        model: As `load_base` gave it, from whose directory they are taken.
        directory: Where config and tokenizer have been written.
        tokenizer: The one that was.
    """
    if not model.name_or_path:  # made in memory
        return []
    base = Path(model.name_or_path)
    there = {path.name for path in directory.iterdir()}
    of_vocabulary, of_roles, other = (
        sorted({path for pattern in patterns for path in base.glob(pattern) if path.name not in there})
        for patterns in (_OF_VOCABULARY, _OF_ROLES, _OF_OTHER_INPUT)
    )
    notes = []
    if of_vocabulary or of_roles:
        own: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
        pad_(own)
        if own.get_vocab() != tokenizer.get_vocab():
            names = ", ".join(path.name for path in [*of_vocabulary, *of_roles])
            notes = [f"the vocabulary is not the base's: {names} of the base would not fit it, and is left out"]
            of_vocabulary = of_roles = []
        elif own.special_tokens_map != tokenizer.special_tokens_map:
            of_roles = []  # tokenizer_config.json has them
    for path in (*of_vocabulary, *of_roles, *other):
        shutil.copyfile(path, directory / path.name)
    return notes
