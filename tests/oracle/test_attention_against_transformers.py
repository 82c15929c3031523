import pytest
import torch

from dorakit.model.attention import LONGEST, NAME, use_short_rows_
from dorakit.model.load import load_base


def run(model, ids, **inputs):
    model.zero_grad()
    model.requires_grad_(True)
    logits = model(input_ids=ids, use_cache=False, **inputs).logits
    logits.float().square().sum().backward()
    return logits.detach(), model.get_input_embeddings().weight.grad.clone()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral", "phi3", "gemma"])
@pytest.mark.parametrize("case", ["one document", "packed", "left-padded", "longer than the longest"])
def test_short_rows_equal_torchs_kernel(architecture, case):
    """Planted bugs that die here: heads grouped in the other order; the scaling forgotten; a mask taken for its opposite;
    the row after a border seen."""
    model = load_base(f"tiny:{architecture}", dtype="float32", attention="sdpa").model
    length = LONGEST + 8 if case == "longer than the longest" else 24
    ids = torch.randint(5, 200, (3, length), generator=torch.Generator().manual_seed(1))
    inputs, seen = {}, slice(None)
    if case == "packed":
        inputs["position_ids"] = torch.tensor([*range(10), *range(14)]).expand(3, -1)
    if case == "left-padded":
        mask = torch.ones(3, length, dtype=torch.long)
        mask[:, :5] = 0
        inputs["attention_mask"], seen = mask, slice(5, None)
    expected, expected_gradient = run(model, ids, **inputs)
    use_short_rows_(model)
    assert model.config._attn_implementation == NAME
    found, gradient = run(model, ids, **inputs)
    torch.testing.assert_close(found[:, seen], expected[:, seen], rtol=1e-4, atol=1e-5)
    if case != "left-padded":  # what padding sees is nobody's business
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


def test_a_model_without_torchs_kernel_stays_as_it_is():
    model = load_base("tiny:gemma2", dtype="float32", attention="eager").model
    use_short_rows_(model)
    assert model.config._attn_implementation == "eager"
