"""A base that is shared out is the base that it was; test_ddp.py holds the training itself against one process."""

import re

import pytest
import torch
from dying_runs import digest, dorakit, make_site
from groups import dorakit_group, group, impatient, plain
from safetensors.torch import load_file, save_file

from dorakit import Recipe
from dorakit.model.arrival import Arrival
from dorakit.model.linear import row_norm_squared
from dorakit.model.load import load_base
from dorakit.model.nf4 import NF4Format, NF4Linear
from dorakit.model.shares import Share, keep_rows_, share_of_dense
from dorakit.parallel.world import World, joined
from dorakit.plan.estimate import estimate

FSDP = ("--set", "parallel.strategy=fsdp")


@pytest.mark.parametrize(("double", "ranks"), [(True, 2), (True, 3), (False, 2)])
def test_the_shares_are_the_bytes_of_the_whole(ranks, double, tmp_path):
    """Each rank quantizes its own rows. Planted bugs caught: absmax double-quantized share by share, with an offset of its own;
    rows split as floor and rest; norms of the rows as they were before the second level."""
    form = NF4Format(double_quant=double)
    whole = load_base("tiny:llama", arrival=Arrival(form)).model
    quantized = []
    own = NF4Linear.from_dense.__func__

    def from_dense(cls, weight, *rest, **options):
        quantized.append(weight.numel())
        return own(cls, weight, *rest, **options)

    def load(rank):
        NF4Linear.from_dense = classmethod(from_dense)
        with joined(timeout_s=60) as world:
            part = load_base("tiny:llama", arrival=Arrival(form, share=Share(rank, ranks, world.stacked))).model
        kept = ("weight", "absmax", "whole_norm_squared", "original_row_norm", "nested_absmax", "offset")
        layers = {name: m for name, m in part.named_modules() if isinstance(m, NF4Linear)}
        tensors = {f"{name} {k}": getattr(m, k).detach().clone() for name, m in layers.items() for k in kept}
        save_file(tensors | {"quantized": torch.tensor(quantized)}, tmp_path / str(rank))
        return 0

    ended = group(ranks, load)
    assert ended.codes == [0] * ranks, ended.ranks
    parts = [load_file(tmp_path / str(rank)) for rank in range(ranks)]
    layers = {name: layer for name, layer in whole.named_modules() if isinstance(layer, NF4Linear)}
    assert sum(int(part["quantized"].sum()) for part in parts) == sum(
        m.in_features * m.out_features for m in layers.values()
    )
    for name, layer in layers.items():
        weights, absmax = ([part[f"{name} {kind}"] for part in parts] for kind in ("weight", "absmax"))
        assert torch.equal(torch.cat(weights), layer.weight)
        assert torch.equal(torch.cat(absmax).view(-1), layer.absmax)
        assert [len(share) for share in weights] == [len(chunk) for chunk in torch.chunk(layer.weight, ranks)]
        for part in parts:
            assert torch.equal(part[f"{name} whole_norm_squared"], row_norm_squared(layer))
            for kind in ("original_row_norm", "nested_absmax", "offset"):
                assert torch.equal(part[f"{name} {kind}"], getattr(layer, kind))


def test_a_base_that_is_stored_as_nf4_is_shared_out(tmp_path, site):
    """Such a weight is read whole and a rank's rows are kept."""
    base = tmp_path / "nf4"
    made = dorakit("quantize", "tiny:llama", "--output", base)
    assert made.code == 0, made.err
    text = site.recipe.read_text().replace('base: "tiny:llama", architecture: llama', f'base: "{base}"')
    site.recipe.write_text(text)
    runs = {}
    for strategy in ("ddp", "fsdp"):
        place = site.place / strategy
        ended = dorakit_group(
            2, "train", site.recipe, "--set", f"parallel.strategy={strategy}", "--set", f"output_dir={place}"
        )
        assert ended.codes == [0, 0], ended.ranks
        runs[strategy] = digest(place)
    assert runs["ddp"] == runs["fsdp"]


def test_a_weight_that_is_no_number_is_one_message(tmp_path, site):
    """One rank has it in its rows; the others wait for those."""
    base = load_base("tiny:llama")
    base.model.get_parameter("model.layers.0.mlp.up_proj.weight").data[-1, -1] = torch.nan
    base.model.save_pretrained(tmp_path / "nan")
    base.tokenizer.save_pretrained(tmp_path / "nan")
    text = site.recipe.read_text().replace('base: "tiny:llama", architecture: llama', f'base: "{tmp_path / "nan"}"')
    site.recipe.write_text(text)
    ended = dorakit_group(2, "train", site.recipe, *FSDP)
    assert len(ended.errors) == 1 and "NaN" in ended.errors[0] and ended.codes[0] == ended.codes[1] != 0, ended.ranks


def test_a_rank_may_have_no_rows():
    """Of 5 rows on 4 ranks the last has none. What the others would send is taken from the whole."""
    weight, form = torch.randn(5, 64), NF4Format(double_quant=False)
    layer = NF4Linear.from_dense(weight, None, form)
    gathered = iter([layer.absmax.view(5, 1), layer.original_row_norm, row_norm_squared(layer)])
    part = share_of_dense(weight, form, Share(3, 4, lambda rows, number: next(gathered)), torch.float32)
    assert part.weight.shape == (0, 32) and part.absmax.shape == (0, 1)
    assert torch.equal(part.whole_norm_squared, row_norm_squared(layer))


def test_rows_that_are_no_whole_blocks_stay_whole():
    layer = NF4Linear.from_dense(torch.randn(8, 96), None, NF4Format())
    keep_rows_(layer, Share(0, 2, World().stacked))
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
    """To the byte on a CPU: the same sums, in the same order. What it cannot offload from, it says."""
    ended = dorakit_group(2, "train", site.recipe, *FSDP, "--set", "parallel.cpu_offload=true")
    assert ended.codes == [0, 0] and "asked: parallel.cpu_offload, using: none" in ended.ranks[0].err, ended.ranks
    assert digest(site.run) == digest(unbroken.run)
    assert site.metrics() == unbroken.metrics()


def test_recomputed_and_sampled(site, tmp_path):
    """Gradient checkpointing gathers the base again in backward, and generation gathers it on every rank."""
    also = (
        "--set",
        "training.gradient_checkpointing=true",
        "--set",
        "training.sample_prompts=[Say]",
        "--set",
        "training.sample_rows=2",
        "--set",
        "training.eval_every=6",
    )
    alone = plain(make_site(tmp_path / "alone"))
    for size, place in ((1, alone), (2, site)):
        ended = dorakit_group(size, "train", place.recipe, *FSDP, *also)
        assert ended.codes == [0] * size, ended.ranks
    samples = [[line["samples"] for line in place.metrics() if "samples" in line] for place in (alone, site)]
    assert samples[0] == samples[1] and len(samples[0]) > 2


def test_killed_and_gone_on_with(site, unbroken):
    ended = dorakit_group(2, "train", site.recipe, *FSDP, failpoints_of={1: "micro:15=kill9"}, before=impatient)
    assert ended.codes == [3, -9] and "gone without a word" in ended.ranks[0].err, ended.ranks
    assert dorakit_group(2, "train", "--resume", site.run).codes == [0, 0]
    assert digest(site.run) == digest(unbroken.run)


def test_a_failure_amid_the_forward_of_another(site):
    ended = dorakit_group(2, "train", site.recipe, *FSDP, failpoints_of={1: "micro:9=memory"})
    assert ended.codes == [4, 4] and len(ended.errors) == 1, ended.ranks


def test_what_cannot_be_sharded_is_refused(site):
    ended = dorakit_group(2, "train", site.recipe, *FSDP, "--set", "training.compile=true")
    assert ended.codes == [2, 2] and len(ended.errors) == 1 and "fsdp" in ended.errors[0]
