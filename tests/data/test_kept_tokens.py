"""Token ids of large data sets are kept between runs."""

import pytest

from dorakit.data import kept_tokens
from dorakit.data.encoder import Encoder
from dorakit.data.tokens import encode

CHAT = {"path": "a.jsonl", "format": "chat"}
PLAIN = {"path": "a.jsonl", "format": "completion"}
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'user' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(autouse=True)
def small_is_many(monkeypatch, tmp_path):
    monkeypatch.setattr(kept_tokens, "MANY", 2)
    monkeypatch.setenv("DORAKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def no_tokenising(monkeypatch):
    def start():
        for name in ("texts", "marked"):
            monkeypatch.setattr(Encoder, name, lambda *_: pytest.fail("tokenised again"))

    return start


@pytest.mark.parametrize("source", [CHAT, PLAIN], ids=["chat", "completion"])
def test_the_second_run_has_the_same_documents_and_notes(source, section, write, bpe, no_tokenising):
    """Dies if a mask or a count is not kept, or if nothing is."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello Ada"}]
    rows = [
        {"messages": turns[:n] + turns[1:]} if source is CHAT else {"prompt": "ab", "completion": "c" * n}
        for n in (1, 2, 1)
    ]
    write("a.jsonl", rows)
    bpe.chat_template = TEMPLATE
    first = encode(section(source), bpe, seed=0)
    no_tokenising()
    second = encode(section(source), bpe, seed=0)
    assert second.fingerprint == first.fingerprint and second.notes == first.notes
    assert [d.labels.tolist() for d in second.train] == [d.labels.tolist() for d in first.train]
    assert source is PLAIN or any("stop token" in note for note in first.notes)


@pytest.mark.parametrize("change", ["text", "template", "train_on", "tokenizer"])
def test_whatever_the_ids_depend_on_makes_them_anew(change, section, write, bpe, no_tokenising):
    """Dies if one of them is left out of the key."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    write("a.jsonl", [{"messages": turns}] * 3)
    bpe.chat_template = TEMPLATE
    before = encode(section(CHAT), bpe, seed=0).fingerprint
    settings = {}
    if change == "text":
        write("a.jsonl", [{"messages": [turns[0], {"role": "assistant", "content": "Hullo"}]}] * 3)
    elif change == "template":
        bpe.chat_template = TEMPLATE.replace("<{{", "<<{{").replace("<assistant>", "<<assistant>")
    elif change == "train_on":
        settings["train_on"] = "all"
    else:
        bpe.add_tokens(["Hello"])
    assert encode(section(CHAT, **settings), bpe, seed=0).fingerprint != before
    no_tokenising()
    encode(section(CHAT, **settings), bpe, seed=0)


def test_a_template_that_writes_the_date_is_not_kept(section, write, bpe, tmp_path):
    """Dies if yesterday's date can come out of the cache."""
    write("a.jsonl", [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}] * 3)
    bpe.chat_template = TEMPLATE + "{% if false %}{{ strftime_now('%d') }}{% endif %}"
    encode(section(CHAT), bpe, seed=0)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["cut", "bit", "count", "missing"])
def test_a_damaged_entry_is_said_and_replaced(damage, section, write, bpe, tmp_path, no_tokenising):
    """Dies if a cut file ends the run, if a flipped bit is trained on, or if the damage stays, in silence or not."""
    write("a.jsonl", [{"prompt": "ab", "completion": "c"}] * 3)
    before = encode(section(PLAIN), bpe, seed=0)
    (entry,) = (tmp_path / "cache").iterdir()
    name = {"count": "counts.json", "missing": "blake2b.txt"}.get(damage, "tokens.safetensors")
    content = (entry / name).read_bytes()
    if damage == "missing":
        (entry / name).unlink()
    else:
        # The last byte but one belongs to the ids, or to the counts.
        changed = {"cut": content[:40], "bit": content[:-2] + bytes([content[-2] ^ 1]) + content[-1:], "count": b"{} "}
        (entry / name).write_bytes(changed[damage])
    after = encode(section(PLAIN), bpe, seed=0)
    assert after.fingerprint == before.fingerprint
    (said,) = [note for note in after.notes if note not in before.notes]
    assert said.startswith(f"the token ids kept in {entry} are damaged (") and said.endswith("): they were made again")
    assert (entry / name).read_bytes() == content
    no_tokenising()
    assert encode(section(PLAIN), bpe, seed=0).notes == before.notes


def test_a_cache_that_cannot_be_written_costs_time_and_no_training(section, write, bpe, tmp_path, monkeypatch):
    """Dies if a full disk ends the run, if the rows are tokenised twice for it, or if nobody is told."""
    write("a.jsonl", [{"prompt": "ab", "completion": "c"}] * 3)
    (tmp_path / "cache").write_text("a file in the place of the directory")
    calls = []
    own = Encoder.texts
    monkeypatch.setattr(Encoder, "texts", lambda *given: calls.append(1) or own(*given))
    found = encode(section(PLAIN), bpe, seed=0)
    once = len(calls)
    assert [note for note in found.notes if "kept" in note] == [
        f"the token ids are not kept between runs: the cache cannot be used: {tmp_path / 'cache'}: File exists"
    ]
    monkeypatch.setattr(kept_tokens, "MANY", 10)
    assert encode(section(PLAIN), bpe, seed=0).fingerprint == found.fingerprint and len(calls) == 2 * once


def test_an_entry_of_another_user_is_left_aside(section, write, bpe, tmp_path, monkeypatch):
    """Dies if what may not be read is called damaged, or ends the run."""
    write("a.jsonl", [{"prompt": "ab", "completion": "c"}] * 3)
    before = encode(section(PLAIN), bpe, seed=0)
    (entry,) = (tmp_path / "cache").iterdir()

    def refused(_):
        raise PermissionError(13, "Permission denied", str(entry))

    monkeypatch.setattr(kept_tokens, "_read", refused)  # the permission bits of an entry do not bind root
    after = encode(section(PLAIN), bpe, seed=0)
    assert after.fingerprint == before.fingerprint and [*after.notes[len(before.notes) :]] == [
        f"the token ids kept in {entry} cannot be read (Permission denied): they were made again"
    ]
