"""A plain LoRA that answers as the DoRA does: held against PEFT, and refused where no rank suffices."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_runs import IDS, tiny_run
from transformers import AutoModelForCausalLM

from dorakit import load_adapter
from dorakit.errors import GateError, UsageError
from dorakit.export.plain_lora import export_plain_lora
from dorakit.export.receipt import adapter_sha256
from dorakit.model.arrival import Arrival
from dorakit.model.load import load_base
from dorakit.model.nf4 import NF4Format
from dorakit.target import open_target

EXACT = 1e-6  # of what was learned: more than float32 leaves between two ways to compute the same


def export(run, output, *, onto="trained", max_lost=0.5, max_rank=256):
    return export_plain_lora(run, output=output, onto=onto, max_lost=max_lost, max_rank=max_rank, quiet=True)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def live(run, onto="trained"):
    return logits(open_target(str(run.path), onto=onto).model)


def base(nf4=None):
    return load_base("tiny:llama", dtype="float32", attention="eager", arrival=Arrival(nf4)).model


def products(directory):
    """B A of each layer."""
    tensors = load_file(directory / "adapter_model.safetensors")
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    found = {name: tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"] for name in names}
    return {name.removeprefix("base_model.model."): product for name, product in found.items()}


@pytest.mark.parametrize(("mode", "rank"), [("lora", 4), ("dora", 64)])
def test_at_full_rank_peft_answers_as_the_live_adapter(trained, tmp_path, mode, rank):
    """Planted bugs caught: the magnitude dropped; s left out of B; an alpha that is not r; a LoRA's own rank not taken."""
    run = trained(mode)
    content = export(run, tmp_path / "out", max_lost=EXACT)
    assert content["rank"] == rank
    assert content["relative_error"]["max"] < 1e-5
    theirs = PeftModel.from_pretrained(base(), tmp_path / "out")
    torch.testing.assert_close(logits(theirs), live(run), rtol=1e-4, atol=1e-4)


def test_what_is_cut_is_the_change_that_peft_merges(trained, tmp_path):
    """Planted bugs caught: m / n taken of the update alone; the error of another rank, or relative to W."""
    run = trained("dora")
    content = export(run, tmp_path / "out", max_lost=1.0)
    assert content["rank"] == 8 and [found["rank"] for found in content["tried"]] == [8]
    weights = dict(base().named_parameters())
    merged = dict(PeftModel.from_pretrained(base(), run.adapter).merge_and_unload().named_parameters())
    for name, product in products(tmp_path / "out").items():
        change = merged[f"{name}.weight"] - weights[f"{name}.weight"]
        u, s, v = torch.linalg.svd(change)
        torch.testing.assert_close(product, (u[:, :8] * s[:8]) @ v[:8], rtol=0, atol=2e-3 * float(s[0]))
        error = float(s[8:].norm() / s.norm())
        assert content["relative_error"]["layers"][name] == pytest.approx(error, rel=0.01)


def test_biases_stay_the_bases_own(tmp_path):
    """Planted bug caught: the bias scaled as the weight is."""
    model = load_base("tiny:qwen2", dtype="float32")
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.linspace(-3, 3, len(parameter)))
    model.model.save_pretrained(tmp_path / "base")
    model.tokenizer.save_pretrained(tmp_path / "base")
    run = tiny_run(tmp_path / "trained", "dora", base=str(tmp_path / "base"))
    export(run, tmp_path / "out", max_lost=EXACT)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "out")
    torch.testing.assert_close(logits(theirs), live(run), rtol=1e-4, atol=1e-4)


def test_on_the_base_as_it_was_trained_on(trained, tmp_path):
    """Planted bug caught: the change taken from the original weights though the server loads NF4."""
    run = trained("qdora")
    content = export(run, tmp_path / "out", max_lost=EXACT)
    assert content["onto"] == "trained" and "exported for a base stored so" in content["notes"][0]
    ours = base(NF4Format())
    load_adapter(ours, tmp_path / "out")
    torch.testing.assert_close(logits(ours), live(run), rtol=1e-4, atol=1e-4)


def test_onto_the_original_weights_is_what_a_merge_onto_them_is(trained, tmp_path):
    """Planted bugs caught: n of the NF4 weights kept; the receipt silent about the model that was trained."""
    run = trained("qdora")
    content = export(run, tmp_path / "out", onto="original", max_lost=EXACT)
    assert content["onto"] == "original"
    assert content["versus_trained_model"]["all"]["kl"] > 1e-5
    assert any("this is another model" in line for line in content["notes"])
    theirs = PeftModel.from_pretrained(base(), tmp_path / "out")
    torch.testing.assert_close(logits(theirs), live(run, "original"), rtol=1e-4, atol=1e-4)
    assert (logits(theirs) - live(run)).abs().max() > 1e-3


def test_the_smallest_rank_within_the_limit(trained, tmp_path):
    """Planted bugs caught: the first or the last rank always taken; either kind of position enough for the limit."""
    tried = export(trained("dora"), tmp_path / "all", max_lost=EXACT)["tried"]
    assert [found["rank"] for found in tried] == [8, 16, 32, 64]
    lower, higher = sorted(tried[1][part]["lost"] for part in ("supervised", "all"))
    assert export(trained("dora"), tmp_path / "both", max_lost=higher * 1.001)["rank"] == 16
    assert json.loads((tmp_path / "both" / "adapter_config.json").read_text())["r"] == 16
    assert export(trained("dora"), tmp_path / "one", max_lost=lower * 1.001)["rank"] == 32


def test_a_lora_of_a_larger_rank_is_cut(tmp_path):
    """Planted bug caught: a LoRA written at its own rank though the server takes less."""
    run = tiny_run(tmp_path / "run", "lora", ("adapter.rank=16",))
    assert export(run, tmp_path / "own")["rank"] == 16
    content = export(run, tmp_path / "cut", max_rank=8, max_lost=1.0)
    assert content["rank"] == 8 and 0.01 < content["relative_error"]["max"] < 1


def test_no_rank_suffices(trained, tmp_path):
    """Planted bugs caught: figures written and not held against the limit; what was there replaced all the same."""
    export(trained("lora"), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(GateError, match=r"up to rank 16 .*\n  by rank: 8: .*, 16: .*\n.*`dorakit merge RUN`") as caught:
        export(trained("dora"), tmp_path / "out", max_lost=EXACT, max_rank=16)
    assert caught.value.exit_code == 5
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    with pytest.raises(GateError):
        export(trained("dora"), tmp_path / "new", max_lost=EXACT, max_rank=16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_the_same_bytes_each_time(trained, tmp_path):
    """Planted bug caught: factors that depend on torch's generator."""
    for place in ("one", "other"):
        torch.manual_seed(len(place))
        export(trained("dora"), tmp_path / place, max_lost=1.0, max_rank=8)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes(), file.name


def test_in_the_form_that_vllm_asks_for(trained, tmp_path):
    """vLLM reads r, lora_alpha and target_modules and refuses DoRA, biases and whole modules.

    Planted bugs caught: use_dora, or the scale of the trained adapter, taken over; patterns of ranks written.
    """
    content = export(trained("dora"), tmp_path / "out", max_lost=1.0)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["use_dora"] is False and config["use_rslora"] is False
    assert config["bias"] == "none" and config["modules_to_save"] is None
    assert config["rank_pattern"] == {} and config["alpha_pattern"] == {}
    assert config["r"] == config["lora_alpha"] == content["rank"]
    assert config["base_model_name_or_path"] == "tiny:llama"
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    owners = {name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for name in tensors}
    assert {name.rsplit(".", 1)[1] for name in owners} == set(config["target_modules"])
    assert set(tensors) == {f"base_model.model.{name}.lora_{part}.weight" for name in owners for part in ("A", "B")}
    assert {(t.shape[0] if ".lora_A." in name else t.shape[1]) for name, t in tensors.items()} == {content["rank"]}


def test_the_receipt_names_what_it_was_made_from(trained, tmp_path):
    """Planted bug caught: the digest of the new adapter in the place of the trained one's."""
    run = trained("dora")
    content = export(run, tmp_path / "out")
    assert content == json.loads((tmp_path / "out" / "export.json").read_text())
    assert content["adapter_sha256"] == adapter_sha256(run.adapter)
    assert content["sha256"]["adapter_model.safetensors"] == adapter_sha256(tmp_path / "out")
    assert (content["to"], content["mode"], content["compared_on"], content["rows"]) == (
        "lora",
        "dora",
        "6 validation rows and 18 training rows",
        24,
    )


def test_an_adapter_directory_outside_a_run(trained, tmp_path):
    """Planted bug caught: rows and settings asked of a run that is not there."""
    copy = shutil.copytree(trained("dora").adapter, tmp_path / "mine")
    content = export(copy, tmp_path / "out", max_lost=EXACT)
    assert content["compared_on"] == "6 built-in texts" and content["mode"] == "dora"
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(base(), tmp_path / "out")), live(trained("dora")), rtol=1e-4, atol=1e-4
    )


def test_what_cannot_be_exported(trained, tmp_path):
    """Planted bug caught: modules trained whole left out in silence."""
    with pytest.raises(UsageError, match=r"expected one of 8, 16"):
        export(trained("dora"), tmp_path / "out", max_rank=100)
    with pytest.raises(UsageError, match=r"/model is the whole model"):
        export(trained("full"), tmp_path / "out")
    with pytest.raises(UsageError, match="no adapter to export: tiny:llama is a whole model"):
        export("tiny:llama", tmp_path / "out")
    with pytest.raises(UsageError, match="is what the result is made from"):
        export(trained("dora"), trained("dora").adapter)
    run = tiny_run(tmp_path / "run", "dora", ("adapter.modules_to_save=[norm]",))
    with pytest.raises(UsageError, match=r"modules trained whole \(model.*norm.*\n  `dorakit export .* --to merged`"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
