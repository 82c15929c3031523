"""Which tokens end an answer: of real templates' kinds, and the same ones in masks, generation and what is written."""

import pytest
from tokenizers import AddedToken
from transformers import GenerationConfig

from dorakit.data.chat import ChatRenderer
from dorakit.data.formats import Conversation
from dorakit.data.generation_config import read_generation_config, write_generation_config
from dorakit.model.stops import stop_token_ids
from dorakit.model.tiny import tiny_tokenizer
from dorakit.recipe.schema import DataSection

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
ASKED = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
KINDS = {
    "beside the named ones": (TURNS + "<|eot|>" + ASKED, ["<|eot|>"]),
    "behind a text": (TURNS + "{% if m.role == 'assistant' %}\n</answer>{% endif %}<|eot|>\n" + ASKED, ["<|eot|>"]),
    "before an end of everything": (
        TURNS + "<|eot|>\n" + ASKED + "{% if not add_generation_prompt %}<|im_end|>{% endif %}",
        ["<|eot|>"],
    ),
    "behind a system turn only": (
        "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}" + TURNS + "<|eot|>" + ASKED,
        ["<|eot|>"],
    ),
    "another one after a call": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}<|end_of_call|>"
        "{% else %}{{ m.content }}{{ '<|eot|>' if loop.last else '<|pad|>' }}{% endif %}" + ASKED,
        ["<|eot|>", "<|end_of_call|>"],
    ),
    "none": (TURNS + "\n" + ASKED, []),
    "nothing of what is said": ("<|eot|>", []),
    "refused": ("{{ raise_exception('no') }}", []),
}  # fmt: skip


def tokenizer_of(template):
    """Two of its special tokens have no role: tokenizer.json alone marks them."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in ("<|eot|>", "<|end_of_call|>")]
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_the_template_says_what_ends_a_turn(kind):
    """Planted bugs caught: special tokens without a role not looked for; a stop that does not follow the answer at once not
    found; the end of everything instead of the turn's; the first token of a template that leaves the answer out.
    """
    template, expected = KINDS[kind]
    tokenizer = tokenizer_of(template)
    number = {text: tokenizer.convert_tokens_to_ids(text) for text in ("<|im_end|>", "<|eot|>", "<|end_of_call|>")}
    wanted = [number["<|im_end|>"], *(number[text] for text in expected)]
    assert stop_token_ids(tokenizer, None) == wanted
    stated = GenerationConfig(eos_token_id=[77, number["<|im_end|>"]])
    assert stop_token_ids(tokenizer, stated) == [*wanted, 77]
    assert stop_token_ids(tokenizer, GenerationConfig(eos_token_id=78)) == [*wanted, 78]


@pytest.mark.parametrize("kind", ["beside the named ones", "behind a text", "before an end of everything"])
def test_a_mask_trains_a_token_that_generation_stops_at(kind):
    """Planted bug caught: a mask that ends before the stop token."""
    tokenizer = tokenizer_of(KINDS[kind][0])
    turns = ({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."})
    row = Conversation(messages=list(turns * 2), tools=None, row="row", answer="So.")
    rendered = ChatRenderer(tokenizer, DataSection(train=[{"path": "x", "format": "chat"}])).document(row)
    stops = [tokenizer.convert_ids_to_tokens(number) for number in stop_token_ids(tokenizer, None)]
    for start, end in rendered.spans:
        assert any(stop in rendered.text[start:end] for stop in stops)


def test_a_template_that_cannot_be_used_is_said_and_loses_its_stop_only(tmp_path):
    """Planted bug caught: a stranger's template rendered without a trial, which would never end."""
    tokenizer = tokenizer_of("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}<|eot|>")
    (note,) = write_generation_config(tmp_path, GenerationConfig(eos_token_id=77, top_k=3), tokenizer)
    assert "the tokenizer's chat template" in note and "is not listed in generation_config.json" in note
    written = read_generation_config(tmp_path)
    assert written.eos_token_id == [tokenizer.eos_token_id, 77] and written.top_k == 3
