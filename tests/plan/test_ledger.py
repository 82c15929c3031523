"""What is planned without weights is what a real model, optimizer and forward pass hold."""

import gc
import importlib.util
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_recipe

from dorakit.adapters.attach import adapter_layers
from dorakit.methods import UPDATES
from dorakit.plan.ledger import ledger
from dorakit.plan.skeleton import find_config

MODES = ["full", "lora", "dora", "qlora", "qdora"]


def loaded_bench():
    file = Path(__file__).parents[2] / "scripts" / "bench" / "plan.py"
    spec = importlib.util.spec_from_file_location("bench_plan", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench = loaded_bench()
Training = bench.Training


def planned(recipe):
    return ledger(recipe, find_config(recipe), dtype=getattr(torch, recipe.model.dtype), on_card=False)


@pytest.mark.parametrize("tokens", [64, 256])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_bytes_are_those_of_a_real_step(tmp_path, mode, tokens, optimizer):
    """Dies of a storage counted twice or not at all, of a state's forgotten absmax, of absmax without its second level,
    of half the gradients, of a checkpoint without the optimizer.
    """
    recipe = tiny_recipe(tmp_path, mode, (f"data.max_seq_len={tokens}", f"optimizer.name={optimizer}"))
    plan, found = planned(recipe), Training(recipe).step(tokens)
    norms = 8_192 if "dora" in mode else 0  # kept outside of the module's buffers: 2 float32 for each of 1,024 rows
    assert plan.base == found["base"] + norms
    assert plan.trained == found["trained"]
    assert plan.gradients == found["gradients"]
    assert plan.optimizer == found["optimizer"]
    assert plan.checkpoint == found["trained"] + found["optimizer"]
    assert plan.activations + plan.logits == pytest.approx(found["activations"], rel=0.1)


@pytest.mark.parametrize("update", [name for name in UPDATES if name != "lora"])
@pytest.mark.parametrize("mode", ["lora", "qdora"])
def test_bytes_of_every_update(tmp_path, mode, update):
    """What its layers have in common counts once."""
    scale = ["adapter.alpha=16"] if "adapter.alpha" not in UPDATES[update].ignores else []
    recipe = tiny_recipe(tmp_path, mode, (f"adapter.update={update}", *scale))
    training = Training(recipe)
    plan, found = planned(recipe), training.step(64)
    constants = {id(t): t.nbytes for _, layer in adapter_layers(training.model) for t in layer.constants()}
    assert plan.base == found["base"] + sum(constants.values()) + (8_192 if "dora" in mode else 0)
    assert plan.trained == found["trained"]
    assert plan.optimizer == found["optimizer"]
    assert plan.activations + plan.logits == pytest.approx(found["activations"], rel=0.1)


@pytest.mark.parametrize("tokens", [128, 640])
@pytest.mark.parametrize("mode", ["full", "dora"])
def test_activations_in_bfloat16(tmp_path, mode, tokens):
    """Dies of the casts of autocast forgotten, and of attention on short rows, which keeps its weights, taken for the kernel."""
    recipe = tiny_recipe(
        tmp_path, mode, (f"data.max_seq_len={tokens}", "model.dtype=bfloat16", "training.micro_batch_size=1")
    )
    plan, found = planned(recipe), Training(recipe).step(tokens)
    assert plan.activations + plan.logits == pytest.approx(found["activations"], rel=0.1)


def test_gradient_checkpointing_keeps_inputs_and_one_layer(tmp_path):
    """Dies of layers counted whole that are computed again, and of their inputs forgotten."""
    asked = ("data.max_seq_len=256", "training.gradient_checkpointing=true")
    recipe, plain = tiny_recipe(tmp_path, "dora", asked), tiny_recipe(tmp_path, "dora", asked[:1])
    training = Training(recipe)
    before = set(storages_alive())
    ids = torch.arange(4 * 256).reshape(4, 256) % 250 + 3
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        total = training.loss(bench.supervised(ids, torch.arange(256).repeat(4, 1)))
    alive = {address: size for address, size in storages_alive().items() if address not in before}
    found = sum(alive.values())
    assert total.requires_grad and found > 0
    # The two layers of the model are alike, so one is half of what checkpointing saves, and of the inputs that it keeps.
    layer = (Training(plain).step(256)["activations"] - found) / 2
    plan = planned(recipe)
    assert plan.activations + plan.logits == pytest.approx(found + layer, rel=0.05)


def storages_alive():
    """Bytes of every storage that a Python tensor holds, by its address."""
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
