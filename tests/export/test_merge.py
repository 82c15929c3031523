import errno
import json
import os
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_runs import IDS, tiny_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from dorakit import Run, load_adapter, merge
from dorakit.adapters.attach import adapter_layers
from dorakit.errors import GateError, ResourceError, RunError, UsageError
from dorakit.export.receipt import adapter_sha256, compare_logits, sample_rows, store_logits
from dorakit.export.shards import write_description
from dorakit.files import write_json
from dorakit.model.arrival import Arrival
from dorakit.model.load import load_base
from dorakit.model.nf4 import NF4Format
from dorakit.target import open_target


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def by_transformers(directory):
    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def receipt(directory):
    return json.loads((directory / "merge.json").read_text())


@pytest.mark.parametrize("mode", ["lora", "dora", "qlora", "qdora"])
def test_transformers_gives_the_live_adapters_logits(run_of, mode):
    """Planted bugs caught: the scaling left out; DoRA merged as LoRA; NF4 adapters merged onto the original weights."""
    run = run_of(mode)
    model = load_base(
        "tiny:llama", dtype="float32", arrival=Arrival(NF4Format() if mode.startswith("q") else None)
    ).model
    base = logits(model)
    load_adapter(model, run.adapter)
    live = logits(model)
    assert (live - base).abs().max() > 0.1
    directory = merge(run, quiet=True)
    assert directory == run.merged
    torch.testing.assert_close(logits(by_transformers(directory)), live, rtol=1e-4, atol=1e-4)
    assert {p.name for p in run.path.iterdir() if p.name.startswith(".")} == set()


def test_the_receipt_says_what_was_compared(run_of):
    run = run_of("qdora")
    content = receipt(merge(run, quiet=True))
    assert content["adapter_sha256"] == adapter_sha256(run.adapter)
    assert (content["base"], content["mode"], content["onto"], content["dtype"]) == (
        "tiny:llama",
        "qdora",
        "trained",
        "float32",
    )
    shown = content["receipt"]
    assert (shown["rows"], shown["max_lost"], shown["computed_in"]) == (24, 0.05, "float32")
    assert shown["compared_on"] == "6 validation rows and 18 training rows"
    assert content["proved_tensors"] == 21
    logged = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    tokens = next(line["validation/tokens"] for line in logged if "validation/tokens" in line)
    assert shown["supervised"]["positions"] > tokens
    assert shown["all"]["positions"] > tokens
    for part in ("supervised", "all"):
        assert shown[part]["kl"] < 1e-6 and shown[part]["top1_agreement"] == 1.0
        assert shown[part]["max_logit_difference"] < 1e-3


def test_the_tokenizer_and_its_template_come_along(tmp_path):
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
    run = tiny_run(tmp_path, "lora", (f"data.chat_template={json.dumps(template)}",))
    for with_receipt in (True, False):
        directory = merge(run, receipt=with_receipt, quiet=True)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        assert tokenizer.chat_template == template
    assert receipt(directory)["receipt"] == "none"


def test_dtype_of_weights_and_config(run_of):
    directory = merge(run_of("lora"), dtype="bfloat16", quiet=True)
    config = json.loads((directory / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    assert {tensor.dtype for tensor in load_file(directory / "model.safetensors").values()} == {torch.bfloat16}
    assert 0 < receipt(directory)["receipt"]["all"]["kl"] < 1e-3


def test_each_weight_is_rounded_once(run_of):
    """Planted bug caught: base or update rounded to bfloat16 before they are added."""
    run = run_of("dora")
    layers = dict(adapter_layers(open_target(str(run.path)).model))
    written = load_file(merge(run, dtype="bfloat16", quiet=True) / "model.safetensors")
    for name, layer in layers.items():
        assert torch.equal(written[f"{name}.weight"], layer.merged_weight().bfloat16())


def test_onto_original_is_another_model_and_says_so(run_of, capsys):
    """Planted bug caught: --onto original that merges onto the NF4 weights all the same."""
    run = run_of("qlora")
    live = open_target(str(run.path))
    directory = merge(run, onto="original")
    assert "this is another model" in capsys.readouterr().err
    written = load_file(directory / "model.safetensors")
    base = load_base("tiny:llama", dtype="float32").model.state_dict()
    for name, layer in adapter_layers(live.model):
        expected = base[f"{name}.weight"] + layer.scaling * layer.lora_B @ layer.lora_A
        torch.testing.assert_close(written[f"{name}.weight"], expected, rtol=1e-5, atol=1e-6)
    content = receipt(directory)
    assert content["onto"] == "original"
    assert content["receipt"]["all"]["kl"] < 1e-6
    assert content["receipt"]["versus_trained_model"]["all"]["kl"] > 1e-5
    assert (logits(by_transformers(directory)) - logits(live.model)).abs().max() > 1e-3


def test_onto_original_where_the_base_was_never_quantized(run_of, capsys):
    content = receipt(merge(run_of("dora"), onto="original"))
    assert content["onto"] == "trained" and "changes nothing" in content["notes"][0]
    assert "changes nothing" in capsys.readouterr().err


def test_the_logits_of_the_receipt_need_space_too(monkeypatch, run_of):
    """Planted bug caught: only the weights are counted, and the disk fills while logits are stored."""
    run = run_of("lora")
    written = merge(run, quiet=True)
    weights = receipt(written)["bytes"]
    free = shutil.disk_usage(written)._replace(free=weights + 20_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(ResourceError, match="free"):
        merge(run, quiet=True)
    merge(run, receipt=False, quiet=True)


def test_an_unmet_limit_leaves_nothing(run_of):
    """Planted bug caught: the directory moved to its place before it is compared."""
    run = run_of("lora")
    text = (run.path / "recipe.resolved.yaml").read_text()
    assert "max_lost: 0.05" in text
    (run.path / "recipe.resolved.yaml").write_text(text.replace("max_lost: 0.05", "max_lost: 1.0e-9"))
    before = sorted(p.name for p in run.path.iterdir())
    with pytest.raises(
        GateError, match=r"rounding to bfloat16 takes .*above the limit merge\.max_lost 1e-09"
    ) as caught:
        merge(run, dtype="bfloat16", quiet=True)
    assert caught.value.exit_code == 5
    assert sorted(p.name for p in run.path.iterdir()) == before
    merge(run, dtype="bfloat16", receipt=False, quiet=True)
    earlier = (run.merged / "merge.json").read_bytes()
    with pytest.raises(GateError):
        merge(run, dtype="bfloat16", quiet=True)
    assert (run.merged / "merge.json").read_bytes() == earlier


def test_auto_writes_float32_where_rounding_takes_too_much(run_of, capsys):
    """Planted bugs caught: auto refused as an explicit dtype is; the 16-bit files left beside the float32 ones."""
    run = run_of("lora")
    text = (run.path / "recipe.resolved.yaml").read_text()
    for limit, dtype in ((0.05, "bfloat16"), (1e-9, "float32")):
        (run.path / "recipe.resolved.yaml").write_text(text.replace("max_lost: 0.05", f"max_lost: {limit}"))
        content = receipt(merge(run, dtype="auto"))
        assert content["dtype"] == dtype
        notes = [line for line in content["notes"] if "float32 is written" in line]
        assert len(notes) == (dtype == "float32") and all(line in capsys.readouterr().err for line in notes)
        weights = load_file(run.merged / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {getattr(torch, dtype)}


def test_a_wrong_model_of_right_weights_does_not_pass(run_of, monkeypatch):
    """The weights are proved and the model is another one. Planted bug caught: it is called rounding."""
    run = run_of("lora")

    def description(directory, model, *arguments, **options):
        notes = write_description(directory, model, *arguments, **options)
        config = json.loads((directory / "config.json").read_text())
        write_json(directory / "config.json", config | {"rms_norm_eps": 1.0})
        return notes

    monkeypatch.setattr("dorakit.export.merge.write_description", description)
    for dtype in ("bfloat16", "float32", "auto"):
        with pytest.raises(GateError, match="the merged model is not the trained one"):
            merge(run, dtype=dtype, quiet=True)
    assert not run.merged.exists()


def test_receipt_figures_are_those_of_the_definition(tmp_path):
    """Planted bugs caught: KL taken the other way round; padding of a batch counted; the mask not shifted."""
    one, other = (load_base("tiny:llama", dtype="float32") for _ in range(2))
    with torch.no_grad():
        other.model.lm_head.weight.add_(torch.randn(other.model.lm_head.weight.shape) * 0.02)
    run_recipe = tiny_run(tmp_path / "run", "lora").recipe
    samples, _ = sample_rows(run_recipe, one.tokenizer)
    assert len({len(sample.ids) for sample in samples}) > 1
    (tmp_path / "logits").mkdir()
    store_logits(one.model, samples, tmp_path / "logits")
    found = compare_logits(other.model, samples, tmp_path / "logits")
    rows = []
    for sample in samples:
        with torch.no_grad():
            p, q = (model(sample.ids[None]).logits[0].double() for model in (one.model, other.model))
        kl = torch.distributions.kl_divergence(
            torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
        )
        same = p.argmax(-1) == q.argmax(-1)
        # "= N": the completion and the stop token are predicted from the position before each.
        supervised = torch.zeros(len(sample.ids), dtype=torch.bool)
        completion = one.tokenizer.decode(sample.ids).index("=") + 1
        supervised[completion - 1 : len(sample.ids) - 1] = True
        assert torch.equal(sample.supervised, supervised)
        rows.append((kl, (p - q).abs().amax(-1), same, supervised))
    kl, difference, same, supervised = (torch.cat(column) for column in zip(*rows, strict=True))
    for name, chosen in (("all", torch.ones_like(supervised)), ("supervised", supervised)):
        assert found[name]["positions"] == int(chosen.sum())
        assert found[name]["kl"] == pytest.approx(float(kl[chosen].mean()), rel=1e-3)
        assert found[name]["max_kl"] == pytest.approx(float(kl[chosen].max()), rel=1e-3)
        assert found[name]["max_logit_difference"] == pytest.approx(float(difference[chosen].max()), rel=1e-4)
        assert found[name]["top1_agreement"] == pytest.approx(float(same[chosen].double().mean()))


def test_merging_twice_replaces_and_strangers_directories_stay(run_of, tmp_path):
    run = run_of("lora")
    merge(run, dtype="bfloat16", quiet=True)
    merge(run, quiet=True)
    assert receipt(run.merged)["dtype"] == "float32"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for place in (mine, run.adapter, run.path):
        with pytest.raises(UsageError, match="--output"):
            merge(run, output=place, quiet=True)
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert (run.adapter / "adapter_config.json").is_file()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        merge(run, output=tmp_path / "file", quiet=True)


def test_what_cannot_be_merged(trained, tmp_path):
    with pytest.raises(UsageError, match=r"nothing to merge: .*/model is the whole model"):
        merge(trained("full"), quiet=True)
    with pytest.raises(UsageError, match="nothing to merge: tiny:llama is a whole model"):
        merge("tiny:llama", output=tmp_path / "out", quiet=True)
    copy = shutil.copytree(trained("lora").adapter, tmp_path / "adapter")
    with pytest.raises(UsageError, match="--output DIR"):
        merge(copy, quiet=True)
    unfinished = Run(shutil.copytree(trained("lora").path, tmp_path / "run"))
    shutil.rmtree(unfinished.adapter)
    with pytest.raises(RunError, match="has lost its result"):
        merge(unfinished, quiet=True)


def test_an_adapter_directory_is_merged_onto_what_it_was_trained_on(trained, tmp_path):
    """Planted bug caught: a QLoRA adapter outside its run merged onto the original weights, and called trained."""
    run = trained("qlora")
    copy = shutil.copytree(run.adapter, tmp_path / "mine")
    live = logits(open_target(str(run.path)).model)
    directory = merge(copy, output=tmp_path / "merged", dtype="float32", quiet=True)
    torch.testing.assert_close(logits(by_transformers(directory)), live, rtol=1e-4, atol=1e-4)
    assert (receipt(directory)["onto"], receipt(directory)["mode"]) == ("trained", "qlora")
    directory = merge(copy, output=tmp_path / "other", onto="original", dtype="float32", quiet=True)
    assert receipt(directory)["onto"] == "original"
    assert receipt(directory)["receipt"]["versus_trained_model"]["all"]["kl"] > 1e-5


@pytest.mark.parametrize("use_dora", [False, True])
def test_an_adapter_that_peft_saved(tmp_path, use_dora):
    """Planted bugs caught: alpha_pattern dropped on the way in; a float32 base rounded to bfloat16 before the merge."""
    base = load_base("tiny:qwen2", dtype="float32")
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    settings = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        alpha_pattern={"q_proj": 20},
        use_dora=use_dora,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), settings)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path / "adapter")
    directory = merge(tmp_path / "adapter", output=tmp_path / "merged", dtype="float32", quiet=True)
    expected = logits(model.merge_and_unload())
    torch.testing.assert_close(logits(by_transformers(directory)), expected, rtol=1e-4, atol=1e-4)
    content = receipt(directory)
    assert content["receipt"]["compared_on"] == "6 built-in texts"
    assert content["onto"] == "original" and "has no dorakit.json" in content["notes"][0]
    assert content["base"] == str(tmp_path / "base") and content["mode"] == ("dora" if use_dora else "lora")


def test_packed_weights_are_not_in_memory_meanwhile(run_of, monkeypatch):
    """They are the same bytes in mapped files that have no name. Planted bug caught: the mapping not asked for."""
    plain = dict(load_base("tiny:llama", dtype="float32", arrival=Arrival(NF4Format())).model.named_modules())
    seen = []

    def looked(*arguments, **options):
        target = open_target(*arguments, **options)
        for name, layer in adapter_layers(target.model):
            seen.append(layer.base.weight.untyped_storage().is_shared())
            assert torch.equal(layer.base.weight, plain[name].weight)
            assert not plain[name].weight.untyped_storage().is_shared()
        return target

    monkeypatch.setattr("dorakit.export.merge_plan.open_target", looked)
    run = run_of("qdora")
    merge(run, quiet=True)
    assert seen and all(seen)
    assert not list(run.path.glob(".tmp-*"))


def test_no_room_for_packed_weights(run_of, monkeypatch):
    """Planted bug caught: the error swallowed by transformers' loader, which goes on with the next tensor."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    run = run_of("qdora")
    before = sorted(p.name for p in run.path.iterdir())
    with pytest.raises(ResourceError, match=r"packed weights.*No space left"):
        merge(run, quiet=True)
    assert sorted(p.name for p in run.path.iterdir()) == before
