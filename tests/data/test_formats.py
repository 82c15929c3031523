import pytest

from dorakit.data.formats import Conversation, Passage, read_samples
from dorakit.data.sources import Row
from dorakit.errors import DataError
from dorakit.recipe.schema import SourceSection

USER, REPLY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}


def one(fields, evaluation=False, **source):
    (sample,) = read_samples([Row(fields, "a.jsonl:7")], SourceSection(path="a.jsonl", **source), evaluation=evaluation)
    return sample


def turns(messages, **fields):
    return one({"messages": messages, **fields}, format="chat").messages


def test_plain_formats():
    assert one({"text": "abc"}, format="text") == Passage("", "abc", "", "a.jsonl:7")
    assert one({"prompt": "a ", "completion": "b"}, format="completion") == Passage("a ", "b", "b", "a.jsonl:7")
    row = {"instruction": "Add", "input": None, "output": "2", "answer": 2.0}
    passage = one(row, format="instruction", prompt="Q {instruction}\n")
    assert passage == Passage("Q Add\n", "2", "2", "a.jsonl:7")


def test_columns_rename():
    columns = {"instruction": "question", "input": "context", "output": "answer"}
    row = {"question": "q", "context": "c", "answer": "a"}
    assert one(row, format="instruction", columns=columns, prompt="{instruction}|{input}|") == Passage(
        "q|c|", "a", "a", "a.jsonl:7"
    )


def test_rows_to_be_answered_use_the_evaluation_prompt_and_need_no_output():
    row = {"instruction": "Add", "answer": True}
    passage = one(row, evaluation=True, format="instruction", prompt="llm-adapters")
    assert (passage.completion, passage.answer) == ("", "true")
    assert "request. \n\n  " in passage.prompt
    with pytest.raises(DataError, match="no field 'output'"):
        one({"instruction": "Add", "answer": "2"}, format="instruction")


@pytest.mark.parametrize(
    ("value", "answer"),
    [(3.0, "3"), (-40.0, "-40"), (1e16, "10000000000000000"), (1e-05, "0.00001"), (2.5, "2.5"), (7, "7")],
)
def test_numbers_as_answers_are_written_as_people_do(value, answer):
    """Planted bug caught: 3.0 (a whole number of a Parquet column with gaps) and 1e-05, which no answer equals."""
    assert one({"prompt": "p", "answer": value}, evaluation=True, format="completion").answer == answer
    row = {"prompt": "p", "completion": "c", "answer": float("nan")}
    assert one(row, evaluation=True, format="completion").answer == "c"  # a gap, as a data frame writes it
    with pytest.raises(DataError, match="'answer' holds float inf, expected text"):
        one({**row, "answer": float("inf")}, evaluation=True, format="completion")


def test_the_answer_column_of_test_rows_must_be_there():
    """Planted bug caught: with a misspelt answer column, answers compared with the whole completion."""
    source = {"format": "completion", "columns": {"answer": "lable"}}
    row = {"prompt": "p", "completion": "It is 3.", "label": "3"}
    with pytest.raises(DataError, match=r"columns maps answer to 'lable'.*\n.*completion, label; did you mean label\?"):
        one(row, evaluation=True, **source)
    assert one(row, **source).completion == "It is 3."  # training reads no answer
    rows = [Row(row, "a:1"), Row({**row, "lable": "4"}, "a:2")]
    samples = read_samples(rows, SourceSection(path="a.jsonl", **source), evaluation=True)
    assert [sample.answer for sample in samples] == ["It is 3.", "4"]


def test_an_instruction_as_turns():
    sample = one({"instruction": "Add", "input": "1 1", "output": "2"}, format="instruction", prompt="chat")
    assert sample == Conversation(
        [{"role": "user", "content": "Add\n\n1 1"}, {"role": "assistant", "content": "2"}], None, "2", "a.jsonl:7"
    )


def test_sharegpt_and_messages_are_the_same_turns():
    talk = [
        {"from": "system", "value": "be brief"},
        {"from": "human", "value": "hi"},
        {"from": "gpt", "value": "yo", "weight": None},
    ]
    expected = [{"role": "system", "content": "be brief"}, USER, REPLY]
    assert one({"conversations": talk}, format="chat").messages == expected
    assert one({"talk": talk}, format="chat", columns={"messages": "talk"}).messages == expected
    assert one({"system": "be brief", "conversations": talk[1:]}, format="chat").messages == expected
    assert one({"conversations": talk}, format="chat").answer == "yo"


def test_content_parts_are_joined():
    parts = {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}
    assert turns([parts, REPLY]) == [USER, REPLY]


def test_tool_calls_are_brought_to_one_form():
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}, "index": None}
    asked = turns(
        [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "2"}]
    )
    assert asked[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"a": 1}}}],
    }
    talk = [
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "2"},
    ]
    calls = one({"conversations": talk}, format="chat").messages[1]["tool_calls"]
    assert calls == [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    assert turns([USER, {**REPLY, "tool_calls": []}]) == [USER, REPLY]


def test_tools_may_be_a_json_text():
    tools = [{"type": "function", "function": {"name": "add"}}]
    for written in (tools, '[{"type": "function", "function": {"name": "add"}}]'):
        assert one({"messages": [USER, REPLY], "tools": written}, format="chat").tools == tools
    for written in (None, "", "[]", []):
        assert one({"messages": [USER, REPLY], "tools": written}, format="chat").tools is None


@pytest.mark.parametrize(
    ("fields", "source", "message"),
    [
        (
            {"instructions": "a", "output": "b"},
            {"format": "instruction"},
            "a.jsonl:7: no field 'instruction'; the row has: instructions, output.\n"
            "  format instruction needs instruction and output; may have input, system, history, answer\n"
            "  if it goes by another name, say so in the source: columns: {instruction: instructions}",
        ),
        (
            {"instruction": "a", "response": "b"},
            {"format": "instruction"},
            "a.jsonl:7: no field 'output'; the row has: instruction, response.\n"
            "  format instruction needs instruction and output; may have input, system, history, answer\n"
            "  if it goes by another name, say so in the source: columns: {output: response}",
        ),
        (
            {"question": "a", "context": "", "response": "b"},
            {"format": "instruction"},
            "a.jsonl:7: no fields 'instruction' and 'output'; the row has: question, context, response.\n"
            "  format instruction needs instruction and output; may have input, system, history, answer\n"
            "  if they go by other names, say so in the source: columns: {instruction: question, output: response}",
        ),
        (
            {"xyz": 1},
            {"format": "text"},
            "a.jsonl:7: no field 'text'; the row has: xyz.\n"
            "  format text needs text\n  if it goes by another name, say so in the source: columns: {text: NAME IN THE DATA}",
        ),
        (
            {"text": None},
            {"format": "text"},
            "a.jsonl:7: field 'text' is null, expected text.\n  remove the row, or fill it in",
        ),
        ({"text": ["a"]}, {"format": "text"}, "a.jsonl:7: field 'text' holds list ['a'], expected text"),
        (
            {"instruction": "a", "input": 3, "output": "b"},
            {"format": "instruction"},
            "a.jsonl:7: field 'input' holds int 3, expected text",
        ),
        (
            {"text": "\ud83d"},
            {"format": "text"},
            "a.jsonl:7: field 'text' holds half of a surrogate pair, which is no text",
        ),
        (
            {"text": "a"},
            {"format": "text", "columns": {"txt": "text"}},
            "a.jsonl: columns names 'txt', which format text does not look for; it looks for text.\n"
            "  columns maps an expected name to the name in the data",
        ),
        (
            {"instruction": "a", "output": "b"},
            {"format": "instruction", "columns": {"input": "contxt"}},
            "a.jsonl: columns maps input to 'contxt', and no row has that field.\n  the rows have: instruction, output",
        ),
        (
            {"messages": []},
            {"format": "chat"},
            "a.jsonl:7: field 'messages' is an empty list, expected a list of turns",
        ),
        ({"messages": "hi"}, {"format": "chat"}, "a.jsonl:7: field 'messages' is str, expected a list of turns"),
        (
            {"messages": ["hi"]},
            {"format": "chat"},
            "a.jsonl:7: turn 1 of 'messages' is str, expected an object with role and content",
        ),
        (
            {"messages": [USER, {"role": "bot", "content": "yo"}]},
            {"format": "chat"},
            "a.jsonl:7: turn 2 of 'messages': unknown role 'bot'; known are system, developer, user, assistant, tool",
        ),
        (
            {"messages": [USER, {**REPLY, "weight": 0.5}]},
            {"format": "chat"},
            "a.jsonl:7: turn 2 of 'messages': weight is 0.5; only 0 (the turn is not trained on) and 1 are known\n"
            "  rows that should count more or less go into a source of their own, with a weight in data.train",
        ),
        (
            {"messages": [{"role": "user", "text": "hi"}]},
            {"format": "chat"},
            "a.jsonl:7: turn 1 of 'messages' has no content; it has: role, text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
            {"format": "chat"},
            "a.jsonl:7: turn 1 of 'messages': a content part of type 'image'; only text can be trained on",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            {"format": "chat"},
            "a.jsonl:7: turn 1 of 'messages': the arguments of tool call 'f' are not a JSON object",
        ),
        (
            {"messages": [USER, REPLY], "tools": "none"},
            {"format": "chat"},
            "a.jsonl:7: field 'tools' is a text that is not JSON, expected a list of tool schemas",
        ),
        (
            {"system": "a", "messages": [{"role": "system", "content": "b"}, REPLY]},
            {"format": "chat"},
            "a.jsonl:7: a system text is both in 'system' and in 'messages'",
        ),
        (
            {"conversations": [{"from": "bing", "value": "hi"}]},
            {"format": "chat"},
            "a.jsonl:7: turn 1 of 'conversations': unknown speaker 'bing'; known are system, human, user, gpt, "
            "assistant, model, chatgpt, tool, observation, function_response, function_call",
        ),
    ],
)
def test_bad_rows_say_what_is_wrong(fields, source, message):
    with pytest.raises(DataError) as caught:
        one(fields, **source)
    assert str(caught.value) == message
