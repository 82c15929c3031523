"""delta-M and delta-D against dense float64 and against sixty digits; what they are where nothing, or one thing, changed."""

import shutil
from decimal import Decimal, localcontext

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import tiny_run

from dorakit import Run, dense_weight
from dorakit.adapters.attach import adapter_layers
from dorakit.errors import RunError
from dorakit.files import write_json
from dorakit.model.load import load_base
from dorakit.report.decomposition import LowRankUpdate, decompose, dense_change, find_snapshots, low_rank_change
from dorakit.target import open_target

SCALING = 2.0


def dense_deltas(before, after):
    """The definition, in dense float64."""
    before, after = before.double(), after.double()
    cosine = (before * after).sum(dim=1) / (before.norm(dim=1) * after.norm(dim=1))
    return float((after.norm(dim=1) - before.norm(dim=1)).abs().mean()), float((1 - cosine).mean())


@torch.no_grad()
def merged(layer):
    """The weight that an adapted layer computes with, in dense float64."""
    weight = dense_weight(layer.base).double() + layer.scaling * layer.lora_B.double() @ layer.lora_A.double()
    if layer.lora_magnitude_vector is not None:
        weight *= (layer.lora_magnitude_vector.double() / weight.norm(dim=1))[:, None]
    return weight


@pytest.mark.parametrize("mode", ["full", "lora", "dora", "qlora", "qdora"])
def test_every_matrix_of_a_run_against_dense_float64(trained, mode):
    """Planted bugs caught: s forgotten in one of the two sums, the weights before quantization instead of those in use,
    norms over dim 0, m left out of DoRA, the output head counted in mode full.

    delta-D agrees to 1e-9 and delta-M to 1e-4: a DoRA begins with float32 row norms, which are off by 1e-7 of themselves.
    """
    run = trained(mode)
    changes = {change.module: change for change in decompose(run)}
    model = open_target(str(run.path)).model
    if mode == "full":
        base = load_base("tiny:llama", dtype="float32").model
        linear = {name: m for name, m in base.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"}
        pairs = {name: (module.weight, model.get_submodule(name).weight) for name, module in linear.items()}
    else:
        pairs = {name: (dense_weight(layer.base), merged(layer)) for name, layer in adapter_layers(model)}
    assert changes.keys() == pairs.keys() and len(pairs) == 14
    for name, (before, after) in pairs.items():
        delta_m, delta_d = dense_deltas(before, after)
        assert changes[name].delta_m == pytest.approx(delta_m, rel=1e-4), name
        assert changes[name].delta_d == pytest.approx(delta_d, rel=1e-9, abs=0), name
        assert changes[name].moved and changes[name].step == 3
    one = changes["model.layers.1.mlp.down_proj"]
    assert (one.layer, one.kind) == (1, "down_proj")


def exact_deltas(before, after):
    """The definition, in the digits of the surrounding context."""
    longer, turned = [], []
    for w, t in zip(before, after, strict=True):
        (length_w, length_t) = (sum(v * v for v in row).sqrt() for row in (w, t))
        longer.append(abs(length_t - length_w))
        turned.append(1 - sum(a * b for a, b in zip(w, t, strict=True)) / length_w / length_t)
    return float(sum(longer) / len(longer)), float(sum(turned) / len(turned))


def decimals(matrix):
    return [[Decimal(float(value)) for value in row] for row in matrix]


@pytest.mark.parametrize("size", [1e1, 1e-2, 1e-5, 1e-8])
def test_tiny_changes_keep_their_digits(size):
    """Planted bug caught: 1 - cos as a difference of two numbers near 1, which at 1e-8 is 0 or all rounding.

    The relative error against sixty digits is below 1e-12 whether rows turn by 1e-16 or all the way round.
    """
    torch.manual_seed(0)
    w, a, b = torch.randn(9, 12), torch.randn(3, 12), size * torch.randn(9, 3)
    with localcontext() as context:
        context.prec = 60
        rows, a_rows, b_rows = decimals(w), decimals(a), decimals(b)
        product = [
            [sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*a_rows, strict=True)]
            for row in b_rows
        ]
        after = [
            [v + Decimal(SCALING) * d for v, d in zip(*pair, strict=True)] for pair in zip(rows, product, strict=True)
        ]
        expected = exact_deltas(rows, after)
    assert low_rank_change(w, LowRankUpdate(a, b), scaling=SCALING) == pytest.approx(expected, rel=1e-12, abs=0)
    dense = (w.double() + SCALING * b.double() @ a.double()).float()
    with localcontext() as context:
        context.prec = 60
        expected = exact_deltas(decimals(w), decimals(dense))
    if expected != (0.0, 0.0):  # float32 holds no change of 1e-8
        assert dense_change(w, dense) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("rows", [5, 2500])
def test_no_change_is_exactly_zero(rows):
    """Planted bugs caught: row norms taken in two ways and subtracted; only the first block of rows looked at."""
    torch.manual_seed(1)
    w, a, b = torch.randn(rows, 6), torch.randn(2, 6), torch.zeros(rows, 2)
    start = w.norm(dim=1)
    for update in (LowRankUpdate(a, b), LowRankUpdate(a, b, (start.clone(), start))):
        assert low_rank_change(w, update, scaling=SCALING) == (0.0, 0.0)
        assert not update.moved
    assert dense_change(w, w.clone()) == (0.0, 0.0)
    b[-1, 0] = 1e-3
    assert min(low_rank_change(w, LowRankUpdate(a, b), scaling=SCALING)) > 0


def test_a_pure_rescale_turns_nothing():
    """Planted bugs caught: the length of W + s B A taken for DoRA's magnitude; rows that turned round counted as still."""
    torch.manual_seed(2)
    w = torch.randn(7, 30)
    norm = w.norm(dim=1)
    update = LowRankUpdate(torch.randn(2, 30), torch.zeros(7, 2), (1.5 * norm, norm))
    delta_m, delta_d = low_rank_change(w, update, scaling=SCALING)
    assert (delta_m, delta_d) == (pytest.approx(float(0.5 * norm.mean()), rel=1e-6), 0.0)
    assert update.moved
    for factor in (0.5, 1.5, 3.0, 1.1):
        delta_m, delta_d = dense_change(w, factor * w.double())
        assert delta_m == pytest.approx(abs(factor - 1) * float(norm.mean()), rel=1e-6)
        assert delta_d < 1e-30 and (factor == 1.1 or delta_d == 0.0)  # 1.1 times a number is rounded
    assert dense_change(w, -w)[1] == pytest.approx(2.0)


def test_zero_rows_have_no_direction():
    """Planted bugs caught: 0 / 0, which makes the whole mean NaN; a row that appeared counted as turned."""
    w = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    assert dense_change(w, torch.tensor([[0.0, 2.0], [0.0, 0.0], [0.0, 0.0]])) == (pytest.approx(7 / 3), 0.0)
    b = torch.tensor([[1.0], [0.0], [0.0]])
    assert low_rank_change(w, LowRankUpdate(torch.tensor([[0.0, 1.0]]), b), scaling=SCALING) == (
        pytest.approx(2 / 3),
        0.0,
    )


def test_a_dora_that_another_machine_trained_and_that_stood_still_did_not_move():
    """Planted bug caught: bit equality, where another thread count sums the row norms to other last bits."""
    norm = torch.rand(6) + 1.0
    other = torch.nextafter(norm, torch.tensor(9.0))
    assert not LowRankUpdate(torch.randn(2, 4), torch.zeros(6, 2), (other, norm)).moved
    assert LowRankUpdate(torch.randn(2, 4), torch.zeros(6, 2), (norm + 1e-5, norm)).moved


@pytest.mark.parametrize("mode", ["full", "qdora"])
def test_every_checkpoint_counts_once(tmp_path, mode):
    """Planted bugs caught: the result counted beside the checkpoint of its step; steps in the order of a directory; the
    result read under the names of a checkpoint.
    """
    run = tiny_run(tmp_path, mode, ("training.save_every=1", "training.keep_checkpoints=5"))
    assert [(snapshot.step, snapshot.is_result) for snapshot in find_snapshots(run)[0]] == [
        (1, False),
        (2, False),
        (3, False),
    ]
    changes = decompose(run)
    assert [change.step for change in changes] == [1, 2, 3] * 14
    by_step = [sum(change.delta_d for change in changes if change.step == step) for step in (1, 2, 3)]
    assert by_step == sorted(by_step) and by_step[0] > 0
    for checkpoint in list(run.checkpoints.iterdir()):
        shutil.rmtree(checkpoint)
    alone = decompose(run)
    assert [(change.module, change.delta_m, change.delta_d) for change in alone] == [
        (change.module, change.delta_m, change.delta_d) for change in changes if change.step == 3
    ]
    assert {change.step for change in alone} == {3}


def test_the_best_weights_have_the_step_that_they_are_of(tmp_path):
    """Planted bug caught: the result of keep_best taken for the last step."""
    extra = ("training.keep_best=true", "training.eval_every=1", "training.save_every=1", "optimizer.learning_rate=1.0")
    run = tiny_run(tmp_path, "lora", extra)
    best = run.read("run.json")["best_step"]
    assert 0 < best < 3
    shutil.rmtree(run.checkpoints)
    assert [(snapshot.step, snapshot.is_result) for snapshot in find_snapshots(run)[0]] == [(best, True)]


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    """Planted bug caught: read without its digest being compared."""
    run = tiny_run(tmp_path, "lora", ("training.save_every=1", "training.keep_checkpoints=5"))
    file = run.checkpoints / "step-000000002" / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    snapshots, notes = find_snapshots(run)
    assert [snapshot.step for snapshot in snapshots] == [1, 3]
    assert len(notes) == 1 and "step-000000002" in notes[0] and "damaged" in notes[0]


def test_a_rounded_model_is_said_to_be(tmp_path):
    """Planted bug caught: bfloat16 weights held against float32 ones in silence."""
    run = tiny_run(tmp_path, "full", ("model.dtype=bfloat16",))
    assert find_snapshots(run)[1] == []  # its checkpoint is float32
    shutil.rmtree(run.checkpoints)
    (note,) = find_snapshots(run)[1]
    assert "rounded to BF16" in note
    assert len(decompose(run)) == 14


def test_nothing_to_analyze(run_of):
    """Planted bug caught: an empty list where nothing was kept, which looks like a run that nothing moved in."""
    run = run_of("lora")
    shutil.rmtree(run.checkpoints)
    shutil.rmtree(run.adapter)
    run.update(state="training")
    with pytest.raises(RunError, match=r"no checkpoint and no result.*\n.*dorakit train --resume"):
        find_snapshots(Run.open(run.path))


def test_another_base_is_refused(run_of):
    """Planted bug caught: changes measured from weights that the run did not start from."""
    run = run_of("lora")
    facts = run.read("run.json")
    facts["base"]["files"]["model.safetensors"] = "0" * 64
    write_json(run.path / "run.json", facts)
    with pytest.raises(RunError, match=r"changed since training: model\.safetensors \(sha256 000000000000 in training"):
        decompose(run)


def test_a_matrix_that_stood_still_is_told_from_one_that_moved(run_of):
    """Planted bug caught: `moved` read off deltas of the whole model."""
    run = run_of("lora")
    shutil.rmtree(run.checkpoints)
    file = run.adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    still = "model.layers.1.self_attn.v_proj"
    tensors[f"base_model.model.{still}.lora_B.weight"].zero_()
    save_file(tensors, file)
    assert [change.module for change in decompose(run) if not change.moved] == [still]
