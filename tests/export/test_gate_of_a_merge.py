"""A merge that is wrong is refused, however small the adapter's effect is; one that is right never is."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import tiny_run

from dorakit import Run, dense_weight, merge
from dorakit.adapters.layer import AdapterLinear
from dorakit.errors import GateError
from dorakit.export.tensors import PlainTensor

LAYER = "model.layers.1.self_attn.o_proj"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A DoRA that also trains the norms, by the size of its effect: KL(live || base) from about 1 down to 1e-9."""
    made = {}
    for name, rate in (("strong", "3e-2"), ("weak", "3e-5"), ("faint", "1e-6")):
        settings = (f"optimizer.learning_rate={rate}", "adapter.modules_to_save=[input_layernorm]")
        made[name] = tiny_run(tmp_path_factory.mktemp(name), "dora", settings)
    return made


def forgotten(layer):
    return dense_weight(layer.base).float()


def rescaled(layer):
    layer.scaling *= 1.1
    try:
        return RIGHT(layer)
    finally:
        layer.scaling /= 1.1


def without_magnitude(layer):
    return dense_weight(layer.base).float() + layer.update()


def one_row_of_another_magnitude(layer):
    weight = RIGHT(layer)
    weight[3] *= 1 + 1e-4
    return weight


RIGHT = AdapterLinear.merged_weight


@pytest.mark.parametrize("effect", ["strong", "weak", "faint"])
@pytest.mark.parametrize("wrong", [forgotten, rescaled, without_magnitude, one_row_of_another_magnitude])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_one_layer_that_is_wrong(runs, monkeypatch, effect, wrong, dtype):
    """Planted bugs caught: the eighth layer merged wrongly; its figures written and not held against the limit."""
    run, seen = runs[effect], {}
    before = sorted(path.name for path in run.path.iterdir())

    def merged_weight(layer):
        return wrong(layer) if seen.setdefault(id(layer), len(seen)) == 7 else RIGHT(layer)

    monkeypatch.setattr(AdapterLinear, "merged_weight", merged_weight)
    with pytest.raises(GateError, match=r"the merged weights are wrong: .*is not what the adapter computes") as caught:
        merge(run, dtype=dtype, quiet=True)
    assert caught.value.exit_code == 5
    assert sorted(path.name for path in run.path.iterdir()) == before


@pytest.mark.parametrize("effect", ["strong", "weak", "faint"])
def test_right_merges_pass(runs, effect):
    """Planted bug caught: tolerances below what float32 leaves."""
    directory = merge(runs[effect], dtype="auto", quiet=True)
    assert directory == runs[effect].merged


def test_a_norm_that_was_trained_and_left_out(runs, monkeypatch):
    """Planted bug caught: of modules trained whole, the frozen original written."""
    from dorakit.adapters.whole import TrainedCopy
    from dorakit.export import tensors

    walk = tensors._walk

    def originals(module, owner):
        yield from walk(module.base if isinstance(module, TrainedCopy) else module, owner)

    monkeypatch.setattr(tensors, "_walk", originals)
    with pytest.raises(GateError, match=r"input_layernorm\.weight is not the one that was trained"):
        merge(runs["weak"], quiet=True)


def test_a_layer_that_is_not_written(runs, monkeypatch):
    """Planted bug caught: only what is written is checked."""
    from dorakit.export import merge as merging

    whole = merging.plain_model

    def without(model):
        plain = whole(model)
        return type(plain)([t for t in plain.tensors if t.owner != LAYER], plain.is_tied)

    monkeypatch.setattr(merging, "plain_model", without)
    with pytest.raises(GateError, match=re.escape(f"{LAYER} was trained and has no weight")):
        merge(runs["strong"], quiet=True)


def test_a_tensor_that_changes_on_the_disk(runs, monkeypatch):
    """Planted bug caught: digests of what was computed compared with themselves, and not with the files."""
    from dorakit.export import merge as merging

    write = merging.write_shards

    def damaged(directory, tensors):
        size = write(directory, tensors)
        file = directory / "model.safetensors"
        content = load_file(file)
        flat = content[f"{LAYER}.weight"].reshape(-1)
        flat[5] = torch.nextafter(flat[5], torch.tensor(9.0))
        save_file(content, file, metadata={"format": "pt"})
        return size

    monkeypatch.setattr(merging, "write_shards", damaged)
    with pytest.raises(GateError, match=re.escape(f"{LAYER}.weight on the disk is not the tensor that was written")):
        merge(runs["faint"], dtype="float32", quiet=True)


def test_each_tensor_is_rounded_once(runs):
    """Planted bug caught: rounded to float16 on the way to bfloat16."""
    run = Run.open(runs["strong"].path)
    exact = load_file(merge(run, dtype="float32", quiet=True) / "model.safetensors")
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        rounded = load_file(merge(run, dtype=name, receipt=False, quiet=True) / "model.safetensors")
        assert rounded.keys() == exact.keys()
        assert all(torch.equal(rounded[key], exact[key].to(dtype)) for key in exact)


def test_a_layer_is_found_by_the_name_that_the_live_model_gives_it():
    """The proof asks tensors for their owner. Planted bug caught: the checkpoint's name asked for instead."""
    tensor = PlainTensor("other.weight", torch.Size((1, 1)), lambda: torch.zeros(1, 1), LAYER, True)
    assert tensor.owner == LAYER and not tensor.name.startswith(LAYER)
