"""A chat without its screen: what is asked, what is remembered, what is handed over while an answer grows."""

import pytest

from dorakit.errors import ModelError, UsageError
from dorakit.evaluation.conversation import GrowingText, Voice, open_voices
from dorakit.evaluation.generation import answer_prompts
from dorakit.evaluation.sampling import Sampling
from dorakit.model.generate import generate_ids
from dorakit.model.tiny import tiny_tokenizer
from dorakit.model.token_by_token import stream_ids
from dorakit.target import open_target


@pytest.fixture(scope="module")
def tiny():
    return open_target("tiny:llama")


def say(voice, text, number=1, **options):
    """An answer and the pieces that it came in."""
    pieces = []
    answer = voice.answer(voice.ask(text), number=number, take=pieces.append, **options)
    assert "".join(pieces) == answer.text
    return answer, pieces


def asked(voice, text):
    return voice._target.tokenizer.decode(voice.ask(text).ids)


def test_the_first_answer_is_the_one_of_generate(tiny):
    """Planted bugs caught: the prompt streamed; the model's own generation settings left in force."""
    [expected] = answer_prompts("tiny:llama", ["Hi"], max_new_tokens=12, quiet=True)
    answer, pieces = say(Voice("model", tiny, Sampling(12)), "Hi")
    assert answer.text == expected["text"] and not answer.finished
    assert len([piece for piece in pieces if piece]) > 2


def test_the_stop_token_is_no_part_of_the_answer(tiny, monkeypatch):
    """Planted bug caught: what ends an answer handed over as its last token."""
    free = generate_ids(tiny.model, tiny.tokenizer, [[5, 6, 7]], max_new_tokens=8, batch_size=1)[0]
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", [free[4]])
    taken = []
    options = {"max_new_tokens": 8, "take": taken.append, "is_stopped": lambda: False}
    assert stream_ids(tiny.model, tiny.tokenizer, [5, 6, 7], **options) == taken == free[: free.index(free[4])]


def test_turns_are_remembered_until_they_are_forgotten(tiny):
    """Planted bugs caught: the answer not remembered; the system message forgotten with the turns."""
    voice = Voice("model", tiny, Sampling(6), system="Be brief.")
    head = "<|im_start|>system\nBe brief.<|im_end|>\n"
    first = asked(voice, "one")
    assert first == head + "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
    answer, _ = say(voice, "one")
    second = f"{answer.text}<|im_end|>\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"
    assert asked(voice, "two") == first + second
    voice.forget()
    assert asked(voice, "one") == first


def test_the_base_answers_without_the_adapter_and_each_remembers_its_own(trained):
    """Planted bugs caught: the adapter left off after the base; one memory for both; rows asked as chats."""
    run = str(trained("dora").path)
    [expected] = answer_prompts(run, ["1 plus 3 ="], compare=True, max_new_tokens=6, quiet=True)
    assert expected["text"] != expected["base_text"]
    voices = open_voices(run, Sampling(6), compare=True, quiet=True)
    assert [voice.name for voice in voices] == ["base", "adapter"]
    for _ in range(2):  # rows of a completion have no turns, so the second time nothing has changed
        answers = [say(voice, "1 plus 3 =")[0].text for voice in voices]
        assert answers == [expected["base_text"], expected["text"]]


def test_what_has_no_room_goes_from_the_oldest_turn_on(tiny, monkeypatch):
    """Planted bugs caught: half a turn dropped; the system message dropped; the new tokens given no room."""
    voice = Voice("model", tiny, Sampling(4), system="S")
    for number, text in enumerate(("first", "second", "third")):
        say(voice, text, number)
    whole = voice.ask("fourth")
    assert whole.dropped_turns == 0
    monkeypatch.setattr(tiny.model.config, "max_position_embeddings", len(whole.ids) + 4)
    assert voice.ask("fourth") == whole
    monkeypatch.setattr(tiny.model.config, "max_position_embeddings", len(whole.ids) + 3)
    left = voice.ask("fourth")
    assert left.dropped_turns == 1 and left.turns == whole.turns[2:]
    text = tiny.tokenizer.decode(left.ids)
    assert text.startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nsecond")
    monkeypatch.setattr(tiny.model.config, "max_position_embeddings", 40)
    with pytest.raises(ModelError, match="exceed the model's 40 positions"):
        voice.ask("a text that is too long even alone")


def test_draws_depend_on_seed_and_turn_alone(tiny):
    """Planted bugs caught: draws that go on from the last ones; a temperature that is not used; one seed for all turns."""

    def drawn(seed, number, temperature=3.0):
        return say(Voice("model", tiny, Sampling(12, temperature, seed)), "Hi", number)[0].text

    assert drawn(1, 1) == drawn(1, 1)
    assert len({drawn(1, 1), drawn(2, 1), drawn(1, 2), drawn(1, 1, 0.0)}) == 4


def test_a_stopped_answer_is_remembered_as_far_as_it_came(tiny):
    """Planted bugs caught: a stop that is not looked at; what was said before it forgotten."""
    voice = Voice("model", tiny, Sampling(50))
    tokens = []
    answer, _ = say(voice, "Hi", is_stopped=lambda: tokens.append(0) or len(tokens) >= 3)
    assert not answer.finished and len(answer.text) <= 4
    assert asked(voice, "go on").count("<|im_start|>user") == (2 if answer.text else 1)


@pytest.mark.parametrize(
    ("parts", "pieces"),
    [
        ([("aé", 3)], ["a", "", "é", ""]),
        ([("🚀", 4), ("!", 1)], ["", "", "", "🚀", "!", ""]),
        ([("🚀", 2), ("a", 1)], ["", "", "\ufffda", ""]),
        ([("aé", 2)], ["a", "", "\ufffd"]),
    ],
)
def test_a_character_is_given_when_its_last_byte_is_there(parts, pieces):
    """Each part is a text and how many of its bytes come. Planted bugs caught: half a character shown; its end lost."""
    tokenizer = tiny_tokenizer()  # one token a byte
    growing = GrowingText(tokenizer)
    given = [growing.add(token) for text, count in parts for token in tokenizer(text)["input_ids"][:count]]
    assert [*given, growing.rest()] == pieces
    assert "".join(pieces) == growing.text


def test_a_model_without_a_base_has_nothing_to_compare_with():
    with pytest.raises(UsageError, match="no base to compare with"):
        open_voices("tiny:llama", Sampling(4), compare=True)
