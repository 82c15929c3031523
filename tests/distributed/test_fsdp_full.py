"""A model trained whole whose every rank holds its rows, of parameters, gradients and the optimizer's state."""

import itertools
import json
import re

import pytest
import torch
from dying_runs import make_site, moved_copy
from groups import distance, dorakit_group, group, impatient, plain, weights
from safetensors.torch import load_file

from dorakit import Recipe
from dorakit.errors import ModelError
from dorakit.model.arrival import Arrival
from dorakit.model.load import load_base
from dorakit.model.shares import Share
from dorakit.parallel.sharding import shard_, sharded_bytes
from dorakit.parallel.world import joined
from dorakit.plan.estimate import estimate
from dorakit.training import optim_groups, validation
from dorakit.training.objectives import supervised

FSDP = ("--set", "parallel.strategy=fsdp")


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A base in bfloat16 whose embedding is its output head too."""
    base, place = load_base("tiny:llama"), tmp_path_factory.mktemp("tied")
    base.model.config.tie_word_embeddings = True
    torch.manual_seed(0)
    type(base.model)(base.model.config).to(torch.bfloat16).save_pretrained(place)
    base.tokenizer.save_pretrained(place)
    assert len(load_base(str(place)).model.state_dict()) > len(list(load_base(str(place)).model.parameters()))
    return place


def whole(place, base):
    site = plain(make_site(place, base=str(base)))
    text = site.recipe.read_text().replace("mode: qdora, rank: 4, alpha: 8", "mode: full")
    if base != "tiny:llama":
        text = text.replace(", architecture: llama", "")
    site.recipe.write_text(text.replace("learning_rate: 1e-2", "learning_rate: 1e-3"))
    return site


@pytest.fixture(scope="module")
def unbroken_tied(tied, tmp_path_factory):
    site = whole(tmp_path_factory.mktemp("unbroken"), tied)
    ended = dorakit_group(2, "train", site.recipe, *FSDP)
    assert ended.codes == [0, 0], ended.ranks
    return site


def test_a_tied_base_in_bfloat16(unbroken_tied, tied, tmp_path):
    """Planted bugs caught: gradients averaged; the embedding's part of the tied gradient lost; the norm of a rank's rows for
    that of the gradient."""
    alone = whole(tmp_path, tied)
    assert dorakit_group(1, "train", alone.recipe).codes == [0]
    one, two = weights(alone.run), weights(unbroken_tied.run)
    assert one.keys() == two.keys() and "lm_head.weight" not in one
    assert distance(one, two) <= 1e-4 * distance(one, weights_of(tied))
    norms = [
        [line["train/grad_norm"] for line in s.metrics() if "train/grad_norm" in line] for s in (alone, unbroken_tied)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    stored = json.loads((unbroken_tied.run / "model" / "config.json").read_text())
    assert stored["dtype"] == json.loads((alone.run / "model" / "config.json").read_text())["dtype"]


def test_what_is_held_is_planned(unbroken_tied):
    (said,) = [line for line in (unbroken_tied.run / "log.txt").read_text().splitlines() if "fsdp: this rank" in line]
    own, total = (int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\d", said.partition("holds")[2]))
    assert own <= 0.55 * total
    planned = estimate(Recipe.from_yaml(str(unbroken_tied.recipe)), ranks=[2])
    assert planned.ledgers["full"].shareable == planned.ledgers["full"].trained == total
    ddp, fsdp = planned.shares
    assert ddp.base - fsdp.base == total - -(-total // 2)


def weights_of(base):
    return {name: tensor.float() for name, tensor in load_base(str(base)).model.named_parameters()}


def small_pieces(rank):
    """Let the state of an optimizer be in several, as that of a large model is."""
    impatient(rank)
    optim_groups.LARGEST_PIECE = 1 << 13


@pytest.fixture(scope="module")
def broken(tied, tmp_path_factory):
    """By optimizer, a run of two ranks of which one was killed after step 7."""
    sites = {}
    for optimizer in ("adamw", "paged_adamw"):
        sites[optimizer] = site = whole(tmp_path_factory.mktemp(optimizer), tied)
        settings = (*FSDP, "--set", f"optimizer.name={optimizer}")
        ended = dorakit_group(
            2, "train", site.recipe, *settings, failpoints_of={1: "step:7=kill9"}, before=small_pieces
        )
        assert ended.codes[1] == -9, ended.ranks
    return sites


@pytest.mark.parametrize(("optimizer", "size"), [("adamw", 1), ("adamw", 2), ("adamw", 4), ("paged_adamw", 3)])
def test_resumed_at_any_number_of_ranks(unbroken_tied, broken, tied, tmp_path, size, optimizer):
    """One checkpoint for any number, the same bytes at the same one. Planted bugs caught: the state of the first rank's rows
    saved; parts of a state given to the wrong parameter."""
    site = moved_copy(broken[optimizer].place, tmp_path / "copy")
    ended = dorakit_group(size, "train", "--resume", site.run, before=small_pieces)
    assert ended.codes == [0] * size, ended.ranks
    found, expected = weights(site.run), weights(unbroken_tied.run)
    if size == 2 and optimizer == "adamw":
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    begun = weights_of(tied)
    assert distance(found, expected) <= 1e-4 * distance(expected, begun)


def test_a_run_of_one_process_goes_on_in_two(unbroken_tied, tied, tmp_path):
    site = whole(tmp_path, tied)
    assert dorakit_group(1, "train", site.recipe, *FSDP, failpoints_of={0: "step:7=kill9"}).codes == [-9]
    ended = dorakit_group(2, "train", "--resume", site.run)
    assert ended.codes == [0, 0], ended.ranks
    expected = weights(unbroken_tied.run)
    assert distance(weights(site.run), expected) <= 1e-4 * distance(expected, weights_of(tied))


def test_the_best_weights_are_those_that_are_kept(tied, tmp_path):
    """Planted bug caught: only the first rank's rows put back."""
    site = whole(tmp_path, tied)

    def ever_worse(rank):
        losses = itertools.count(1)
        validation.summed_loss = lambda objective, batches: (float(next(losses)), 1)

    ended = dorakit_group(2, "train", site.recipe, *FSDP, "--set", "training.keep_best=true", before=ever_worse)
    assert ended.codes == [0, 0] and "keeping step 4" in ended.ranks[0].err, ended.ranks
    kept, best = weights(site.run), load_file(site.run / "best" / "step-000000004" / "adapter.safetensors")
    assert kept.keys() == best.keys()
    assert all(torch.equal(kept[name], best[name]) for name in kept)


def test_each_rank_holds_half(tied):
    """Of what is trained too: nothing but a rank's rows is float32."""

    def held(rank):
        with joined(timeout_s=60) as world:
            model = load_base(str(tied), dtype="float32", arrival=Arrival(share=Share(rank, 2, world.stacked))).model
            assert model.dtype == torch.bfloat16
            model.requires_grad_(True)
            shard_(model, 2, float32=True, trained_too=True)
            assert model.dtype == torch.float32
            own, total = sharded_bytes(model)
        return 0 if own <= 0.55 * total and total == 4 * sum(p.numel() for p in model.parameters()) else 1

    assert group(2, held).codes == [0, 0]


def test_states_in_blocks_are_refused(site):
    site.recipe.write_text(site.recipe.read_text().replace("mode: qdora, rank: 4, alpha: 8", "mode: full"))
    ended = dorakit_group(2, "train", site.recipe, *FSDP, "--set", "optimizer.name=adamw_8bit")
    assert ended.codes == [2, 2] and len(ended.errors) == 1 and "adamw_8bit" in ended.errors[0]


@pytest.mark.parametrize("mode", ["full", "dora"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_a_loss_in_pieces_of_which_ranks_have_different_numbers(tied, tmp_path, mode, is_tied):
    """Planted bug caught: a head that is a group of its own, which waits for ever for the rank that has a piece less."""
    norms = []
    for size in (1, 2):
        site = whole(tmp_path / str(size), tied) if is_tied else whole(tmp_path / str(size), "tiny:llama")
        if mode == "dora":
            site.recipe.write_text(site.recipe.read_text().replace("mode: full", "mode: dora, rank: 4, alpha: 8"))

        def small(rank):
            supervised.TOKENS_AT_ONCE = 24

        ended = dorakit_group(size, "train", site.recipe, *FSDP, "--set", "training.max_steps=4", before=small)
        assert ended.codes == [0] * size, ended.ranks
        norms.append([line["train/grad_norm"] for line in site.metrics() if "train/grad_norm" in line])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_what_is_outside_of_every_group_is_refused():
    """Planted bug caught: such a parameter learns on every rank by itself."""

    def outside(rank):
        with joined(timeout_s=60):
            model = load_base("tiny:llama").model.requires_grad_(True)
            model.odd = torch.nn.Linear(2, 2)
            try:
                shard_(model, 2, float32=True, trained_too=True)
            except ModelError as error:
                return 7 if "odd.weight" in str(error) else 1
        return 2

    assert group(2, outside).codes == [7, 7]
