"""What a row says is trained, or refused, or counted by name."""

import pytest
from made_tokenizers import CHATML, byte_bpe, trained_text

from dorakit.data.sources import Row
from dorakit.data.tokens import encode, encode_rows
from dorakit.errors import DataError
from dorakit.recipe.schema import SourceSection

CHAT = {"path": "a.jsonl", "format": "chat"}
USER, REPLY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
CUTS = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{{ m.reasoning_content or '' }}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)
ONE_CALL = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.tool_calls %}{{ m.tool_calls[0].function.name + (m.tool_calls[0].function.arguments | tojson) }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_DEVELOPER = "{% set messages = messages | rejectattr('role', 'equalto', 'developer') | list %}" + CHATML


def calls(*written, content="", name="tide"):
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"function": {"name": name, "arguments": arguments}} for arguments in written],
    }


def trained(section, messages, template=CHATML, **fields):
    tokenizer = byte_bpe(template=template)
    (document,) = encode_rows(
        [Row({"messages": messages}, "a.jsonl:1")], SourceSection(**CHAT), section(CHAT, **fields), tokenizer
    )
    return trained_text(document, tokenizer)


@pytest.mark.parametrize(
    ("template", "turns", "said"),
    [
        (
            CHATML,
            [{**REPLY, "reasoning_content": "So: yo."}],
            "part of what turn 2 says, .*: reasoning_content 'So: yo.'",
        ),
        (CHATML, [{**REPLY, "thinking": "So."}], "part of what turn 2 says, .*: thinking 'So.'"),
        (MARKED, [{**REPLY, "reasoning_content": "So."}], "part of what turn 2 says, .*: reasoning_content 'So.'"),
        (CUTS, [{**REPLY, "content": "<think>So.</think>yo"}], "part of what turn 2 says, .*: content 'So.'"),
        (ONE_CALL, [calls({"at": "Husum"}, content="A look.")], "part of what turn 2 says, .*: content 'A look.'"),
        (ONE_CALL, [calls({"at": "Husum"}, {"at": "Kiel"})], "part of what turn 2 says, .*: tool_calls 'Kiel'"),
        (ONE_CALL, [calls({"n": 1}, {"n": 2})], "part of what turn 2 says, .*: tool_calls 'tide'"),
        (
            NO_DEVELOPER,
            [{"role": "developer", "content": "Be brief."}, REPLY],
            r"turn 2 \(developer\), .*: Be brief.",
        ),
    ],
)
def test_what_a_template_leaves_out_is_refused(section, template, turns, said):
    """Planted bug caught: a turn is trained without its reasoning, its second call, or the instruction before it."""
    with pytest.raises(DataError, match=f"^a.jsonl:1: the chat template leaves out {said}\n  set data.chat_template"):
        trained(section, [USER, *turns], template)


@pytest.mark.parametrize(
    ("template", "turn", "expected"),
    [
        (CHATML.replace("message['content']", "message['content'] | trim"), {**REPLY, "content": " yo\n"}, "yo"),
        (
            CHATML.replace("message['content']", "(message['content'] | trim)"),
            {**REPLY, "reasoning_content": " "},
            "yo",
        ),
        (ONE_CALL, calls({"at": 'a "b"\n\u00fc'}), 'tide{"at": "a \\"b\\"\\n\u00fc"}'),
        (MARKED, {**REPLY, "content": "<think>So.</think> yo"}, "<think>So.</think> yo"),
    ],
)
def test_what_a_template_writes_in_its_own_way_is_trained(section, template, turn, expected):
    """Planted bug caught: a text that is trimmed or escaped is taken for one that is left out."""
    assert trained(section, [USER, turn], template) == expected + "<|im_end|>"


def test_reasoning_of_turns_that_are_not_trained_may_be_left_out(section):
    thought = {**REPLY, "content": "<think>So.</think>yo"}
    assert trained(section, [USER, thought, USER, REPLY], CUTS, train_on="last") == "yo<|im_end|>"
    assert trained(section, [USER, {**thought, "weight": 0}, USER, REPLY], CUTS) == "yo<|im_end|>"


@pytest.mark.parametrize("flag", [{"loss": False}, {"train": False}, {"training": 0}, {"weight": 0, "train": False}])
def test_a_turn_that_is_not_to_be_trained(section, flag):
    """Planted bug caught: ms-swift's and axolotl's flags go unread, and the answers marked as bad are learned."""
    bad = {"role": "assistant", "content": "bad", **flag}
    assert trained(section, [USER, bad, USER, {**REPLY, "train": True}]) == "yo<|im_end|>"


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({**REPLY, "loss": "no"}, "loss is 'no'; only true and false"),
        (
            {**REPLY, "weight": 1, "train": False},
            "says both that it is trained on and that it is not: train: false, weight: 1",
        ),
        ({**REPLY, "reasoning": ["a"]}, "reasoning is list, expected text"),
        ({**REPLY, "function_call": {"name": "f"}, **calls({})}, "has both function_call and tool_calls"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "parameters": {"a": 1}}}]},
            "tool call 'f' has no arguments; it has: name, parameters",
        ),
        (calls([1]), "the arguments of tool call 'tide' are not a JSON object"),
    ],
)
def test_a_turn_that_cannot_be_meant(section, turn, said):
    with pytest.raises(DataError, match=f"^a.jsonl:1: turn 2 of 'messages'.*{said}"):
        trained(section, [USER, turn])


@pytest.mark.parametrize("arguments", [None, "", "{}", "null", {}])
def test_a_call_without_arguments_has_an_empty_object(section, arguments):
    """Planted bug caught: null is trained as the text null."""
    assert trained(section, [USER, calls(arguments)], ONE_CALL) == "tide{}<|im_end|>"


def test_calls_and_tools_in_the_form_of_before_2023(section):
    """Planted bug caught: `function_call` goes to a template that does not know it, and an empty answer is trained."""
    functions = [{"name": "tide", "parameters": {"type": "object"}}]
    call = {"role": "assistant", "content": None, "function_call": {"name": "tide", "arguments": '{"at": "Husum"}'}}
    row = {"messages": [USER, call, {"role": "function", "name": "tide", "content": "2 m"}], "functions": functions}
    tokenizer = byte_bpe(template="{% if tools %}{{ tools[0].type + tools[0].function.name }}{% endif %}" + ONE_CALL)
    (document,) = encode_rows([Row(row, "a:1")], SourceSection(**CHAT), section(CHAT), tokenizer)
    text = tokenizer.decode(document.input_ids)
    assert text.startswith("functiontide") and "<|im_start|>tool\n2 m" in text
    assert trained_text(document, tokenizer) == 'tide{"at": "Husum"}<|im_end|>'


@pytest.mark.parametrize(
    "joined", ["c.function.name + ' ' + c.function.arguments", "c.function.name, c.function.arguments"]
)
@pytest.mark.parametrize(("arguments", "text"), [('{"at":  "Husum"}', '{"at":  "Husum"}'), ({"n": 1}, '{"n": 1}')])
def test_arguments_are_text_where_the_template_takes_text(section, joined, arguments, text):
    """Planted bug caught: such a template is refused, or trained with arguments as Python writes them."""
    template = ONE_CALL.split("{% if m.tool")[0] + "{% for c in m.tool_calls or [] %}"
    template += "".join(f"{{{{ {part} }}}}" for part in joined.split(", ")) + "{% endfor %}"
    template += "{{ m.content + '<|im_end|>\n' }}" + ONE_CALL.split("'<|im_end|>\n' }}")[1]
    assert trained(section, [USER, calls(arguments)], template).replace("tide ", "tide") == f"tide{text}<|im_end|>"


def test_a_conversation_that_begins_with_an_answer(section, write):
    """Planted bug caught: the whole row is refused for its greeting."""
    write("a.jsonl", [{"messages": [{**REPLY, "content": "welcome"}, USER, REPLY]}])
    tokenizer = byte_bpe()
    for train_on, expected in (("completion", "yo<|im_end|>"), ("last", "yo<|im_end|>")):
        encoded = encode(section(CHAT, train_on=train_on), tokenizer, seed=0)
        assert trained_text(encoded.train[0], tokenizer) == expected
        greets = "1 conversations begin with a turn of the assistant, which is not trained on"
        assert (greets in encoded.notes) == (train_on == "completion")
    strict = byte_bpe(template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(
        DataError, match=r"roles must alternate.*\n  the conversation begins with a turn of the assistant"
    ):
        encode(section(CHAT), strict, seed=0)


def test_empty_answers_are_counted(section, write, bpe):
    write("a.csv", "instruction,output\nName a colour,\nName a town,Husum\nName a fruit,\n")
    notes = encode(section({"path": "a.csv", "format": "instruction"}), bpe, seed=0).notes
    assert "2 answers are empty: nothing but the stop token is trained of them" in notes
    write("a.jsonl", [{"messages": [USER, {**REPLY, "content": ""}, USER, REPLY]}])
    for train_on, is_counted in (("completion", True), ("last", False)):
        notes = encode(section(CHAT, train_on=train_on), bpe, seed=0).notes
        assert any(note.startswith("1 answers are empty") for note in notes) == is_counted


def test_fields_that_nothing_reads_are_counted_once(section, write, bpe):
    """Planted bug caught: a field that is empty, says where a row comes from, or is read, is reported."""
    rows = [
        {
            "messages": [{**USER, "mood": "sad", "train": True}, {**REPLY, "id": 3, "loss": True}],
            "id": 1,
            "context": "c",
        },
        {"messages": [{**USER, "mood": None}, REPLY], "conversations": [USER], "context": "", "source": "x"},
    ]
    write("a.jsonl", rows)
    expected = "a.jsonl: not read: context (1 rows), conversations (1 rows), mood of turns (1), train of turns (1)"
    assert expected in encode(section(CHAT), bpe, seed=0).notes
    reading = byte_bpe(template=CHATML.replace("'\n' +", "'\n' + (message.mood or '') +", 1))
    assert expected.replace("mood of turns (1), ", "") in encode(section(CHAT), reading, seed=0).notes


def test_history_and_system_of_instruction_rows(section):
    """Planted bug caught: earlier turns and the system text are dropped."""
    row = {"instruction": "And?", "output": "c", "system": "be brief", "history": [["a?", "a"], ["b?", "b"]]}
    source = {"path": "a.jsonl", "format": "instruction", "prompt": "chat"}
    tokenizer = byte_bpe()
    (document,) = encode_rows([Row(row, "a:1")], SourceSection(**source), section(source), tokenizer)
    assert trained_text(document, tokenizer) == "a<|im_end|>b<|im_end|>c<|im_end|>"
    assert tokenizer.decode(document.input_ids).startswith(
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\na?"
    )
    plain = SourceSection(path="a.jsonl", format="instruction")
    for left, said in ((row, "'system'"), ({**row, "system": ""}, "'history'")):
        with pytest.raises(
            DataError, match=f"a:1: the row has a {said} and the prompt has no place.*\n  use prompt: chat"
        ):
            encode_rows([Row(left, "a:1")], plain, section(source), tokenizer)
    empty = {**row, "system": None, "history": []}
    assert encode_rows([Row(empty, "a:1")], plain, section(source), tokenizer)
    with pytest.raises(DataError, match=r"'history' holds .*, expected pairs"):
        encode_rows([Row({**row, "history": "a"}, "a:1")], SourceSection(**source), section(source), tokenizer)
