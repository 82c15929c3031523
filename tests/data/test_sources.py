import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from dorakit.data.sources import like_first, num_copies, read_file, read_rows
from dorakit.errors import DataError, ResourceError
from dorakit.recipe.schema import SourceSection

ROWS = [{"text": f"row {i}", "n": i} for i in range(6)]


def read(root, path, **fields):
    return read_rows(SourceSection(path=path, format="text", **fields), str(root))[0]


def test_every_kind_of_file_gives_the_same_rows(tmp_path, write):
    write("a.json", ROWS)
    write("a.jsonl", ROWS)
    write("array.jsonl", "\n" + (tmp_path / "a.json").read_text())
    write("lines.json", "\ufeff" + (tmp_path / "a.jsonl").read_text().replace("\n", "\r\n\r\n"))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    halves = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:2])}
    datasets.DatasetDict(halves).save_to_disk(tmp_path / "dict")
    for name in ("a.json", "a.jsonl", "array.jsonl", "lines.json", "a.parquet", "saved", "dict"):
        assert [row.fields for row in read(tmp_path, name)] == ROWS, name
    assert [row.fields for row in read(tmp_path, "dict", split="test")] == ROWS[:2]


def test_structs_of_parquet_keep_no_field_of_other_rows(tmp_path, write):
    """Planted bug caught: each tool call reaches the template with the arguments of all other tools, as null."""
    calls = [{"a": 1, "b": [2]}, {"city": "Oslo"}]
    rows = [{"messages": [{"role": "assistant", "calls": [{"arguments": call}]}], "n": None} for call in calls]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    assert [row.fields for row in read(tmp_path, "a.parquet")] == rows
    assert [row.fields for row in read(tmp_path, "saved")] == rows
    write("a.jsonl", [{"arguments": {"unit": None}}])
    assert read(tmp_path, "a.jsonl")[0].fields == {"arguments": {"unit": None}}


def test_rows_know_their_place(tmp_path, write):
    write("a.json", ROWS)
    write("a.jsonl", "\n".join(['{"text": "x"}', "", '{"text": "y"}']))
    write("a.csv", 'text,n\n"two\nlines",1\n\nlast,2\n')
    write("a.txt", "\n\none\ntwo\n \n\nthree")
    assert [r.place for r in read(tmp_path, "a.json", offset=2, limit=3)] == ["a.json[2]", "a.json[3]", "a.json[4]"]
    assert [r.place for r in read(tmp_path, "a.jsonl")] == ["a.jsonl:1", "a.jsonl:3"]
    assert [(r.place, r.fields) for r in read(tmp_path, "a.csv")] == [
        ("a.csv:2", {"text": "two\nlines", "n": "1"}),
        ("a.csv:5", {"text": "last", "n": "2"}),
    ]
    assert [(r.place, r.fields["text"]) for r in read(tmp_path, "a.txt")] == [
        ("a.txt:3", "one\ntwo"),
        ("a.txt:7", "three"),
    ]


def test_blank_lines_before_a_csv_header(tmp_path, write):
    """Planted bug caught: the first line is the header, though nothing stands in it."""
    write("a.csv", "\n  \ntext,n\nx,1\n")
    assert [(row.place, row.fields) for row in read(tmp_path, "a.csv")] == [("a.csv:4", {"text": "x", "n": "1"})]


def test_line_separators_inside_json_do_not_end_a_line(tmp_path, write):
    write("a.jsonl", '{"text": "one\u2028two\x85three"}\n')
    assert read(tmp_path, "a.jsonl")[0].fields["text"] == "one\u2028two\x85three"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"text": "x"}\n{"text": }\n',
            r"^a.jsonl:2: not JSON: Expecting value at column 10: {\"text\": }$",
        ),
        ("a.jsonl", '{"text": "x"}\n' + "[" * 100_000, r"^a.jsonl:2: not JSON: nested too deeply: \[\[\[.*\.\.\.$"),
        ("a.jsonl", '{"text": NaN}\n', r"^a.jsonl:1: not JSON: NaN is not JSON"),
        ("a.jsonl", '{"text": "\x1b[31m"}\n', r'^a.jsonl:1: not JSON: Invalid control .*: {"text": "\\x1b\[31m"}$'),
        ("a.jsonl", '{"text": "x"}\n3\n', r"^a.jsonl:2: expected a JSON object, found int: 3"),
        ("a.json", '[{"text": "x"},\n {"text" "y"}]', r"^a.json:2: not JSON: .* at column 10:  {\"text\" \"y\"}\]$"),
        ("a.json", '[{"text": "x"}, "y"]', r"^a.json\[1\]: expected a JSON object, found str: \"y\""),
        ("a.json", '{\n  "rows": [{"text": "x"}]\n}', "^a.json holds one JSON object; expected an array of objects"),
        ("a.json", "[]", "^a.json has no rows"),
        ("a.jsonl", " \n\n", "^a.jsonl is empty"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}', r"^a.jsonl:2: not UTF-8 text: byte 0xff at offset 24"),
        ("a.txt", b"a\n\nb\0c", r"^a.txt:3: not UTF-8 text: byte 0x00 at offset 4"),
        ("a.csv", "text\nx\n".encode("utf-16"), r"^a.csv:1: not UTF-8 text: byte 0xff at offset 0"),
        (
            "a.jsonl",
            '{"text": "' + "x" * (4 << 20) + '"}\n',
            r"^a.jsonl:1: a line of 4,194,316 characters, at most 4,194,304",
        ),
        (
            "a.json",
            '[{"text": "x"}, {"a": ' + "[" * 64 + "]" * 64 + "}]",
            r"^a.json\[1\]: .* nested more than 64 levels deep",
        ),
        ("a.jsonl", '{"text": "' + "x" * 300 + '" y}\n', r'^a.jsonl:1: not JSON: .* at column 313: \.\.\.x{37}" y}$'),
        ("a.csv", "text,n\nx\n", "^a.csv:2: 1 values for 2 columns$"),
        ("a.csv", "text\nx, y\n", "^a.csv:2: 2 values for 1 columns\n  put a value that holds a comma in quotes$"),
        ("a.csv", "a;b\nx\n", "^a.csv:2: 1 values for 2 columns, separated by ';'$"),
        (
            "a.csv",
            "a;b, c;d\nx;y;z\n",
            "^a.csv:2: 1 values .*\n  the header is taken as separated by commas .* it also holds ';': put",
        ),
        (
            "a.csv",
            "a;b|c\nx;y|z\n",
            r"^a.csv: the header holds ';' and '\|' and no comma(.|\n)*save the file with commas",
        ),
        ("a.csv", 'text,n\nx,"1\n', "^a.csv:2: not CSV: unexpected end of data"),
        ("a.csv", "text,text\nx,y\n", "^a.csv:1: column 'text' is there twice"),
        ("a.parquet", "PAR0", "^a.parquet is not a Parquet file that can be read"),
        ("a.xml", "<a/>", r"^a.xml is of no known kind; rows are read from .json, .jsonl, .csv, .parquet and .txt"),
    ],
)
def test_bad_files_say_where(tmp_path, write, name, content, message):
    write(name, content)
    with pytest.raises(DataError, match=message):
        read(tmp_path, name)


def test_64_levels_are_read(tmp_path, write):
    """Brackets inside a text are no levels."""
    deep = "[" * 63 + "]" * 63
    write("a.jsonl", '{"text": ' + deep + "}\n" + '{"text": "' + "[" * 500 + '"}\n')
    assert len(read(tmp_path, "a.jsonl")) == 2
    write("a.json", '[{"text": ' + deep + "}]")
    assert len(read(tmp_path, "a.json")) == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_file_that_is_written_while_it_is_read_is_refused(tmp_path, write, monkeypatch, name):
    """Planted bug caught: half of the rows are trained on, and nobody knows."""
    write("a.jsonl", ROWS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    size = (tmp_path / name).stat().st_size
    read_bytes, read_table = Path.read_bytes, pyarrow.parquet.read_table

    def written_to(read_it):
        def reading(path, *arguments, **options):
            content = read_it(path, *arguments, **options)
            with open(path, "ab") as file:
                file.write(b"{}\n")
            return content

        return reading

    monkeypatch.setattr(Path, "read_bytes", written_to(read_bytes))
    monkeypatch.setattr(pyarrow.parquet, "read_table", written_to(read_table))
    with pytest.raises(
        DataError, match=f"^{name} changed while it was read: {size:,} bytes before, {size + 3:,} after"
    ):
        read(tmp_path, name)


def test_a_missing_file_names_its_neighbours(tmp_path, write):
    write("train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"no such file: trian.jsonl \(looked for .*\)\n  did you mean train.jsonl\?"):
        read(tmp_path, "trian.jsonl")
    with pytest.raises(DataError, match=r"no such file: .*x.jsonl\n  nearest directory that exists: .* \(holds train"):
        read(tmp_path, "not/here/x.jsonl")
    with pytest.raises(DataError, match=r"is a directory, and not one .*\n  name a file in it: train.jsonl"):
        read(tmp_path, ".")


def test_paths_that_the_system_refuses(tmp_path):
    """Planted bugs caught: rows of nobody's home, or with too long a name, end in a traceback."""
    with pytest.raises(DataError, match=r"no such file: .*~nosuch/x.jsonl"):
        read(tmp_path, "~nosuch/x.jsonl")
    with pytest.raises(DataError, match="cannot be looked at: File name too long"):
        read(tmp_path, "a" * 300 + ".jsonl")


def test_a_missing_split_names_the_others(tmp_path):
    datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "dict")
    with pytest.raises(DataError, match="has no split 'train'; it has test"):
        read(tmp_path, "dict")


def test_a_single_data_set_is_of_the_split_it_says(tmp_path):
    """Planted bug caught: the training rows read where the test split was asked for."""
    datasets.Dataset.from_list(ROWS, split="train").save_to_disk(tmp_path / "saved")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "silent")
    with pytest.raises(DataError, match=r"saved holds the split 'train' alone, and split 'test' was asked for"):
        read(tmp_path, "saved", split="test")
    assert len(read(tmp_path, "saved", split="train")) == len(read(tmp_path, "saved")) == 6
    assert len(read(tmp_path, "silent", split="test")) == 6


def test_an_offset_past_the_end_is_refused(tmp_path, write):
    write("a.json", ROWS)
    with pytest.raises(DataError, match=r"a\.json: offset 6 skips all of its 6 rows"):
        read(tmp_path, "a.json", offset=6)


def test_a_hub_data_set_offline_names_the_switch(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ResourceError, match=r"^nobody/nothing \(no such file .*HF_HUB_OFFLINE is set(.|\n)*--twin"):
        read(tmp_path, "nobody/nothing")


def test_copies_follow_the_weight():
    """Planted bug caught: a share of rows cut to a whole number, 28 of 100 at 0.29, which is a little less in binary."""
    assert num_copies(4, 1.0, 0, 0).tolist() == [1, 1, 1, 1]
    assert num_copies(4, 2.0, 0, 0).tolist() == [2, 2, 2, 2]
    assert [int(num_copies(100, weight, 0, 0).sum()) for weight in (0.29, 1.07, 2.999)] == [29, 107, 300]
    half = num_copies(100, 0.5, 7, 0)
    assert sorted(half.tolist()) == [0] * 50 + [1] * 50
    more = num_copies(100, 1.5, 7, 0)
    assert (more - half == 1).all()
    # The choice for a smaller weight is part of the choice for a larger one, so runs can be compared.
    assert (num_copies(100, 0.25, 7, 0) <= half).all()
    assert num_copies(100, 0.5, 7, 0).tolist() == half.tolist()
    assert num_copies(100, 0.5, 8, 0).tolist() != half.tolist()
    assert num_copies(100, 0.5, 7, 1).tolist() != half.tolist()
    np.random.seed(1)
    assert num_copies(100, 0.5, 7, 0).tolist() == half.tolist()


def test_held_out_rows_keep_form_and_lose_weight(section):
    data = section(
        {
            "path": "a.json",
            "format": "instruction",
            "columns": {"output": "o"},
            "prompt": "chat",
            "weight": 3.0,
            "offset": 5,
            "limit": 7,
        }
    )
    source = like_first(data, "t.json", limit=2)
    assert source == SourceSection(path="t.json", format="instruction", columns={"output": "o"}, prompt="chat", limit=2)
    assert like_first(data, "t.json", prompt="default").prompt == "default"


def test_a_configuration_belongs_to_its_data_set(section):
    """Planted bug caught: name, revision or split of the training source asked of another data set."""
    data = section({"path": "a/b", "format": "text", "name": "main", "revision": "v1", "split": "part"})
    same, other = like_first(data, "a/b", split="test"), like_first(data, "c/d")
    assert (same.name, same.revision, same.split) == ("main", "v1", "test")
    assert (other.name, other.revision, other.split) == (None, None, None)


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_columns_that_are_not_separated_by_commas(tmp_path, write, delimiter):
    """Planted bugs caught: one column whose name is the whole header; a delimiter that is taken in silence."""
    text = f'question{delimiter}"a, b"{delimiter}answer\n"1{delimiter}2, 3?"{delimiter}{delimiter}"six\nor more"\n'
    write("a.csv", text)
    rows, notes = read_rows(SourceSection(path="a.csv", format="text"), str(tmp_path))
    assert [(row.place, row.fields) for row in rows] == [
        ("a.csv:2", {"question": f"1{delimiter}2, 3?", "a, b": "", "answer": "six\nor more"})
    ]
    assert notes == [f"a.csv: columns are separated by {'a tab' if delimiter == chr(9) else repr(delimiter)}"]


def test_a_comma_in_the_header_separates(tmp_path, write):
    """Planted bug caught: the delimiter guessed from the rows, or from the more frequent character."""
    write("a.csv", "text,a;b;c\nx;y,1\n")
    rows, notes = read_rows(SourceSection(path="a.csv", format="text"), str(tmp_path))
    assert [row.fields for row in rows] == [{"text": "x;y", "a;b;c": "1"}] and notes == []
    write("a.csv", "text\none; two | three\n")
    assert [row.fields for row in read(tmp_path, "a.csv")] == [{"text": "one; two | three"}]


FIRST = [{"text": f"row {i}: " + "é" * 20} for i in range(50)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "pretty.json", "a.csv", "a.txt"])
def test_the_first_rows_of_a_file(tmp_path, write, name):
    """Planted bugs caught: half a row where reading stopped, or an error for it; a bound that bounds nothing."""
    lines = {
        "a.csv": 'text\n' + "".join(f'"{row["text"]}"\n' for row in FIRST),
        "a.txt": "\n\n".join(row["text"] for row in FIRST),
        "pretty.json": json.dumps(FIRST, indent=2, ensure_ascii=False),
        "a.json": json.dumps(FIRST, ensure_ascii=False),
    }  # fmt: skip
    write(name, lines.get(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in FIRST)))
    for most_bytes in (*range(100, 200), 1_000, 100_000):
        found = read_file(tmp_path / name, name, most_rows=30, most_bytes=most_bytes)
        rows = [row.fields for row in found.rows]
        assert rows == FIRST[: len(rows)] and not found.is_whole
        assert len(rows) == 30 if most_bytes > 10_000 else 1 <= len(rows) < 30
    whole = read_file(tmp_path / name, name, most_rows=50, most_bytes=100_000)
    assert len(whole.rows) == 50 and whole.is_whole


def test_the_first_rows_of_a_table(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert [row.fields for row in read_file(tmp_path / "a.parquet", "a", most_rows=4).rows] == ROWS[:4]
    assert read_file(tmp_path / "a.parquet", "a", most_rows=6).is_whole


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"a": 1},\n {"a": },' + " " * 100, r"^a\.json:2: not JSON: Expecting value at column 8"),
        ("a.json", '[{"a": 1}, 7,' + " " * 100, r"^a\.json\[1\]: expected a JSON object, found int"),
        ("a.json", '[{"a": NaN},' + " " * 100, r"^a\.json\[0\]: not JSON: NaN is not JSON"),
        ("a.csv", 'a,b\n"x"y,z\n' + "1,2\n" * 30, r"^a\.csv:2: not CSV"),
    ],
)
def test_a_mistake_before_the_bound_is_found(tmp_path, write, name, content, message):
    """Planted bug caught: every error counted as that of the cut."""
    write(name, content)
    with pytest.raises(DataError, match=message):
        read_file(tmp_path / name, name, most_rows=30, most_bytes=60)
