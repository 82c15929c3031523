import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_tokenizers import byte_bpe, metaspace_bpe  # pytest puts this directory on the path

from dorakit.data.encoder import Encoder

BPE = byte_bpe(bos=True)
TEXTS = st.text(alphabet="ab \n\t.é你🙂", max_size=12)


def test_bos_is_added_once():
    encoder = Encoder(BPE)
    bos = BPE.bos_token_id
    assert encoder.lead == [bos]
    plain, spelt = (ids.tolist() for ids in encoder.beginnings(["hello", "<|bos|>hello"]))
    assert plain == spelt
    assert plain[0] == bos
    assert plain.count(bos) == 1
    assert encoder.texts(["hello"])[0].tolist() == plain[1:]
    assert Encoder(byte_bpe()).lead == []


def test_a_continuation_gets_no_blank_of_its_own():
    """Planted bug: a Llama-2 tokenizer begins every text with a blank, so that 'x' after a prompt becomes ' x'."""
    tokenizer = metaspace_bpe()
    encoder = Encoder(tokenizer)
    prompt, answer = encoder.beginnings(["the answer:\n"])[0], encoder.continuations(["hello"])[0]
    assert tokenizer.decode(np.concatenate([prompt, answer]), skip_special_tokens=True) == "the answer:\nhello"
    assert encoder.texts(["hello"])[0].tolist() != answer.tolist()


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=5), st.sampled_from([0, 1]))
@example(["\n", "   "], 0)  # one token, of which the tokenizer's offsets name the first character only
def test_a_mask_covers_its_spans_and_nothing_else(pieces, first):
    """Alternating pieces are marked; the marked tokens must spell exactly those, whatever blanks lie at the borders."""
    spans, position = [], 0
    for index, piece in enumerate(pieces):
        if piece and index % 2 == first:
            spans.append((position, position + len(piece)))
        position += len(piece)
    ((ids, mask),) = Encoder(BPE).marked(["".join(pieces)], [spans])
    assert BPE.decode(ids[mask]) == "".join(piece for i, piece in enumerate(pieces) if i % 2 == first)
    assert BPE.decode(ids[~mask]) == "".join(piece for i, piece in enumerate(pieces) if i % 2 != first)


def test_a_text_is_cut_only_where_a_token_would_cross_a_border():
    encoder = Encoder(BPE)
    text = "the user asks and the assistant answers"
    whole = encoder.texts([text])[0].tolist()
    ((same, _),) = encoder.marked([text], [[(text.index(" assistant"), len(text))]])
    assert same.tolist() == whole
    ((cut, mask),) = encoder.marked([text], [[(text.index("istant"), len(text))]])
    assert BPE.decode(cut[mask]) == "istant answers"
    assert cut.tolist() != whole


def test_a_tokenizer_without_offsets_gives_the_same_mask(monkeypatch):
    text, spans = "the user asks: hello\n\nthe assistant", [(15, 20)]
    with_offsets = Encoder(BPE).marked([text], [spans])[0]
    monkeypatch.setattr(type(BPE), "is_fast", False)
    without = Encoder(BPE).marked([text], [spans])[0]
    assert BPE.decode(without[0][without[1]]) == BPE.decode(with_offsets[0][with_offsets[1]]) == "hello"
