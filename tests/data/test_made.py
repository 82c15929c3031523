import pytest

from dorakit.data.formats import read_samples
from dorakit.data.sources import read_rows
from dorakit.data.tokens import encode
from dorakit.errors import DataError
from dorakit.recipe.schema import SourceSection, ValidationSection

SOURCES = [
    {"format": "chat"},
    {"format": "chat", "columns": {"conversations": "talk", "tools": "functions", "system": "preamble"}},
    {"format": "chat", "columns": {"messages": "talk"}},
    {"format": "instruction", "prompt": "llm-adapters"},
    {"format": "instruction", "prompt": "orca-math", "columns": {"instruction": "question", "output": "answer"}},
    {"format": "instruction", "prompt": "chat", "columns": {"input": "context"}},
    {"format": "completion"},
    {"format": "text", "columns": {"text": "body"}},
]


@pytest.mark.parametrize("fields", SOURCES, ids=lambda fields: "-".join(map(str, fields.values())))
@pytest.mark.parametrize("path", ["absent.jsonl", "someone/some-data"])
def test_made_rows_fit_their_format(fields, path, tmp_path, bytes_only, section):
    source = SourceSection(path=path, **fields)
    rows, notes = read_rows(source, str(tmp_path), seed=3, twin=True)
    assert len(rows) == 48
    assert len(notes) == 1
    assert notes[0].startswith(f"{path} is ")
    assert len(read_samples(rows, source)) == 48
    encoded = encode(section({"path": path, **fields}, max_seq_len=256), bytes_only, seed=3, twin=True)
    assert len(encoded.train) == 48
    if fields["format"] != "text":
        read_samples(rows, source, evaluation=True)


def test_made_rows_depend_on_seed_and_path_alone(tmp_path):
    def made(path, seed):
        rows, _ = read_rows(SourceSection(path=path, format="text"), str(tmp_path), seed=seed, twin=True)
        return [row.fields for row in rows]

    assert made("a.json", 1) == made("a.json", 1)
    assert made("a.json", 1) != made("b.json", 1)
    assert made("a.json", 1) != made("a.json", 2)


def test_files_that_are_there_are_read(tmp_path, write):
    write("a.jsonl", [{"text": "mine"}])
    rows, notes = read_rows(SourceSection(path="a.jsonl", format="text"), str(tmp_path), twin=True)
    assert ([row.fields["text"] for row in rows], notes) == (["mine"], [])


def test_without_twin_nothing_is_made(tmp_path):
    with pytest.raises(DataError, match=r"no such file: a\.jsonl"):
        read_rows(SourceSection(path="a.jsonl", format="text"), str(tmp_path))


def test_a_twin_holds_out_fewer_rows_where_there_are_few(section, bytes_only):
    data = section({"path": "a/b", "format": "text"}, validation=ValidationSection(rows=120))
    encoded = encode(data, bytes_only, seed=0, twin=True)
    assert (len(encoded.train), len(encoded.validation)) == (36, 12)
    assert "--twin: 12 validation rows instead of 120, for there are only 48 rows" in encoded.notes
