import numpy as np
import pytest
from made_tokenizers import byte_bpe, trained_text
from transformers import BloomConfig, LlamaConfig, XLNetConfig

from dorakit.data.documents import Document, check_documents_fit
from dorakit.data.sources import Row
from dorakit.data.tokens import encode, encode_prompts, encode_rows
from dorakit.errors import DataError, ModelError
from dorakit.recipe.schema import SourceSection, ValidationSection

ADD = [{"instruction": f"add {i} and 1", "input": "", "output": str(i + 1)} for i in range(40)]
INSTRUCTION = {"path": "a.jsonl", "format": "instruction"}


@pytest.mark.parametrize("prompt", ["default", "llm-adapters", "orca-math", "{instruction}   "])
@pytest.mark.parametrize("output", ["7", "\n\n7", " 7", "", "née"])
def test_training_begins_with_the_ids_that_generation_starts_from(section, prompt, output):
    """Planted bug: prompt and answer as one text; a prompt that ends in blanks then ends in other tokens."""
    tokenizer = byte_bpe(bos=True)
    source = SourceSection(**INSTRUCTION, prompt=prompt)
    rows = [Row({"instruction": "add", "output": output}, "a.jsonl:1")]
    (document,) = encode_rows(rows, source, section(INSTRUCTION), tokenizer)
    (question,) = encode_prompts(rows, source, section(INSTRUCTION), tokenizer)
    if prompt == "llm-adapters":  # its two prompts differ, so only the document is looked at
        assert "request.  \n" in tokenizer.decode(document.input_ids)
        assert "request. \n" in question.text
    else:
        assert document.input_ids[: len(question.prompt_ids)].tolist() == question.prompt_ids
        assert document.mask.tolist()[: len(question.prompt_ids)] == [False] * len(question.prompt_ids)
    assert trained_text(document, tokenizer) == output + "<|im_end|>"
    assert document.input_ids.tolist().count(tokenizer.bos_token_id) == 1


def test_what_carries_loss(section, bpe):
    rows = [Row({"text": "hello there"}, "a:1")]
    source = SourceSection(path="a.jsonl", format="text")
    (document,) = encode_rows(rows, source, section(INSTRUCTION), bpe)
    assert document.mask.tolist() == [False] + [True] * (len(document) - 1)
    assert bpe.decode(document.input_ids) == "hello there<|im_end|>"
    assert document.labels.tolist() == [-100, *document.input_ids.tolist()[1:]]

    rows, source = [Row(ADD[3], "a:1")], SourceSection(**INSTRUCTION)
    (document,) = encode_rows(rows, source, section(INSTRUCTION, train_on="all"), bpe)
    assert document.mask.tolist() == [False] + [True] * (len(document) - 1)
    (document,) = encode_rows(rows, source, section(INSTRUCTION, train_on="last"), bpe)
    assert trained_text(document, bpe) == "4<|im_end|>"


def test_a_stop_token_that_the_text_spells_is_not_doubled(section, bpe):
    rows = [Row({"prompt": "a:", "completion": "b<|im_end|>"}, "a:1")]
    (document,) = encode_rows(rows, SourceSection(path="a", format="completion"), section(INSTRUCTION), bpe)
    assert bpe.decode(document.input_ids) == "a:b<|im_end|>"


def test_weights_repeat_training_rows_and_never_held_out_ones(section, write, bytes_only):
    write("a.jsonl", ADD)
    data = section({**INSTRUCTION, "weight": 2.5}, validation=ValidationSection(fraction=0.2))
    encoded = encode(data, bytes_only, seed=3)
    held_out = {document.row for document in encoded.validation}
    counts = {row: [d.row for d in encoded.train].count(row) for row in {d.row for d in encoded.train}}
    assert len(held_out) == len(encoded.validation) == 8
    assert not held_out & set(counts)
    assert len(counts) == 32
    assert set(counts.values()) == {2, 3}
    assert encoded.notes == ["a.jsonl: 40 rows, 100 with weight 2.5"]
    other = encode(section({**INSTRUCTION, "weight": 0.5}), bytes_only, seed=4).fingerprint
    assert encode(section({**INSTRUCTION, "weight": 0.5}), bytes_only, seed=3).fingerprint != other


@pytest.mark.parametrize(("fraction", "rows"), [(0.001, 1), (0.19, 8), (0.2, 8)])
def test_a_fraction_holds_out_at_least_a_row(section, write, bytes_only, fraction, rows):
    """Planted bugs caught: a fraction rounded down to nothing; 0.19 of 40 cut to 7."""
    write("a.jsonl", ADD)
    data = section(INSTRUCTION, validation=ValidationSection(fraction=fraction))
    assert len(encode(data, bytes_only, seed=3).validation) == rows


def test_held_out_rows_depend_on_the_seed_alone(section, write, bytes_only):
    write("a.jsonl", ADD)

    def held_out(seed=3, **fields):
        data = section({**INSTRUCTION, **fields.pop("source", {})}, validation=ValidationSection(rows=5), **fields)
        return [document.row for document in encode(data, bytes_only, seed=seed).validation]

    chosen = held_out()
    assert len(chosen) == 5
    assert held_out(max_seq_len=2000, train_on="all", packing=True) == chosen
    assert held_out(source={"prompt": "orca-math", "weight": 2.0}) == chosen
    np.random.seed(9)
    assert held_out() == chosen
    assert held_out(seed=4) != chosen
    # Rows that are too long for training vanish from both sides and move no other row to the other.
    short = held_out(source={"prompt": "{instruction}"}, max_seq_len=14)
    assert set(short) < set(chosen)


def test_a_validation_file_has_the_form_of_the_first_source(section, write, bytes_only):
    write("a.jsonl", [{"q": row["instruction"], "a": row["output"]} for row in ADD])
    write("v.json", [{"q": "add 3 and 1", "a": "4"}, {"q": "add 90 and 1", "a": "91"}])
    columns = {"instruction": "q", "output": "a"}
    data = section({**INSTRUCTION, "columns": columns}, validation=ValidationSection(path="v.json"))
    encoded = encode(data, bytes_only, seed=0)
    assert [document.row for document in encoded.validation] == ["v.json[0]", "v.json[1]"]
    assert encoded.notes == [
        "1 of 2 validation documents are in the training rows too",
    ]


def test_holding_everything_out_is_refused(section, write, bytes_only):
    write("a.jsonl", ADD)
    with pytest.raises(DataError, match=r"data\.validation holds out 40 rows of 40: nothing is left to train on"):
        encode(section(INSTRUCTION, validation=ValidationSection(rows=40)), bytes_only, seed=0)


LONG = {"path": "a.jsonl", "format": "completion"}
LONG_ROWS = [
    {"prompt": "ab", "completion": "c" * 4},
    {"prompt": "ab", "completion": "c" * 20},
    {"prompt": "a" * 20, "completion": "c"},
]


def test_overlong_documents_go_by_the_recipe(section, write, bytes_only):
    write("a.jsonl", LONG_ROWS)
    dropped = encode(section(LONG, max_seq_len=8), bytes_only, seed=0)
    assert [document.row for document in dropped.train] == ["a.jsonl:1"]
    assert dropped.notes == ["2 of 3 documents are longer than 8 tokens: dropped"]

    cut = encode(section(LONG, max_seq_len=8, overlength="truncate"), bytes_only, seed=0)
    assert [(d.row, len(d), trained_text(d, bytes_only)) for d in cut.train] == [
        ("a.jsonl:1", 7, "cccc<|im_end|>"),
        ("a.jsonl:2", 8, "cccccc"),
    ]
    assert cut.notes == [
        "2 of 3 documents are longer than 8 tokens: cut to it",
        "1 of them had no supervised token left: dropped",
    ]
    with pytest.raises(DataError, match=r"^a.jsonl:2: 23 tokens, data.max_seq_len is 8.\n  raise it, or set"):
        encode(section(LONG, max_seq_len=8, overlength="error"), bytes_only, seed=0)


def test_nothing_to_learn_names_the_first_rows(section, write, bytes_only):
    write("a.jsonl", LONG_ROWS[1:])
    with pytest.raises(DataError, match=r"none of the training rows fits into .* 8 tokens, .* a.jsonl:1, a.jsonl:2\."):
        encode(section(LONG, max_seq_len=8), bytes_only, seed=0)
    write("b.jsonl", [{"messages": [{"role": "user", "content": "hi"}]}] * 5)
    chat = {"path": "b.jsonl", "format": "chat"}
    with pytest.raises(DataError) as caught:
        encode(section(chat), bytes_only, seed=0)
    assert str(caught.value).startswith(
        "no supervised token in any of the training rows, the first are b.jsonl:1, b.jsonl:2, b.jsonl:3: nothing would"
    )
    assert len(encode(section(chat, train_on="all"), bytes_only, seed=0).train) == 5


def test_rows_without_an_answer_are_counted(section, write, bytes_only):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    write("a.jsonl", [{"messages": turns}, {"messages": turns[:1]}])
    encoded = encode(section({"path": "a.jsonl", "format": "chat"}), bytes_only, seed=0)
    assert encoded.notes == ["1 of 2 documents have no supervised token: dropped (a.jsonl:2)"]


def test_what_a_template_lacks_is_said(section, write):
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]
    write("a.jsonl", [{"messages": turns}])
    template = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    encoded = encode(section({"path": "a.jsonl", "format": "chat"}), byte_bpe(template=template), seed=0)
    assert [note.split(":")[0] for note in encoded.notes] == [
        "the chat template ends 1 conversation without a stop token",
        "the chat template writes the date of the day that a run begins",
        "the chat template ends 1 turn of the assistant before the last without a stop token, so they do not teach it "
        "to stop; train_on",
    ]


def test_the_fingerprint_sees_ids_and_masks(section, write, bytes_only):
    write("a.jsonl", ADD)

    def fingerprint(**fields):
        return encode(section(INSTRUCTION, **fields), bytes_only, seed=0).fingerprint

    first = fingerprint()
    assert first == fingerprint()
    assert fingerprint(train_on="all") != first
    assert fingerprint(validation=ValidationSection(rows=1)) != first
    write("a.jsonl", [*ADD[:-1], {**ADD[-1], "output": "0"}])
    assert fingerprint() != first


def test_several_sources_keep_their_own_form(section, write, bytes_only):
    write("a.jsonl", ADD[:2])
    write("b.txt", "one\n\ntwo\n")
    encoded = encode(section(INSTRUCTION, {"path": "b.txt", "format": "text"}), bytes_only, seed=0)
    assert [trained_text(d, bytes_only) for d in encoded.train] == [
        "1<|im_end|>",
        "2<|im_end|>",
        "ne<|im_end|>",
        "wo<|im_end|>",
    ]


def test_plain_text_asks_nothing(section, bytes_only):
    source = SourceSection(path="a.txt", format="text")
    with pytest.raises(DataError, match="rows of format text have no prompts to answer"):
        encode_prompts([Row({"text": "a"}, "a:1")], source, section(INSTRUCTION), bytes_only)


def test_a_model_without_a_number_of_positions_takes_any_length():
    """Planted bug caught: a model that states no positions (Bloom, Mamba) refused, or failed on."""
    document = Document(np.zeros(9, dtype=np.int32), np.ones(9, dtype=bool), "a.jsonl:1")
    for config in (BloomConfig(), XLNetConfig()):
        check_documents_fit([document], config)
    check_documents_fit([document], LlamaConfig(max_position_embeddings=9))
    with pytest.raises(ModelError, match=r"a\.jsonl:1: 9 tokens, and the model has 8 positions"):
        check_documents_fit([document], LlamaConfig(max_position_embeddings=8))
