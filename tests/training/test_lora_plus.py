"""LoRA+: B's rate, and nothing else changed."""

import json

import pytest
import torch
from tiny_runs import tiny_run

from dorakit import attach_
from dorakit.adapters.attach import adapter_layers
from dorakit.errors import RecipeError
from dorakit.model.load import load_base
from dorakit.recipe.schema import LoRAPlusSection, MagnitudeSection, OptimizerSection
from dorakit.training.groups import group_specs
from dorakit.training.optim import Updater
from dorakit.training.rules.rule import rule_of

NAMES = ["adamw", "sgd", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit"]
IDS = torch.arange(24).reshape(2, 12) * 7 % 250 + 3


def model_and_specs(name="adamw", *, ratio=8.0, method="lora", rule="lora-plus", **settings):
    model = load_base("tiny:llama", dtype="float32").model
    attach_(model, method=method, rank=4, modules_to_save=["embed_tokens"])
    optimizer = OptimizerSection(
        name=name, learning_rate=1e-2, rule=rule, lora_plus=LoRAPlusSection(ratio=ratio), **settings
    )
    specs = rule_of(model, optimizer).groups(group_specs(model, optimizer, MagnitudeSection(learning_rate_ratio=0.5)))
    return model, specs, optimizer


def test_every_parameter_is_in_one_group():
    """Planted bugs caught: embeddings or magnitudes at B's rate; B without the recipe's weight decay."""
    model, specs, _ = model_and_specs(method="dora", weight_decay=0.1)
    rates = {name: (spec.rate_ratio, spec.weight_decay) for spec in specs for name, _ in spec.members}
    assert sorted(rates) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert sum(len(spec.members) for spec in specs) == len(rates)
    for name, found in rates.items():
        expected = (8.0, 0.1) if name.endswith("lora_B") else (0.5, 0.0) if "magnitude" in name else (1.0, 0.1)
        assert found == expected, name


@pytest.mark.parametrize("name", NAMES)
def test_a_step_moves_b_by_its_own_rate(name):
    """From B = 0 the first step changes W by ratio times what it changes without the rule. Planted bug caught: one rate for
    all groups."""
    steps = {}
    for ratio in (1.0, 8.0):
        model, specs, settings = model_and_specs(name, ratio=ratio)
        before = {n: layer.lora_A.detach().clone() for n, layer in adapter_layers(model)}
        updater = Updater(specs, settings)
        model(IDS).logits.square().mean().backward()
        updater.step(1e-3)
        steps[ratio] = {
            n: (layer.lora_A.detach() - before[n], layer.lora_B.detach().clone()) for n, layer in adapter_layers(model)
        }
    for n, (a, b) in steps[1.0].items():
        torch.testing.assert_close(steps[8.0][n][1], 8 * b, rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(steps[8.0][n][0], a, rtol=0, atol=0)


def test_without_the_rule_nothing_is_split():
    assert [spec.name for spec in model_and_specs(rule=None)[1]] == ["matrices"]


@pytest.mark.parametrize("mode", ["lora", "qdora"])
def test_a_run(tmp_path, mode):
    """From a recipe, and on from a checkpoint to the same bytes."""
    run = tiny_run(tmp_path, mode, ["optimizer.rule=lora-plus", "optimizer.lora_plus.ratio=4"])
    keys = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert any("train/loss" in entry for entry in keys)


def test_an_update_without_a_and_b_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="lora-plus goes with lora"):
        tiny_run(tmp_path, "lora", ["optimizer.rule=lora-plus", "adapter.update=vera"])
