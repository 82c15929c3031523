"""Prompts to look at a model by while it trains: bare texts, asked as the first training source asks, and held-out rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from dorakit.data.encoder import Encoder
from dorakit.data.formats import Passage, read_samples
from dorakit.data.sources import Row, like_first, read_rows
from dorakit.data.tokens import Encoded, encode_prompts
from dorakit.errors import DataError
from dorakit.recipe.schema import DataSection, Recipe, SourceSection

_LOOKED_AT = 50  # rows among which some are looked for that can be asked


def encode_asked(
    texts: list[str], data: DataSection, tokenizer: PreTrainedTokenizerBase, *, place: str
) -> list[list[int]]:
    """Prompt ids of each text: a user's turn in chats, the instruction of instruction rows, else the text itself.

    `place` is where the texts were written, for messages.
    """
    source = data.train[0].model_copy(update={"columns": {}})
    if source.format == "text":
        return [ids.tolist() for ids in Encoder(tokenizer).beginnings(texts)]
    rows = []
    for text in texts:
        forms: dict[str, dict[str, object]] = {
            "chat": {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "-"}]},
            "instruction": {"instruction": text, "input": "", "output": "-"},
            "completion": {"prompt": text, "completion": "-"},
        }
        rows.append(Row(forms[source.format], place))
    return [question.prompt_ids for question in encode_prompts(rows, source, data, tokenizer)]


@dataclass(frozen=True)
class AskedRow:
    """A held-out row as a question: its ids, what it asks as a person reads it, and the answer that the data has."""

    prompt_ids: list[int]
    prompt: str
    expected: str
    row: str


def held_out_questions(
    recipe: Recipe, encoded: Encoded, tokenizer: PreTrainedTokenizerBase, *, count: int, most_tokens: int
) -> tuple[list[AskedRow], list[str]]:
    """The first `count` held-out rows whose prompts have at most so many tokens, and lines to print and record.

    They are validation rows; where the recipe holds none out, rows of evaluation.path if that is a file here. Rows of format
    text ask nothing.
    """
    found: list[AskedRow] = []
    reason = ""
    if count == 0:
        return found, []
    try:
        for source, row in _held_out(recipe, encoded):
            try:
                (question,) = encode_prompts([row], source, recipe.data, tokenizer)
            except DataError as error:  # it can be trained on and not be asked
                reason = str(error).splitlines()[0]
                continue
            if len(question.prompt_ids) > most_tokens:
                reason = f"{row.place}: a prompt of {len(question.prompt_ids)} tokens, where {most_tokens} are answered"
                continue
            found.append(AskedRow(question.prompt_ids, _shown(row, source, question.text), question.answer, row.place))
            if len(found) == count:
                break
    except DataError as error:
        reason = str(error).splitlines()[0]
    return found, [f"training.sample_rows: no row is answered ({reason})"] if reason and not found else []


def _held_out(recipe: Recipe, encoded: Encoded) -> Iterator[tuple[SourceSection, Row]]:
    """Rows to choose from, each with the source that it is read as."""
    data, seed, twin = recipe.data, recipe.training.seed, recipe.origin.is_twin
    for index, row in encoded.held_out[:_LOOKED_AT]:
        if data.train[index].format != "text":
            yield data.train[index], row
    path, split, prompt, offset = data.validation.path, data.validation.split, None, 0
    otherwise = "validation"
    if path is None and not encoded.held_out and recipe.evaluation.path is not None:
        section, otherwise = recipe.evaluation, "test"
        # A data set of the hub is not fetched for this.
        if Path(data.root, Path(section.path or "").expanduser()).is_file():
            path, split, prompt, offset = section.path, section.split, section.prompt, section.offset
    if path is not None and data.train[0].format != "text":
        source = like_first(data, path, split=split, prompt=prompt, offset=offset, limit=_LOOKED_AT)
        for row in read_rows(source, data.root, split=otherwise, seed=seed, twin=twin)[0]:
            yield source, row


def _shown(row: Row, source: SourceSection, text: str) -> str:
    """The question of a row, without the marks of a chat template."""
    (sample,) = read_samples([row], source, evaluation=True)
    if isinstance(sample, Passage):
        return sample.prompt
    asked = [turn.get("content") for turn in sample.messages if turn["role"] == "user"]
    return asked[-1] if asked and isinstance(asked[-1], str) else text
