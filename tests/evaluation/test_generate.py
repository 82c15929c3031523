import pytest
import torch

from dorakit import attach_
from dorakit.errors import ModelError
from dorakit.model.generate import _read_but_last, generate_ids
from dorakit.model.load import load_base

# The fifth holds the padding token as text, which a guessed mask would hide.
PROMPTS = [list(range(5, 5 + length)) for length in (3, 9, 1, 20, 7, 9)]
PROMPTS[4][2:5] = [0, 0, 0]


def greedy(model, prompt, count, stops=()):
    """The definition: no cache, no batch, no padding."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stops:
            return ids[len(prompt) : -1]
    return ids[len(prompt) :]


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma2"])
def tiny(request):
    base = load_base(f"tiny:{request.param}", dtype="float32", attention="auto")
    base.model.eval()
    return base


def test_batches_of_any_size_answer_as_the_definition(tiny):
    """Planted bugs caught: pad on the right; no attention mask; answers left in the order of lengths."""
    expected = [greedy(tiny.model, prompt, 8) for prompt in PROMPTS]
    for batch_size in (1, 4, 8):
        found = generate_ids(tiny.model, tiny.tokenizer, PROMPTS, max_new_tokens=8, batch_size=batch_size, stop_ids=[])
        assert found == expected


def test_an_answer_ends_before_its_stop_token(tiny):
    """Planted bug caught: the padding after a stop token kept as part of the answer."""
    free = [greedy(tiny.model, prompt, 8) for prompt in PROMPTS]
    stop = free[0][3]
    expected = [greedy(tiny.model, prompt, 8, stops=(stop,)) for prompt in PROMPTS]
    assert len(expected[0]) <= 3
    found = generate_ids(tiny.model, tiny.tokenizer, PROMPTS, max_new_tokens=8, batch_size=6, stop_ids=[stop])
    assert found == expected


def test_an_adapter_answers_and_the_models_own_settings_do_not_count():
    base = load_base("tiny:llama", dtype="float32")
    attach_(base.model, method="dora", rank=2, dropout=0.5)
    with torch.no_grad():
        for parameter in base.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    base.model.eval()
    expected = [greedy(base.model, prompt, 6) for prompt in PROMPTS]
    base.model.train()
    own = base.model.generation_config
    own.repetition_penalty, own.do_sample, own.temperature = 5.0, True, 9.0
    seen = []
    found = generate_ids(
        base.model, base.tokenizer, PROMPTS, max_new_tokens=6, batch_size=4, stop_ids=[], progress=seen.append
    )
    assert found == expected
    assert seen == [4, 6]
    assert base.model.training and all(module.training for module in base.model.modules())
    assert base.model.generation_config is own and own.repetition_penalty == 5.0


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([[5], []], "prompt 2 holds no token"), ([[5] * 8190], "8,190 tokens and 4 new ones exceed")],
)
def test_prompts_that_cannot_be_answered(prompts, message):
    base = load_base("tiny:llama", dtype="float32")
    with pytest.raises(ModelError, match=message):
        generate_ids(base.model, base.tokenizer, prompts, max_new_tokens=4, batch_size=2)


def test_models_with_another_state_go_through_transformers(tiny, monkeypatch):
    """Planted bug caught: the prompt left in front of the answer."""
    expected = [greedy(tiny.model, prompt, 8) for prompt in PROMPTS]
    monkeypatch.setattr(type(tiny.model), "_supports_default_dynamic_cache", classmethod(lambda _: False))
    found = generate_ids(tiny.model, tiny.tokenizer, PROMPTS, max_new_tokens=8, batch_size=4, stop_ids=[])
    assert found == expected


def test_what_beams_have_read_of_a_padded_row_is_what_the_row_alone_gives(tiny):
    """Planted bugs caught: pad that is attended to; positions counted from the pad."""
    short, long = [5, 9, 17, 30], [7, 2, 5, 9, 17, 30, 41, 8]
    mask = torch.ones(2, 8, dtype=torch.int64)
    mask[0, :4] = 0
    both = _read_but_last(tiny.model, torch.tensor([[0] * 4 + short, long]), mask)
    for row, ids in enumerate((short, long)):
        alone = _read_but_last(tiny.model, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64))
        for together, single in zip(both.layers, alone.layers, strict=True):
            for name in ("keys", "values"):
                expected = getattr(single, name)[0]
                assert torch.allclose(getattr(together, name)[row, :, 1 - len(ids) :], expected, atol=1e-5), name


def best_beam(model, prompt, width, count, stops):
    """The definition: no cache, no batch, no padding. The sum of a beam's log-probabilities is divided by its length."""
    running, finished = [(0.0, [])], []
    for length in range(1, count + 1):
        with torch.no_grad():
            logits = [model(torch.tensor([prompt + new])).logits[0, -1].float() for _, new in running]
        scored = [
            (score + float(value), [*new, token])
            for (score, new), row in zip(running, logits, strict=True)
            for token, value in enumerate(row.log_softmax(dim=-1))
        ]
        scored = sorted(scored, key=lambda beam: -beam[0])[: (len(stops) + 1) * width]
        done = [new[-1] in stops or length == count for _, new in scored]
        # A beam that ends counts if it is among the best; those beyond only keep the search going.
        finished += [
            (score / length, new) for (score, new), over in zip(scored[:width], done[:width], strict=True) if over
        ]
        finished = sorted(finished, key=lambda beam: -beam[0])[:width]
        running = [beam for beam, over in zip(scored, done, strict=True) if not over][:width]
        if not running or (len(finished) == width and running[0][0] / length <= finished[-1][0]):
            break
    new = finished[0][1]
    return new[:-1] if new[-1] in stops else new


@pytest.mark.parametrize("many", [False, True], ids=["few stops", "many stops"])
def test_beams_in_batches_of_any_size_are_the_definition(tiny, monkeypatch, many):
    """Planted bugs caught: one beam; no stop token, or the model's own settings; a sum that is not divided by its length;
    an end as soon as four beams are done; pad on the right."""
    own = tiny.model.generation_config
    for name, value in (("length_penalty", 0.0), ("early_stopping", True), ("repetition_penalty", 5.0)):
        monkeypatch.setattr(own, name, value)
    stops = [best_beam(tiny.model, prompt, 4, 6, ())[3] for prompt in PROMPTS[:2]]
    stops += range(100, 130) if many else ()
    expected = [best_beam(tiny.model, prompt, 4, 6, stops) for prompt in PROMPTS]
    assert 6 in map(len, expected) and min(map(len, expected)) < 6
    assert expected != [greedy(tiny.model, prompt, 6, stops) for prompt in PROMPTS]
    for batch_size in (1, 4, 8):
        found = generate_ids(
            tiny.model, tiny.tokenizer, PROMPTS, max_new_tokens=6, batch_size=batch_size, num_beams=4, stop_ids=stops
        )
        assert found == expected
    assert tiny.model.generation_config is own
