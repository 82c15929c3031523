"""Several ranks do what one process does."""

import os
from pathlib import Path

import pytest
import torch
from dying_runs import digest, make_site
from groups import distance, dorakit_group, plain, weights
from safetensors.torch import load_file, save_file
from torch.distributed import distributed_c10d

from dorakit.parallel.sharding import whole_tensors
from dorakit.training.optim import Updater

MODES = ("full", "lora", "dora", "qlora", "qdora")


def keep_first_gradient(file: Path) -> None:
    """Write the gradient of the first step, before it is clipped, whole where it is shared out."""
    own = Updater.clip

    def clip(self, max_norm):
        if not file.exists():
            grads = {str(place): p.grad for place, p in enumerate(p for g in self._groups for p in g.members)}
            whole = whole_tensors(grads, keep=True)
            save_file({"gradient": torch.cat([grad.reshape(-1) for grad in whole.values()])}, file)
        return own(self, max_norm)

    Updater.clip = clip


@pytest.mark.parametrize(("start", "mode"), [("pissa", "qdora"), ("olora", "lora")])
def test_two_ranks_have_the_start_of_one_process(tmp_path, start, mode):
    """The same A0 and B0, and the same way from there. Planted bug caught: a seed of each rank's own."""
    found = []
    for size in (1, 2):
        site = plain(make_site(tmp_path / str(size), steps=4))
        settings = [f"adapter.mode={mode}", f"adapter.start={start}", "parallel.strategy=ddp"]
        if start == "pissa":
            settings.append("adapter.pissa.iterations=2")
        ended = dorakit_group(
            size, "train", site.recipe, *[part for setting in settings for part in ("--set", setting)]
        )
        assert ended.codes == [0] * size, ended.ranks
        files = [site.run / "adapter" / name for name in ("initial.safetensors", "adapter_model.safetensors")]
        found.append(tuple(map(load_file, files)))
    (initial, alone), (initial_too, together) = found
    assert all(torch.equal(initial[name], initial_too[name]) for name in initial)
    assert max(float((alone[name] - together[name]).abs().max()) for name in alone) <= 1e-3


OTHER_METHODS = {
    "vera": ["adapter.mode=qdora", "adapter.update=vera"],
    "miss": ["adapter.mode=lora", "adapter.update=miss"],
    "lora-plus": ["adapter.mode=dora", "optimizer.rule=lora-plus"],
    "lora-pro": ["adapter.mode=qlora", "optimizer.rule=lora-pro"],
}
CASES = [(mode, strategy) for strategy in ("ddp", "fsdp") for mode in MODES]
CASES += [("vera", "fsdp"), ("miss", "ddp"), ("lora-plus", "ddp"), ("lora-pro", "fsdp")]


@pytest.mark.parametrize(("mode", "strategy"), CASES)
def test_two_ranks_are_one_process(tmp_path, mode, strategy):
    """One process of four micro-batches and two ranks of two each. Planted bugs caught: the loss divided by each rank's own
    tokens; the gradient averaged; a rank that takes the other's share."""
    runs, chosen = {}, OTHER_METHODS.get(mode, [f"adapter.mode={mode}"])
    for size in (1, 2):
        site = plain(make_site(tmp_path / str(size), steps=20))
        settings = [*chosen, "training.eval_every=0", "optimizer.learning_rate=1e-3"]
        settings.append(f"parallel.strategy={strategy}")
        if mode == "full":
            site.recipe.write_text(site.recipe.read_text().replace(", rank: 4, alpha: 8", ""))
        ended = dorakit_group(
            size,
            "train",
            site.recipe,
            *[part for setting in settings for part in ("--set", setting)],
            before=lambda rank, file=tmp_path / f"gradient-{size}": keep_first_gradient(Path(f"{file}-{rank}")),
        )
        assert ended.codes == [0] * size, ended.ranks
        runs[size] = site.run
    one, two = (load_file(tmp_path / f"gradient-{size}-0")["gradient"] for size in (1, 2))
    apart = float((one - two).norm() / one.norm())
    print(f"{mode} by {strategy}: the first gradients are {apart:.1e} of their norm apart")
    assert apart <= 1e-6
    begun = plain(make_site(tmp_path / "begun", steps=1))
    if mode == "full":
        begun.recipe.write_text(begun.recipe.read_text().replace(", rank: 4, alpha: 8", ""))
    zero = [part for setting in [*chosen, "optimizer.learning_rate=1e-30"] for part in ("--set", setting)]
    ended = dorakit_group(1, "train", begun.recipe, *zero, before=lambda rank: unmoved_is_fine())
    assert ended.codes == [0], ended.ranks
    start, alone, together = weights(begun.run), weights(runs[1]), weights(runs[2])
    strayed = distance(alone, together) / distance(alone, start)
    print(f"{mode} by {strategy}: what was trained is {strayed:.1e} of its way apart")
    assert strayed <= 1e-4


def unmoved_is_fine() -> None:
    from dorakit.training import loop

    loop.check_moved = lambda model, rate, ratio: []


def test_two_runs_are_the_same_bytes(unbroken, site):
    ended = dorakit_group(2, "train", site.recipe)
    assert ended.codes == [0, 0], ended.ranks
    assert digest(site.run) == digest(unbroken.run)
    assert site.metrics() == unbroken.metrics()


def test_only_the_first_rank_speaks_and_writes(site):
    (site.place / "elsewhere").mkdir()
    ended = dorakit_group(2, "train", site.recipe, before=lambda rank: rank and os.chdir(site.place / "elsewhere"))
    first, second = ended.ranks
    assert "finished 12 steps" in first.err and second.err == second.out == ""
    assert sorted(path.name for path in site.place.iterdir()) == [
        "elsewhere",
        "latest",
        "rows.jsonl",
        "run",
        "small.yaml",
    ]
    assert site.facts()["computing"]["ranks"] == "2"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_nothing_is_pickled(site, half_done, strategy):
    """Neither by us nor by what torch does for FSDP: whoever reaches a rank could have it run code."""

    def without(rank):
        distributed_c10d._pickler = distributed_c10d._unpickler = None

    how = ["--set", f"parallel.strategy={strategy}"]
    for what in ([site.recipe, "--set", "training.max_steps=1"], ["--resume", half_done.run]):
        ended = dorakit_group(2, "train", *what, *how, before=without)
        assert ended.codes == [0, 0], ended.ranks


def test_validation_is_that_of_one_process(tmp_path, unbroken):
    alone = plain(make_site(tmp_path))
    assert dorakit_group(1, "train", alone.recipe).codes == [0]
    pairs = zip(alone.metrics(), unbroken.metrics(), strict=True)
    for one, two in pairs:
        assert one.keys() == two.keys()
        assert all(one[key] == pytest.approx(two[key], rel=1e-5) for key in one), (one, two)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_resumed_at_any_number_of_ranks(half_done, unbroken, size):
    """The same documents of each step at any size; the same bytes at the same size."""
    ended = dorakit_group(size, "train", "--resume", half_done.run)
    assert ended.codes == [0] * size, ended.ranks
    assert ("bitwise" in ended.ranks[0].err.replace("not bitwise", "")) == (size == 2)
    if size == 2:
        assert digest(half_done.run) == digest(unbroken.run)
    before = weights(unbroken.run)
    moved = torch.stack([tensor.norm() for tensor in before.values()]).norm()
    assert distance(weights(half_done.run), before) <= 1e-4 * float(moved)


def test_a_step_has_something_for_every_rank(site):
    ended = dorakit_group(
        2, "train", site.recipe, "--set", "training.batch_size=1", "--set", "training.micro_batch_size=1"
    )
    assert ended.codes == [2, 2] and len(ended.errors) == 1 and "training.batch_size 1" in ended.errors[0]


def test_single_is_refused_in_a_group(site):
    ended = dorakit_group(2, "train", site.recipe, "--set", "parallel.strategy=single")
    assert ended.codes == [2, 2] and len(ended.errors) == 1


def test_a_group_of_one_says_so(site):
    ended = dorakit_group(1, "train", site.recipe, "--set", "parallel.strategy=fsdp", "--set", "training.max_steps=1")
    assert ended.codes == [0] and "asked: parallel.strategy fsdp, using: single" in ended.ranks[0].err
