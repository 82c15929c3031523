"""Nothing is advised that does not fit, and no more than is needed."""

import pytest
from tiny_runs import tiny_recipe

from dorakit.plan.advice import advise
from dorakit.recipe.schema import Recipe


def peak_of(recipe):
    base = 10 if recipe.stores_nf4 else 50
    states = 5 if recipe.optimizer.name.endswith("8bit") else 20
    kept = 10 * recipe.training.micro_batch_size * recipe.data.max_seq_len // 256
    return base + states + (kept // 4 if recipe.training.gradient_checkpointing else kept)


@pytest.fixture
def recipe(tmp_path):
    """Peak: 50 + 20 + 80."""
    return tiny_recipe(
        tmp_path, "dora", ("training.micro_batch_size=8", "training.batch_size=8", "data.max_seq_len=256")
    )


def advised(recipe, room):
    return advise(recipe, room=room, row_tokens=256, on_card=True, peak_of=peak_of)


def test_each_that_is_enough_alone(recipe):
    """Dies of a change listed that leaves the peak above the room, and of rows halved further than they must."""
    found = {advice.overrides: (advice.saves, advice.peak) for advice in advised(recipe, 111)}
    assert found == {
        ("training.micro_batch_size=4",): (40, 110),
        ("training.gradient_checkpointing=true",): (60, 90),
        ("adapter.mode=qdora",): (40, 110),
        ("data.max_seq_len=128",): (40, 110),
    }


def test_several_where_one_is_not_enough(recipe, tmp_path):
    """Dies of changes planned one by one and added up, and of more of them than are needed; they are a recipe's own."""
    (advice,) = advised(recipe, 60)
    assert advice.overrides == (
        "training.micro_batch_size=1",
        "training.gradient_checkpointing=true",
        "optimizer.name=paged_adamw_8bit",
    )
    assert (advice.saves, advice.peak) == (93, 57)
    assert peak_of(Recipe.from_yaml(str(tmp_path / "dora.yaml"), list(advice.overrides))) <= 57


def test_nothing_where_nothing_helps(recipe):
    """Dies of the last attempt given as advice though it does not fit."""
    assert advised(recipe, 10) == []


def test_a_compiled_recipe_is_not_told_what_its_rules_refuse(tmp_path):
    """Dies of gradient_checkpointing advised beside compile, which the recipe refuses."""
    recipe = tiny_recipe(tmp_path, "dora", ("training.compile=true", "data.max_seq_len=256"))
    overrides = next(a.overrides for a in advised(recipe, 100) if "gradient_checkpointing" in a.overrides[0])
    assert Recipe.from_yaml(str(tmp_path / "dora.yaml"), ["training.compile=true", *overrides])
