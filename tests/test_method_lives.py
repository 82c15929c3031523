"""The whole life of an adapter, for every update of the table: trained, resumed, gone on from, measured, merged, exported."""

import itertools

import pytest
import torch
from tiny_runs import IDS, tiny_recipe, tiny_run

from dorakit import evaluate, load_adapter, merge, quantize, train
from dorakit.errors import RecipeError
from dorakit.export.outputs import export_peft
from dorakit.export.plain_lora import export_plain_lora
from dorakit.methods import UPDATES
from dorakit.model.arrival import Arrival
from dorakit.model.load import load_base
from dorakit.model.nf4 import NF4Format
from dorakit.plan.estimate import estimate
from dorakit.report.decomposition import decompose
from dorakit.target import open_target

CASES = [*itertools.product(UPDATES, ["lora", "qdora"])]
every = pytest.mark.parametrize(("update", "mode"), CASES)


def settings(update, *more):
    # Of the vectors' kind it takes more to change an answer.
    rate = ["optimizer.learning_rate=0.3"] if update == "vera" else []
    scale = ["adapter.alpha=16"] if "adapter.alpha" not in UPDATES[update].ignores else []
    return [f"adapter.update={update}", *scale, *rate, *more]


def base(mode):
    return load_base("tiny:llama", dtype="float32", arrival=Arrival(None if mode == "lora" else NF4Format())).model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    made = {}

    def of(update, mode):
        if (update, mode) not in made:
            made[update, mode] = tiny_run(tmp_path_factory.mktemp(update), mode, settings(update))
        return made[update, mode]

    return of


@every
def test_gone_on_from(tmp_path, trained, update, mode):
    """`--from`: the first answers are the adapter's. Another setting of the update is refused."""
    run = trained(update, mode)
    recipe = tiny_recipe(tmp_path, mode, settings(update, "optimizer.learning_rate=1e-6"))
    again = train(recipe, start_from=run.adapter, quiet=True)
    left, right = (open_target(str(r.path)).model(IDS).logits for r in (run, again))
    torch.testing.assert_close(left, right, rtol=1e-2, atol=1e-2)
    if update == "vera":
        other = tiny_recipe(tmp_path / "other", mode, settings(update, "adapter.vera.seed=5"))
        with pytest.raises(RecipeError, match=r"adapter\.vera\.seed is 5, and the adapter .* has 0"):
            train(other, start_from=run.adapter, quiet=True)
    other = "miss" if update == "lora" else "lora"
    with pytest.raises(RecipeError, match=f"adapter.update is {other}, and the adapter .* is {update}"):
        train(tiny_recipe(tmp_path / other, mode, settings(other)), start_from=run.adapter, quiet=True)


@every
def test_merged_quantized_measured(tmp_path, trained, update, mode):
    run = trained(update, mode)
    live = evaluate(run, quiet=True)
    merged = merge(run, output=tmp_path / "merged", dtype="float32", quiet=True)
    assert evaluate(merged, recipe=run.recipe, quiet=True)["loss"] == pytest.approx(live["loss"], rel=1e-4)
    quantize(run, output=tmp_path / "small", quiet=True)


@every
def test_as_a_plain_lora(tmp_path, trained, update, mode):
    run = trained(update, mode)
    live = open_target(str(run.path)).model(IDS).logits
    is_lora = "exact lora" in UPDATES[update].gives
    # What is lost is measured on the rows; these ids are none of them, and a change of full rank has more to lose there.
    lost = 1e-3 if is_lora else 1e-5
    content = export_plain_lora(run, output=tmp_path / "plain", onto=None, max_lost=lost, max_rank=64, quiet=True)
    plain = base(mode)
    load_adapter(plain, tmp_path / "plain")
    torch.testing.assert_close(plain(IDS).logits, live, rtol=2e-2, atol=2e-2)
    if mode == "lora":
        assert (content["rank"] == 4) == is_lora  # its own


@every
def test_looked_at(trained, update, mode):
    run = trained(update, mode)
    changes = decompose(run)
    assert all(change.moved for change in changes)
    assert max(change.delta_d for change in changes) > 0
    plan = estimate(run.recipe).ledgers[mode]
    assert plan.trained_parameters == run.fact("trained_parameters")


@every
def test_in_pefts_form_with_its_card(tmp_path, trained, update, mode):
    """`export --to peft`, and the directory opened on its own. Planted bug caught: lora_alpha asked of every config."""
    run = trained(update, mode)
    written = export_peft(run, output=tmp_path / "peft", quiet=True)
    assert f"update {update}" in (tmp_path / "peft" / "README.md").read_text() or update == "lora"
    live = open_target(str(run.path)).model(IDS).logits
    opened = base(mode)
    load_adapter(opened, tmp_path / "peft")
    torch.testing.assert_close(opened(IDS).logits, live, rtol=1e-5, atol=1e-5)
    for name in set(UPDATES) - {"lora"}:
        assert any(f"no {name} adapter" in note for note in written.content["notes"]) == (name == update)
