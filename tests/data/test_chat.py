"""Masks of conversations under the templates of several families, and under templates that no mask can be right for."""

import pytest
from made_tokenizers import CHATML, byte_bpe, trained_text

from dorakit.data.sources import Row
from dorakit.data.tokens import encode_prompts, encode_rows
from dorakit.errors import DataError
from dorakit.recipe.schema import SourceSection

CHAT = {"path": "a.jsonl", "format": "chat"}
TWO = [
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "two?"},
    {"role": "assistant", "content": "second answer"},
]
# The default system turn of SmolLM2.
SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nbe nice<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Llama 2: BOS before each pair of turns, EOS behind it, blanks around the texts.
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Phi 3: every rendering without a generation prompt ends with the end-of-text token.
PHI3 = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|eos|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# Qwen 3: thinking is written for the newest answer only.
QWEN3 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Harmony: the last turn ends with another token than the same turn further up.
HARMONY = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<|im_end|>' }}"
    "{% else %}{{ '<|eos|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{{ '\n' }}{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UNSTOPPED = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
BOTH, LAST = "first answer<|im_end|>second answer<|im_end|>", "second answer<|im_end|>"


def documents(section, tokenizer, messages, **fields):
    rows = [Row({"messages": messages}, "a.jsonl:1")]
    return encode_rows(rows, SourceSection(**CHAT), section(CHAT, **fields), tokenizer)


@pytest.mark.parametrize(
    ("template", "train_on", "expected"),
    [
        (CHATML, "completion", BOTH),
        (CHATML, "last", LAST),
        (SMOLLM, "completion", BOTH),
        (LLAMA2, "completion", " first answer <|im_end|> second answer <|im_end|>"),
        (PHI3, "completion", "first answer<|eos|>second answer<|eos|>\n<|im_end|>"),
        (MARKED, "completion", BOTH),
        (MARKED, "last", LAST),
        (
            MARKED.replace(" + '<|im_end|>' }}{% endgen", " }}{% endgen").replace(
                "{{ '\n' }}{% else", "{{ '<|im_end|>\n' }}{% else"
            ),
            "completion",
            BOTH,
        ),
        (QWEN3, "last", "<think></think>second answer<|im_end|>"),
        (HARMONY, "last", LAST),
        (UNSTOPPED, "completion", "first answer\nsecond answer\n<|im_end|>"),
    ],
)
def test_each_answer_is_trained_with_its_stop_token(section, template, train_on, expected):
    """Planted bugs: masking the stop token; training the newline behind it; a mask one token off."""
    tokenizer = byte_bpe(template=template)
    (document,) = documents(section, tokenizer, TWO, train_on=train_on)
    assert trained_text(document, tokenizer) == expected


def test_everything_is_trained_but_the_first_token(section):
    tokenizer = byte_bpe()
    (document,) = documents(section, tokenizer, TWO, train_on="all")
    assert document.mask.tolist() == [False] + [True] * (len(document) - 1)
    assert tokenizer.decode(document.input_ids) == tokenizer.apply_chat_template(TWO, tokenize=False)


@pytest.mark.parametrize("template", ["{{ bos_token }}" + CHATML, CHATML])
def test_the_template_alone_writes_bos(section, template):
    """Planted bug: tokenising the rendered text with special tokens puts a BOS before it, or a second one."""
    tokenizer = byte_bpe(template=template, bos=True)
    wanted = int("bos_token" in template)
    (document,) = documents(section, tokenizer, TWO)
    assert document.input_ids.tolist().count(tokenizer.bos_token_id) == wanted
    (question,) = encode_prompts([Row({"messages": TWO}, "a:1")], SourceSection(**CHAT), section(CHAT), tokenizer)
    assert question.prompt_ids.count(tokenizer.bos_token_id) == wanted


def test_a_template_that_rewrites_earlier_turns_is_an_error(section):
    with pytest.raises(DataError) as caught:
        documents(section, byte_bpe(template=HARMONY), TWO)
    message = str(caught.value)
    assert message.startswith("a.jsonl:1: the chat template does not write turn 2 in the whole conversation as it does")
    assert "alone it is " in message
    assert "use train_on: last" in message


def test_a_system_text_moved_to_the_newest_turn_is_an_error(section):
    moving = (
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
        "{% if loop.index >= messages | length - 1 %}{{ 'be nice. ' }}{% endif %}{{ message['content'] + ' [/INST]' }}"
        "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    with pytest.raises(DataError, match="does not write turn 2 in the whole conversation"):
        documents(section, byte_bpe(template=moving), TWO)


def test_a_prompt_is_the_beginning_of_its_document(section):
    answers = ["plain", "\n\nindented", "  blanks", "🙂", "naïve"]
    rows = [
        Row(
            {"messages": [*TWO, {"role": "user", "content": "x"}, {"role": "assistant", "content": answer}]}, str(index)
        )
        for index, answer in enumerate(answers)
    ]
    tokenizer = byte_bpe()
    questions = encode_prompts(rows, SourceSection(**CHAT), section(CHAT), tokenizer)
    trained = encode_rows(rows, SourceSection(**CHAT), section(CHAT, train_on="last"), tokenizer)
    for question, document, answer in zip(questions, trained, answers, strict=True):
        count = len(question.prompt_ids)
        assert document.input_ids[:count].tolist() == question.prompt_ids
        assert document.mask.tolist()[count - 1 : count + 1] == [False, True]
        assert (question.answer, question.text) == (answer, tokenizer.decode(question.prompt_ids))


def test_tools_reach_the_template(section):
    tokenizer = byte_bpe(template="{% if tools %}{{ tools[0]['function']['name'] + '\n' }}{% endif %}" + CHATML)
    rows = [Row({"messages": TWO, "tools": [{"type": "function", "function": {"name": "adder"}}]}, "a.jsonl:1")]
    (document,) = encode_rows(rows, SourceSection(**CHAT), section(CHAT), tokenizer)
    assert tokenizer.decode(document.input_ids).startswith("adder\n<|im_start|>user")
    assert trained_text(document, tokenizer) == BOTH


CALLING = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
CALLS_WRITTEN = CHATML.replace(
    "message['content'] +",
    "message['content'] + (message['tool_calls'][0]['function']['name'] if message['tool_calls'] else '') +",
)


@pytest.mark.parametrize(
    ("template", "tools", "what"),
    [(CHATML, None, "tool calls"), (CALLS_WRITTEN, [{"type": "function", "function": {"name": "add"}}], "tools")],
)
def test_a_template_that_drops_tools_is_an_error(section, template, tools, what):
    """Planted bug caught: a turn that only calls a tool is trained as an empty answer and its stop token."""
    rows = [Row({"messages": [TWO[0], CALLING, TWO[2], TWO[3]], "tools": tools}, "a.jsonl:1")]
    for read in (encode_rows, encode_prompts):
        with pytest.raises(
            DataError, match=f"^a.jsonl:1: the chat template writes no {what}.*\n  set data.chat_template"
        ):
            read(rows, SourceSection(**CHAT), section(CHAT), byte_bpe(template=template))


def test_a_tool_call_that_the_template_writes_is_trained(section):
    """Planted bug caught: a template that cannot do without tool calls is taken for one that drops them."""
    strict = "{% if not messages[1]['tool_calls'] %}{{ raise_exception('no call') }}{% endif %}" + CALLS_WRITTEN
    for template in (CALLS_WRITTEN, strict.replace("not messages[1]", "messages | length > 1 and not messages[1]")):
        tokenizer = byte_bpe(template=template)
        (document,) = documents(section, tokenizer, [TWO[0], CALLING])
        assert trained_text(document, tokenizer) == "add<|im_end|>"


@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize(
    ("train_on", "silent", "expected"),
    [
        ("completion", 1, LAST),
        ("completion", 3, "first answer<|im_end|>"),
        ("last", 1, LAST),
        (
            "all",
            1,
            "user\none?<|im_end|>\n<|im_start|>assistant\n\n<|im_start|>user\ntwo?<|im_end|>\n<|im_start|>assistant\n"
            "second answer<|im_end|>\n",
        ),
    ],
)
def test_a_turn_of_weight_0_is_not_trained(section, template, train_on, silent, expected):
    """Planted bug caught: OpenAI's `weight: 0` goes unread, and the answers marked as bad are learned."""
    messages = [{**turn, "weight": int(i != silent)} if i % 2 else turn for i, turn in enumerate(TWO)]
    tokenizer = byte_bpe(template=template)
    (document,) = documents(section, tokenizer, messages, train_on=train_on)
    assert trained_text(document, tokenizer) == expected


def test_nothing_but_turns_of_weight_0(section):
    with pytest.raises(DataError, match="no supervised token in any"):
        documents(section, byte_bpe(), [TWO[0], {**TWO[1], "weight": 0}])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ raise_exception('roles must alternate') }}",
            r"turns \(user, assistant, user, assistant\): roles must alternate",
        ),
        (
            "\n{{ messages[9]['content'] + 'x' }}",
            r"cannot render the turns .*: .* has no element 9 \(line 2 of the template\)",
        ),
        ("{{ messages[1]['name'] + 'x' }}", r"writes a field that holds half of a surrogate pair, which is no text"),
        ("{{ range(messages[1]['count']) }}", r"cannot render the turns .*: Range too big.*"),
    ],
)
def test_a_failing_template_names_row_and_turns(section, template, message):
    turns = [TWO[0], {**TWO[1], "name": "\ud83d", "count": 10**6}, *TWO[2:]]
    with pytest.raises(DataError, match="^a.jsonl:1: the chat template " + ".*" + message):
        documents(section, byte_bpe(template=template), turns)


@pytest.mark.parametrize("template", ["{% for m in messages %}{{ m['content'] }", "{{ ''.__class__.__mro__ }}"])
def test_a_template_that_cannot_be_used_is_named(section, write, template):
    for written, name in (
        (None, "the tokenizer's chat template"),
        (template, "data.chat_template"),
        (write("t.jinja", template), "data.chat_template t.jinja"),
    ):
        with pytest.raises(
            DataError, match=rf"^{name} cannot be used: (unexpected '\}}'|access to .* is unsafe) \(line 1 of"
        ):
            documents(section, byte_bpe(template=template), TWO, chat_template=written)


def test_a_template_file_of_any_size_is_not_read(section, write):
    write("long.jinja", "x" * (2 << 20))
    with pytest.raises(DataError, match=r"long.jinja has 2,097,152 bytes; at most 1,048,576 are read"):
        documents(section, byte_bpe(), TWO, chat_template="long.jinja")


def test_no_template_at_all(section):
    with pytest.raises(DataError, match=r"the tokenizer has no chat template\.\n  set data.chat_template"):
        documents(section, byte_bpe(template=None), TWO)


def test_the_recipe_may_bring_the_template(section, write):
    for written in (CHATML, write("chat.jinja", CHATML)):
        tokenizer = byte_bpe(template="{{ 'other' }}")
        (document,) = documents(section, tokenizer, TWO, chat_template=written)
        assert trained_text(document, tokenizer) == BOTH
        assert tokenizer.chat_template == CHATML  # saved with the result, and used when it generates
    write("bad.jinja", b"{{ '\xff' }}")
    with pytest.raises(DataError, match=r"data.chat_template: .*bad.jinja is not UTF-8: byte 0xff at offset 4"):
        documents(section, byte_bpe(), TWO, chat_template="bad.jinja")
    with pytest.raises(DataError, match=r"data.chat_template: no such file: chta.jinja (.|\n)*did you mean chat.jinja"):
        documents(section, byte_bpe(), TWO, chat_template="chta.jinja")


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["plain", "marked"])
def test_a_template_that_behaves_in_its_trial_only(section, monkeypatch, template):
    """Dies if what is written for a row has no limit; or if a long row is refused for its own length."""
    monkeypatch.setattr("dorakit.data.rendering.MAX_TEXT", 1000)
    long = [{"role": "user", "content": "word " * 1000}, TWO[1]]
    assert documents(section, byte_bpe(template=template), long, max_seq_len=100_000)
    grown = "{% for m in messages if m.content == 'one?' %}{{ 'x' * 5000 }}{% endfor %}"
    with pytest.raises(
        DataError, match=r"a.jsonl:1: the chat template writes 5,\d\d\d characters for a conversation of 1\d\d"
    ):
        documents(section, byte_bpe(template=template + grown), TWO, max_seq_len=100_000)
