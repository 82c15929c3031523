"""The quickstart's data: what its script writes, learnable only by reading, and small."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = ROOT / "recipes" / "data"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_quickstart_data", ROOT / "scripts" / "make_quickstart_data.py")
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up.
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rows(name):
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def sentence(row):
    return row["messages"][1]["content"]


def order(row):
    return json.loads(row["messages"][2]["content"], parse_float=str, parse_int=str)


def test_committed_files_are_what_the_script_writes(script, tmp_path):
    script.main(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        assert path.read_bytes() == (DATA / path.name).read_bytes(), f"run scripts/make_quickstart_data.py: {path.name}"
    assert sorted(p.name for p in DATA.iterdir()) == sorted(p.name for p in tmp_path.iterdir())


def test_held_out_rows_share_no_value_with_training_rows():
    """By words and by numbers: not even a surname or an adjective, let alone a whole name or item."""

    def words(name):
        return {
            piece.lower()
            for row in rows(name)
            for key in ("customer", "item", "city")
            for piece in order(row)[key].split()
        }

    def numbers(name):
        return {part for row in rows(name) for key in ("quantity", "price") for part in order(row)[key].split(".")[:1]}

    assert words("orders.train.jsonl") & words("orders.test.jsonl") == set()
    assert numbers("orders.train.jsonl") & numbers("orders.test.jsonl") == set()
    cents = [{order(row)["price"].split(".")[1] for row in rows(f"orders.{side}.jsonl")} for side in ("train", "test")]
    assert cents[0] & cents[1] == set()
    # Nor does a held-out value turn up anywhere else in a training sentence.
    text = " ".join(sentence(row) for row in rows("orders.train.jsonl")).lower()
    spoken = set(re.findall(r"[^\W\d]+", text))
    assert spoken & words("orders.test.jsonl") == set()


def test_every_value_can_be_copied_and_nothing_else_would_do():
    for name in ("orders.train.jsonl", "orders.test.jsonl"):
        for row in rows(name):
            answer = order(row)
            assert list(answer) == ["customer", "item", "quantity", "price", "city"]
            for key, value in answer.items():
                found = re.findall(rf"(?<![\w.]){re.escape(value)}(?![\w]|\.\d)", sentence(row))
                assert len(found) == 1, f"{key}={value!r} stands {len(found)} times in {sentence(row)!r}"


def test_half_of_the_held_out_phrasings_are_new(script):
    assert not set(script.TRAIN_PHRASINGS) & set(script.TEST_PHRASINGS)
    for phrasing in (*script.TRAIN_PHRASINGS, *script.TEST_PHRASINGS):
        assert all(phrasing.count(f"{{{field}}}") == 1 for field in "ciqpt"), phrasing

    def form(phrasing):
        return re.compile(re.sub(r"\\{\w\\}", ".+?", re.escape(phrasing)))

    known = [form(phrasing) for phrasing in script.TRAIN_PHRASINGS]
    new = [row for row in rows("orders.test.jsonl") if not any(form.fullmatch(sentence(row)) for form in known)]
    assert len(new) == script.NUM_TEST // 2
    # Alternating, so that a limit keeps the share.
    assert all(row in new for row in rows("orders.test.jsonl")[1::2])


def test_no_row_twice_and_under_200_kB():
    for name in ("orders.train.jsonl", "orders.test.jsonl"):
        sentences = [sentence(row) for row in rows(name)]
        assert len(set(sentences)) == len(sentences)
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 200_000
