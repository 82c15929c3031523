import itertools

import pytest
import torch
from transformers import DynamicCache

from dorakit.model import attention
from dorakit.model.attention import LONGEST, NAME, use_own_attention_
from dorakit.model.load import load_base


def run(model, ids, **inputs):
    model.zero_grad()
    model.requires_grad_(True)
    logits = model(input_ids=ids, use_cache=False, **inputs).logits
    logits.float().square().sum().backward()
    return logits.detach(), model.get_input_embeddings().weight.grad.clone()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral", "phi3", "gemma"])
@pytest.mark.parametrize(
    "case", ["one document", "packed", "packed in one row", "left-padded", "longer than the longest"]
)
@pytest.mark.parametrize("slow_kernel", [False, True], ids=["", "short rows"])
def test_own_attention_equals_torchs_kernel(architecture, case, slow_kernel, monkeypatch):
    """Planted bugs that die here: heads grouped in the other order; the scaling forgotten; a mask taken for its opposite;
    the row after a border seen; documents left in the order of their lengths; a gradient in the cell of another token."""
    monkeypatch.setattr(attention, "_kernel_is_slow", lambda _: slow_kernel)
    model = load_base(f"tiny:{architecture}", dtype="float32", attention="sdpa").model
    length = LONGEST + 8 if case == "longer than the longest" else 24
    ids = torch.randint(5, 200, (3, length), generator=torch.Generator().manual_seed(1))
    inputs, seen = {}, slice(None)
    if case == "packed":
        inputs["position_ids"] = torch.tensor([*range(10), *range(14)]).expand(3, -1)
    if case == "packed in one row":  # of lengths that make two groups, one of them of several documents
        documents = [3, 10, 4, 9, 12, 11, 1, 4]
        ids = torch.randint(5, 200, (1, sum(documents)), generator=torch.Generator().manual_seed(2))
        inputs["position_ids"] = torch.tensor([list(itertools.chain.from_iterable(map(range, documents)))])
    if case == "left-padded":
        mask = torch.ones(3, length, dtype=torch.long)
        mask[:, :5] = 0
        inputs["attention_mask"], seen = mask, slice(5, None)
    expected, expected_gradient = run(model, ids, **inputs)
    use_own_attention_(model)
    assert model.config._attn_implementation == NAME
    found, gradient = run(model, ids, **inputs)
    torch.testing.assert_close(found[:, seen], expected[:, seen], rtol=1e-4, atol=1e-5)
    if case != "left-padded":  # what padding sees is nobody's business
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


def test_a_model_without_torchs_kernel_stays_as_it_is():
    model = load_base("tiny:gemma2", dtype="float32", attention="eager").model
    use_own_attention_(model)
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("case", ["dropout", "window"])
@pytest.mark.parametrize("slow_kernel", [False, True], ids=["", "short rows"])
def test_packed_documents_stay_apart(case, slow_kernel, monkeypatch):
    """In training with dropout on the weights, and in layers with a window shorter than the row.

    Planted bugs that die here: with dropout, no mask and no borders; a mask that lets a token see those after it.
    """
    monkeypatch.setattr(attention, "_kernel_is_slow", lambda _: slow_kernel)
    model = load_base("tiny:mistral", dtype="float32", attention="sdpa").model
    if case == "window":
        model.config.sliding_window = 6
    model.train()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5 if case == "dropout" else 0.0
    use_own_attention_(model)
    assert model.config._attn_implementation == NAME
    embedded = torch.randn(1, 24, model.config.hidden_size, requires_grad=True)
    positions = torch.tensor([[*range(10), *range(14)]])
    logits = model(inputs_embeds=embedded, position_ids=positions, use_cache=False).logits
    logits[0, 10:20].square().sum().backward()
    assert not embedded.grad[0, :10].any() and not embedded.grad[0, 20:].any()
    assert embedded.grad[0, 10:20].any(dim=-1).all()


def test_a_model_that_asks_for_torchs_kernel_by_name_stays_as_it_is(monkeypatch):
    model = load_base("tiny:llama", dtype="float32", attention="sdpa").model
    monkeypatch.setattr(attention.inspect, "getsource", lambda _: 'if config._attn_implementation == "sdpa":')
    use_own_attention_(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral", "gemma"])
@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("slow_kernel", [False, True], ids=["", "short rows"])
def test_after_what_is_read_already(architecture, padding, slow_kernel, monkeypatch):
    """A prompt, then one token, then four.

    Planted bugs that die here: heads that share keys in the other order; padding seen; the four tokens seeing ahead.
    """
    monkeypatch.setattr(attention, "_kernel_is_slow", lambda _: slow_kernel)
    model = load_base(f"tiny:{architecture}", dtype="float32", attention="sdpa").model
    ids = torch.randint(5, 200, (3, 24), generator=torch.Generator().manual_seed(3))
    seen = torch.ones(3, 24, dtype=torch.long)
    seen[1, :padding] = 0

    def read():
        cache, logits, start = DynamicCache(config=model.config), [], 0
        for end in (19, 20, 24):
            positions = (seen.cumsum(1) - 1).clamp_min(0)[:, start:end]
            inputs = {"attention_mask": seen[:, :end]} if padding else {}
            output = model(ids[:, start:end], position_ids=positions, past_key_values=cache, use_cache=True, **inputs)
            logits.append(output.logits[:, max(0, padding - start) :])
            start = end
        return torch.cat(logits, dim=1)

    with torch.no_grad():
        expected = read()
        use_own_attention_(model)
        torch.testing.assert_close(read(), expected, rtol=1e-4, atol=1e-5)
