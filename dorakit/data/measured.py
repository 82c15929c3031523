"""How long documents will be, before there is a recipe: counted by the base's tokenizer, estimated where that is not here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dorakit.data.formats import Passage, needs_turns, read_samples
from dorakit.data.sniff import spread
from dorakit.data.sources import Row
from dorakit.errors import DataError
from dorakit.recipe.schema import DataSection, SourceSection

_MOST = 2000  # rows looked at
_CHARACTERS_PER_TOKEN = 4  # of English text, in tokenizers with some 50,000 tokens and more
_TOKENS_PER_TURN = 6  # role and borders, as chat templates write them
_NO_LIMIT = 1 << 30
# For bases that have no template: any tokenizer can write it, and each answer ends with the token that ends a text. Line
# breaks are spelled out, since one behind a tag is dropped.
_PLAIN_TEMPLATE = (
    "{% for turn in messages %}{{ '### ' + turn.role + '\\n' + turn.content }}"
    "{% if turn.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Measured:
    """Tokens per document, and what of the recipe rests on the base's tokenizer.

    `most_of_99` is what 99 of 100 documents do not exceed. `is_counted` says that the tokenizer was here. `model_limit` is
    the most that it says the model takes, None where it says nothing. `chat_template` is one for a base that has none and
    needs it. `notes` are lines to print.
    """

    median: int
    most_of_99: int
    num_rows: int
    is_counted: bool
    prompt: str = "default"
    chat_template: str | None = None
    model_limit: int | None = None
    notes: tuple[str, ...] = ()


def measure(rows: Sequence[Row], source: SourceSection, base: str) -> Measured:
    """Measure at most 2,000 rows, evenly spread.

    Rows of format instruction go through the chat template of a base that has one. Nothing is downloaded.

    Args:
        rows: All of the source's.
        source: Gives format and columns.
        base: As `load_base` takes it.

    Raises:
        ModelError: The base is on this machine, and cannot be used; or it can only be here, and is not.
    """
    from dorakit.data.tokens import encode_rows
    from dorakit.model.load import local_tokenizer

    some = [rows[index] for index in spread(len(rows), _MOST)]
    takes_turns = needs_turns(rows, source)
    least = "chat" if source.format == "instruction" and takes_turns else "default"
    tokenizer = local_tokenizer(base)
    if tokenizer is None:
        return _estimated(some, source, least)
    has_template = bool(tokenizer.chat_template)
    prompt = "chat" if source.format == "instruction" and has_template else least
    template = _PLAIN_TEMPLATE if takes_turns and not has_template else None
    source = source.model_copy(update={"prompt": prompt})
    section = DataSection(train=[source], max_seq_len=_NO_LIMIT, chat_template=template)
    try:
        lengths = [len(document) for document in encode_rows(some, source, section, tokenizer)]
    except DataError as error:  # the recipe is written all the same: it is where this is mended
        return _estimated(some, source, least, str(error))
    limit = tokenizer.model_max_length  # an absurdly large one says that nothing is known
    return Measured(
        *_percentiles(lengths),
        len(some),
        is_counted=True,
        prompt=prompt,
        chat_template=template,
        model_limit=int(limit) if 0 < limit < _NO_LIMIT else None,
    )


def _estimated(rows: Sequence[Row], source: SourceSection, prompt: str, note: str = "") -> Measured:
    lengths = []
    for sample in read_samples(rows, source.model_copy(update={"prompt": prompt})):
        if isinstance(sample, Passage):
            characters, turns = len(sample.prompt) + len(sample.completion), 0
        else:
            characters, turns = sum(len(turn["content"]) for turn in sample.messages), len(sample.messages)
        lengths.append(math.ceil(characters / _CHARACTERS_PER_TOKEN) + turns * _TOKENS_PER_TURN + 1)
    notes = (note,) if note else ()
    return Measured(*_percentiles(lengths), len(rows), is_counted=False, prompt=prompt, notes=notes)


def _percentiles(lengths: list[int]) -> tuple[int, int]:
    ordered = sorted(lengths)
    return ordered[len(ordered) // 2], ordered[math.ceil(0.99 * len(ordered)) - 1]
