"""A run whose start changes the base: resumed, loaded, merged, exported, continued, as one that was never saved."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from dorakit import train
from dorakit.adapters.attach import base_only
from dorakit.errors import DorakitError, ModelError, RecipeError, RunError, UsageError
from dorakit.export.merge import merge
from dorakit.export.outputs import export_lora, export_peft
from dorakit.export.quantize import quantize
from dorakit.model.load import load_base
from dorakit.report.decomposition import decompose
from dorakit.run import Run
from dorakit.target import open_target
from dorakit.training import optim
from dorakit.training.start import _check_strategy

IDS = torch.arange(24).reshape(2, 12) * 7 % 250 + 3
STARTS = ("pissa", "olora")
every_run = pytest.mark.parametrize(
    ("start", "mode"), [("pissa", "lora"), ("pissa", "qdora"), ("olora", "dora"), ("olora", "qlora")]
)


def no_decomposition(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("decomposed again")

    for function in ("svd", "qr"):
        monkeypatch.setattr(torch.linalg, function, refused)


def trained(make_recipe, start, mode, *overrides):
    return train(make_recipe(f"adapter.mode={mode}", f"adapter.start={start}", *overrides), quiet=True)


@every_run
def test_killed_before_its_first_checkpoint_it_begins_again(monkeypatch, make_recipe, tmp_path, start, mode):
    """From the saved factors, to the same bytes."""
    unbroken = trained(make_recipe, start, mode, f"output_dir={tmp_path}/a")
    settings = [f"adapter.mode={mode}", f"adapter.start={start}", f"output_dir={tmp_path}/b"]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optim.Updater, "step", killed)
        train(make_recipe(*settings), quiet=True)
    run = Run.open(tmp_path / "b")
    no_decomposition(monkeypatch)
    run = train(run.recipe, resume=run, quiet=True)
    for name in ("adapter_model.safetensors", "initial.safetensors"):
        assert (run.adapter / name).read_bytes() == (unbroken.adapter / name).read_bytes()


def test_a_changed_or_lost_initial_refuses_a_resume(monkeypatch, make_recipe, tmp_path):
    """Planted bug caught: a new decomposition in its place."""
    run = trained(make_recipe, "pissa", "lora", "training.save_every=3")
    run.update(state="training")
    content = bytearray(run.initial.read_bytes())
    content[-1] ^= 1
    run.initial.write_bytes(content)
    with pytest.raises(RunError, match="changed since training began"):
        train(run.recipe, resume=run, quiet=True)
    run.initial.unlink()
    with pytest.raises(ModelError, match="is not there"):
        train(run.recipe, resume=run, quiet=True)


@every_run
def test_it_is_loaded_as_it_was_trained(monkeypatch, make_recipe, start, mode):
    """As a run and as an adapter directory, which say the same; `base_only` and `--base` give the original base's answers."""
    run = trained(make_recipe, start, mode)
    no_decomposition(monkeypatch)
    as_run, as_adapter = open_target(str(run.path)), open_target(str(run.adapter), recipe=run.recipe)
    live = as_run.model(IDS).logits
    assert torch.equal(as_adapter.model(IDS).logits, live)
    base = open_target(str(run.path), base_only=True).model(IDS).logits
    with base_only(as_run.model):
        # In 4 bits the residual was rounded, and not W.
        close = {"rtol": 1e-4, "atol": 1e-4} if mode in ("lora", "dora") else {"rtol": 0.5, "atol": 0.5}
        torch.testing.assert_close(as_run.model(IDS).logits, base, **close)
    assert not torch.allclose(live, base, atol=1e-3)


@every_run
def test_merged_with_a_receipt_quantized_and_analyzed(make_recipe, start, mode):
    run = trained(make_recipe, start, mode, "training.save_every=3")
    live = open_target(str(run.path)).model(IDS).logits
    merge(run, dtype="float32", quiet=True)
    torch.testing.assert_close(open_target(str(run.merged)).model(IDS).logits, live, rtol=1e-2, atol=1e-2)
    changes = decompose(run)
    assert changes and all(change.moved and 0 < change.delta_d < 0.5 for change in changes)
    quantize(run, quiet=True)


@pytest.mark.parametrize(("start", "mode"), [("pissa", "lora"), ("olora", "dora")])
def test_exported_to_peft_it_is_a_lora_of_twice_the_rank(make_recipe, start, mode):
    run = trained(make_recipe, start, mode)
    live = open_target(str(run.path)).model(IDS).logits
    made = export_peft(run, quiet=True)
    config = json.loads((made.directory / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 8, 16)
    theirs = PeftModel.from_pretrained(load_base("tiny:llama", dtype="float32").model, made.directory)
    torch.testing.assert_close(theirs(IDS).logits, live, rtol=1e-3, atol=1e-4)
    again = open_target(str(made.directory), recipe=run.recipe).model(IDS).logits
    torch.testing.assert_close(again, live, rtol=1e-3, atol=1e-4)


def test_in_four_bits_peft_is_refused_with_ways_out(make_recipe):
    run = trained(make_recipe, "pissa", "qlora")
    with pytest.raises(UsageError, match="--to lora"):
        export_peft(run, quiet=True)


@pytest.mark.parametrize(("start", "mode"), [("pissa", "lora"), ("olora", "qlora")])
def test_exported_as_a_plain_lora(make_recipe, start, mode):
    """Planted bug caught: the plain LoRA compared on the residual."""
    run = trained(make_recipe, start, mode)
    made = export_lora(run, max_rank=256, quiet=True)
    tensors = load_file(made.directory / "adapter_model.safetensors")
    assert {min(tensor.shape) for tensor in tensors.values()} == {8}


@every_run
def test_a_run_goes_on_from_it(monkeypatch, make_recipe, tmp_path, start, mode):
    """With its factors. Planted bug caught: a new decomposition of the same base under the old A and B."""
    run = trained(make_recipe, start, mode, f"output_dir={tmp_path}/a")
    live = open_target(str(run.path)).model(IDS).logits
    settings = [f"adapter.mode={mode}", f"output_dir={tmp_path}/b", "optimizer.learning_rate=1e-6"]
    with pytest.raises(RecipeError, match=r"adapter\.start is kaiming"):
        train(make_recipe(*settings), start_from=run.path, quiet=True)
    no_decomposition(monkeypatch)
    after = train(make_recipe(*settings, f"adapter.start={start}"), start_from=run.path, quiet=True)
    torch.testing.assert_close(open_target(str(after.path)).model(IDS).logits, live, rtol=1e-3, atol=1e-3)
    assert (after.adapter / "initial.safetensors").read_bytes() == (run.adapter / "initial.safetensors").read_bytes()


@pytest.mark.parametrize("start", STARTS)
def test_fsdp_is_refused_before_loading(make_recipe, start):
    from dorakit.parallel.environment import this_process

    recipe = make_recipe(f"adapter.start={start}", "parallel.strategy=fsdp")
    with pytest.raises(UsageError, match=f"adapter.start: {start}"):
        _check_strategy(recipe, this_process())


def test_a_base_in_four_bits_is_refused(monkeypatch, make_recipe, tmp_path):
    """Before anything is computed."""
    quantized = quantize(train(make_recipe("adapter.mode=qlora"), quiet=True), quiet=True)
    no_decomposition(monkeypatch)
    with pytest.raises(DorakitError, match="before quantization"):
        trained(make_recipe, "pissa", "qlora", f"model.base={quantized}", f"output_dir={tmp_path}/b")


def test_the_plan_counts_the_factors(make_recipe):
    """Planted bug caught: A0 and B0 left out of the base's bytes."""
    from dorakit.plan.ledger import ledger
    from dorakit.plan.skeleton import find_config

    plain, started = (make_recipe(f"adapter.start={start}") for start in ("kaiming", "pissa"))
    config = find_config(plain, None)
    bytes_ = [ledger(recipe, config, dtype=torch.float32, on_card=False).base for recipe in (plain, started)]
    model = open_target("tiny:llama").model
    held = sum(4 * 4 * sum(m.weight.shape) for n, m in model.named_modules() if n.endswith("_proj"))
    assert bytes_[1] - bytes_[0] == held
