"""A bare text, asked the way that the recipe's first training source asks: to look at a model while it trains."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from dorakit.data.encoder import Encoder
from dorakit.data.sources import Row
from dorakit.data.tokens import encode_prompts
from dorakit.recipe.schema import DataSection


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
