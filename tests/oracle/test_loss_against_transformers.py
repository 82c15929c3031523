"""The loss equals transformers' own, whatever the path to the logits."""

import pytest
import torch

from dorakit.data.batches import Batch
from dorakit.model.load import load_base
from dorakit.training.objectives import supervised
from dorakit.training.objectives.supervised import SupervisedLoss


@pytest.mark.parametrize("tokens_at_once", [1024, 5])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3"])
def test_equals_transformers(monkeypatch, architecture, tokens_at_once):
    """gemma2 soft-caps its logits. Planted bugs that die here: labels not shifted; the cap forgotten."""
    monkeypatch.setattr(supervised, "TOKENS_AT_ONCE", tokens_at_once)
    model = load_base(f"tiny:{architecture}", dtype="float32", attention="eager").model
    model.requires_grad_(True)
    loss = SupervisedLoss(model)
    assert loss.logits.skips_others == (architecture != "gemma2")
    torch.manual_seed(0)
    ids = torch.randint(3, 250, (3, 20))
    labels = ids.clone()
    labels[0, :7] = labels[1, 12:] = labels[:, 0] = -100
    positions = torch.arange(20).expand(3, 20)
    mine = loss(batch_of(ids, labels, positions)) / (labels[:, 1:] != -100).sum()
    mine.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    theirs = model(input_ids=ids, labels=labels).loss
    theirs.backward()
    torch.testing.assert_close(mine, theirs)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_packed_documents_do_not_see_each_other():
    """Planted bug that dies here: an attention mask of ones, with which transformers ignores positions."""
    model = load_base("tiny:llama", dtype="float32").model
    loss = SupervisedLoss(model)
    torch.manual_seed(0)
    a, b = torch.randint(3, 250, (9,)), torch.randint(3, 250, (6,))
    apart = sum(_alone(loss, document) for document in (a, b))
    ids = torch.cat([a, b])[None]
    labels = ids.clone()
    labels[0, 0] = labels[0, 9] = -100
    positions = torch.cat([torch.arange(9), torch.arange(6)])[None]
    torch.testing.assert_close(loss(batch_of(ids, labels, positions)), apart)


def batch_of(ids, labels, positions):
    return Batch({"input_ids": ids, "position_ids": positions}, labels, 0, ())


def _alone(loss, document):
    labels = document.clone()
    labels[0] = -100
    return loss(batch_of(document[None], labels[None], torch.arange(len(document))[None]))
