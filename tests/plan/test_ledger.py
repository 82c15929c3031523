"""What is planned without weights is what a real model, optimizer and forward pass hold."""

import pytest
import torch
from tiny_runs import tiny_recipe
from typer.testing import CliRunner

from dorakit.build import build_model
from dorakit.cli.app import app
from dorakit.errors import ModelError, ResourceError
from dorakit.plan.ledger import ledger, micro_batch
from dorakit.plan.skeleton import find_config
from dorakit.training.loss import SupervisedLoss
from dorakit.training.optim import Updater
from dorakit.training.trained import trained_tensors


@pytest.mark.parametrize("tokens", [64, 256])
@pytest.mark.parametrize("mode", ["full", "lora", "dora", "qlora", "qdora"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_bytes_are_those_of_a_real_step(tmp_path, mode, tokens, optimizer):
    """Dies of a storage counted twice or not at all, of a state's forgotten absmax, of absmax without its second level."""
    overrides = (f"data.max_seq_len={tokens}", f"optimizer.name={optimizer}")
    recipe = tiny_recipe(tmp_path, mode, overrides)
    planned = ledger(recipe, find_config(recipe), dtype=torch.float32, pages=False)
    model = build_model(recipe).model
    loss, updater = SupervisedLoss(model, torch.float32), Updater(model, recipe.optimizer, recipe.adapter.magnitude)
    tensors = [*model.parameters(), *model.buffers()]
    frozen = sum(t.nbytes for t in tensors if not t.requires_grad)
    known, kept = {t.untyped_storage().data_ptr() for t in tensors}, {}

    def see(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows, _ = micro_batch(recipe)
    ids = torch.arange(rows * tokens).reshape(rows, tokens) % 250 + 3
    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        total = loss.train()(ids, ids, torch.arange(tokens).repeat(rows, 1))
    total.backward()
    updater.step(1e-3)
    norms = 12_288 if "dora" in mode else 0  # kept outside of the module's buffers: 3 float32 for each of 1,024 rows
    assert planned.base == frozen + norms
    assert planned.trained == sum(t.nbytes for t in trained_tensors(model).values())
    assert planned.optimizer == sum(t.nbytes for t in updater.state()[0].values())
    assert planned.activations + planned.logits == pytest.approx(sum(kept.values()), rel=0.1)


def test_what_is_not_here_says_which_file_to_give(tmp_path):
    """Dies of an error that names no way on."""
    recipe = tiny_recipe(tmp_path, "lora", ("model.base=nobody/nothing",))
    with pytest.raises((ResourceError, ModelError), match=r"--config PATH/config\.json"):
        find_config(recipe)


def test_the_command_answers_for_a_card(tmp_path):
    """Dies of a comparison of peak and room the wrong way round."""
    tiny_recipe(tmp_path, "lora")
    file = str(tmp_path / "lora.yaml")
    result = CliRunner().invoke(app, ["plan", file, "--gpu", "RTX 4090"], catch_exceptions=False)
    assert "fits full, lora, dora, qlora, qdora" in result.output
    result = CliRunner().invoke(app, ["plan", file, "--gpu", "0GB"], catch_exceptions=False)
    assert "fits no mode" in result.output and "micro_batch_size=1" in result.output
