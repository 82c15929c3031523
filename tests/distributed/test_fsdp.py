"""A base that is shared out is the base that it was; test_ddp.py holds the training itself against one process."""

import re

import pytest
import torch
from dying_runs import digest, make_site
from groups import dorakit_group, group, plain

from dorakit import Recipe
from dorakit.model.load import load_base
from dorakit.model.nf4 import NF4Format, NF4Linear, row_norm_squared
from dorakit.model.streaming import shared_out
from dorakit.plan.estimate import estimate

FSDP = ("--set", "parallel.strategy=fsdp")


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("double", [True, False])
def test_the_shares_are_the_bytes_of_the_whole(ranks, double):
    """Planted bugs caught: absmax double-quantized share by share, with an offset of its own; rows split as floor and rest."""
    form = NF4Format(double_quant=double)
    whole = load_base("tiny:llama", nf4=form).model
    parts = []
    for rank in range(ranks):
        with shared_out(rank, ranks):
            parts.append(load_base("tiny:llama", nf4=form).model)
    for name, layer in whole.named_modules():
        if isinstance(layer, NF4Linear):
            shares = [part.get_submodule(name) for part in parts]
            assert torch.equal(torch.cat([share.weight for share in shares]), layer.weight)
            assert torch.equal(torch.cat([share.absmax for share in shares]).view(-1), layer.absmax)
            assert [len(s.weight) for s in shares] == [len(c) for c in torch.chunk(layer.weight, ranks)]
            assert all(torch.equal(share.whole_norm_squared, row_norm_squared(layer)) for share in shares)


def test_rows_that_are_no_whole_blocks_stay_whole():
    layer = NF4Linear.from_dense(torch.randn(8, 96), None, NF4Format())
    layer.keep_rows_(0, 2)
    assert layer.has_all_rows and len(layer.weight) == 8


@pytest.mark.parametrize("mode", ["dora", "qdora"])
def test_each_rank_holds_its_share(site, mode):
    ended = dorakit_group(2, "train", site.recipe, *FSDP, "--set", f"adapter.mode={mode}")
    assert ended.codes == [0, 0], ended.ranks
    said = re.search(r"holds ([\d,]+) of the ([\d,]+) bytes", ended.ranks[0].err)
    own, total = (int(text.replace(",", "")) for text in said.groups())
    print(f"{mode}: a rank holds {own / total:.3f} of the base")
    assert own <= 0.55 * total
    planned = estimate(Recipe.from_yaml(str(site.recipe), [f"adapter.mode={mode}"]), ranks=[2])
    assert planned.ledgers[mode].shareable == total  # weights and absmax to the byte
    assert [(share.strategy, share.ranks) for share in planned.shares] == [("ddp", 2), ("fsdp", 2)]
    assert planned.shares[1].base == planned.shares[0].base - total + -(-total // 2)


def test_fsdp_is_ddp(site, unbroken):
    """To the byte on a CPU: the same sums, in the same order."""
    ended = dorakit_group(2, "train", site.recipe, *FSDP)
    assert ended.codes == [0, 0], ended.ranks
    assert digest(site.run) == digest(unbroken.run)
    assert site.metrics() == unbroken.metrics()


def test_recomputed_and_sampled(site, tmp_path):
    """Gradient checkpointing gathers the base again in backward, and generation gathers it on every rank."""
    also = ("--set", "training.gradient_checkpointing=true", "--set", "training.sample_prompts=[Say]")
    alone = plain(make_site(tmp_path / "alone"))
    for size, place in ((1, alone), (2, site)):
        ended = dorakit_group(size, "train", place.recipe, *FSDP, *also)
        assert ended.codes == [0] * size, ended.ranks
    samples = [[line["samples"] for line in place.metrics() if "samples" in line] for place in (alone, site)]
    assert samples[0] == samples[1] and len(samples[0]) > 2


def test_killed_and_gone_on_with(site, unbroken):
    ended = dorakit_group(2, "train", site.recipe, *FSDP, failpoints_of={1: "micro:15=kill9"})
    assert ended.codes == [3, -9] and "gone without a word" in ended.ranks[0].err, ended.ranks
    assert dorakit_group(2, "train", "--resume", site.run).codes == [0, 0]
    assert digest(site.run) == digest(unbroken.run)


def test_a_failure_amid_the_forward_of_another(site):
    ended = dorakit_group(2, "train", site.recipe, *FSDP, failpoints_of={1: "micro:9=memory"})
    assert ended.codes == [4, 4] and len(ended.errors) == 1, ended.ranks


def test_what_cannot_be_sharded_is_refused(site):
    ended = dorakit_group(2, "train", site.recipe, *FSDP, "--set", "training.compile=true")
    assert ended.codes == [2, 2] and len(ended.errors) == 1 and "fsdp" in ended.errors[0]


def test_memory_of_loading_is_that_of_a_share():
    """No rank ever holds the whole: what its layers keep after loading is a rank's part."""

    def load(rank):
        with shared_out(rank, 2):
            model = load_base("tiny:llama", nf4=NF4Format()).model
        layers = [m for m in model.modules() if isinstance(m, NF4Linear)]
        kept = sum(layer.weight.untyped_storage().nbytes() for layer in layers)
        return 0 if kept <= 0.51 * sum(layer.in_features * layer.out_features // 2 for layer in layers) else 1

    assert group(2, load).codes == [0, 0]
