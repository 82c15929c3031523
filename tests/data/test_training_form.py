"""Templates that write the newest answer otherwise than earlier ones are trained in their training form."""

import pytest
from made_tokenizers import byte_bpe, trained_text

from dorakit.data.sources import Row
from dorakit.data.tokens import encode, encode_rows
from dorakit.errors import DataError
from dorakit.recipe.schema import SourceSection

CHAT = {"path": "a.jsonl", "format": "chat"}
# As Qwen 3's: reasoning since the last question is written, and an empty block for the newest answer that has none.
THINKING = (
    "{% set ns = namespace(asked=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.asked and (loop.last or m.reasoning_content) %}"
    "{{ '<think>' + (m.reasoning_content or '') + '</think>' }}{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name + (c.function.arguments | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen 3.5's without thinking: the empty block is in the generation prompt already.
PROMPTED = THINKING.replace("assistant\n' }}{% endif %}", "assistant\n<think></think>' }}{% endif %}")


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


CALL = turn("assistant", "", tool_calls=[{"function": {"name": "add", "arguments": {"a": 1}}}])
TALK = [
    turn("system", "be nice"),
    turn("user", "one?"),
    turn("assistant", "first", reasoning_content="why"),
    turn("user", "two?"),
    CALL,
    turn("tool", "2"),
    turn("assistant", "second"),
    turn("user", "bye"),
]
PREFIX = "<|im_start|>system\nbe nice<|im_end|>\n<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n"
WHOLE = (
    PREFIX + "<think>why</think>first<|im_end|>\n<|im_start|>user\ntwo?<|im_end|>\n<|im_start|>assistant\n"
    '<think></think>add{"a": 1}<|im_end|>\n<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\n'
    "<think></think>second<|im_end|>\n<|im_start|>user\nbye<|im_end|>\n"
)
ANSWERS = [
    "<think>why</think>first<|im_end|>",
    '<think></think>add{"a": 1}<|im_end|>',
    "<think></think>second<|im_end|>",
]


@pytest.mark.parametrize(
    ("template", "train_on", "silent", "trained"),
    [
        (THINKING, "completion", None, "".join(ANSWERS)),
        (THINKING, "completion", 4, ANSWERS[0] + ANSWERS[2]),
        (THINKING, "all", None, WHOLE),
    ],
)
def test_every_answer_as_if_it_were_the_newest(section, write, template, train_on, silent, trained):
    """Planted bugs caught: reasoning of the first answer lost; the text between two answers twice or cut short."""
    write("a.jsonl", [{"messages": [{**t, "weight": 0} if i == silent else t for i, t in enumerate(TALK)]}])
    tokenizer = byte_bpe(template=template)
    encoded = encode(section(CHAT, train_on=train_on), tokenizer, seed=0)
    (document,) = encoded.train
    assert tokenizer.decode(document.input_ids, clean_up_tokenization_spaces=False) == WHOLE
    assert trained_text(document, tokenizer) == trained.removeprefix("<|im_start|>" if train_on == "all" else "")
    assert any(
        "in 1 conversation each one is trained as it is written when it is the newest" in n for n in encoded.notes
    )


def test_each_span_is_what_the_template_writes_behind_its_own_prompt(section):
    """The training form against the template itself: prompts as generation has them, but for what they cut."""
    plain = [
        turn(*said) for said in (("user", "one?"), ("assistant", "first"), ("user", "two?"), ("assistant", "second"))
    ]
    for template, block in ((THINKING, ""), (PROMPTED, "<think></think>")):
        tokenizer = byte_bpe(template=template)
        (document,) = encode_rows([Row({"messages": plain}, "a:1")], SourceSection(**CHAT), section(CHAT), tokenizer)
        text = tokenizer.decode(document.input_ids, clean_up_tokenization_spaces=False)
        for index in (1, 3):
            prompt = tokenizer.apply_chat_template(plain[:index], tokenize=False, add_generation_prompt=True)
            newest = tokenizer.apply_chat_template(plain[: index + 1], tokenize=False)
            answer = newest.removeprefix(prompt).strip()
            assert newest.startswith(prompt) and answer in trained_text(document, tokenizer)
        assert text.replace("<think></think>", "") == newest.replace("<think></think>", "")
        assert text.count("<think></think>") == 2
        assert trained_text(document, tokenizer).count("<think></think>") == (0 if block else 2)


def test_rows_that_one_rendering_holds_are_left_as_they_are(section):
    """Planted bug caught: the training form used where the template's own text is right."""
    tokenizer = byte_bpe(template=THINKING)
    for talk, train_on in ((TALK[:3], "completion"), (TALK[:7], "last")):
        (document,) = encode_rows(
            [Row({"messages": talk}, "a:1")], SourceSection(**CHAT), section(CHAT, train_on=train_on), tokenizer
        )
        whole = tokenizer.apply_chat_template(talk, tokenize=False)
        assert tokenizer.decode(document.input_ids, clean_up_tokenization_spaces=False) == whole


@pytest.mark.parametrize("train_on", ["completion", "last"])
def test_a_generation_prompt_that_is_no_beginning_of_the_answer_is_named(section, train_on):
    """Planted bug caught: `train_on: last` offered where it is set, or where it changes nothing."""
    rows = [Row({"messages": [turn("user", "2+2?"), turn("assistant", "4", reasoning_content="two and two")]}, "a:1")]
    with pytest.raises(DataError) as caught:
        encode_rows(rows, SourceSection(**CHAT), section(CHAT, train_on=train_on), byte_bpe(template=PROMPTED))
    said = str(caught.value)
    assert said.startswith(
        "a:1: the generation prompt of the chat template is '<|im_start|>assistant\\n<think></think>'"
    )
    assert "train_on" not in said and said.endswith("whose generation prompt is how the answers of these rows begin")
