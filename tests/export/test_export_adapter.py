"""`dorakit export` of an adapter that PEFT saved, outside any run."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from printed_commands import commands_in, parse
from tiny_runs import IDS
from transformers import AutoModelForCausalLM, GgufConfig
from typer.testing import CliRunner

from dorakit.cli.app import app
from dorakit.errors import ModelError, UsageError
from dorakit.model.source import resolve


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


@pytest.fixture
def base(tmp_path):
    return shutil.copytree(resolve("tiny:llama").directory, tmp_path / "my-base")


def plain(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@pytest.fixture
def adapter_of(tmp_path, base):
    """A function that saves an adapter with PEFT, beside what a trainer leaves there; its directory and logits."""

    def save(**settings):
        chosen = {"target_modules": ["q_proj", "up_proj"], **settings}
        theirs = get_peft_model(plain(base), LoraConfig(r=4, lora_alpha=12, task_type="CAUSAL_LM", **chosen))
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in theirs.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        directory = tmp_path / "checkpoint-7"
        theirs.save_pretrained(directory)
        (directory / "optimizer.pt").write_bytes(b"a pickle")
        return directory, logits(theirs)

    return save


def export(*arguments):
    result = CliRunner().invoke(
        app, ["export", *map(str, arguments), "--json", "--quiet"], catch_exceptions=False, standalone_mode=False
    )
    return json.loads(result.stdout)


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("to", ["merged", "gguf", "peft", "lora"])
def test_it_answers_as_in_peft(tmp_path, adapter_of, base, to, use_dora):
    """Planted bugs caught: the base written without the adapter; the adapter's own name or place in the card, or facts of a
    run that there is none of; an optimizer's pickle published with the adapter.
    """
    adapter, expected = adapter_of(use_dora=use_dora)
    out = tmp_path / "out"
    options = {"merged": ["--dtype", "float32"], "gguf": ["--dtype", "float32"], "lora": ["--max-lost", 1e-6]}
    said = export(adapter, "--to", to, "--output", out, *options.get(to, []))
    assert (said["run"], said["adapter"], said["base"], said["mode"]) == (
        None, "checkpoint-7", "my-base", "dora" if use_dora else "lora"
    )  # fmt: skip
    if to == "merged":
        model = plain(out)
    elif to == "gguf":
        config = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            out, gguf_file="model-f16.gguf", quantization_config=config, dtype=torch.float32
        )
    else:
        model = PeftModel.from_pretrained(plain(base), out)
    assert (expected - logits(plain(base))).abs().max() > 0.1
    assert (logits(model) - expected).abs().max() < 1e-2
    assert "optimizer.pt" not in {file.name for file in out.iterdir()}
    text = (out / "README.md").read_text()
    found = ModelCard(text).data
    assert (found.base_model, found.license, found.datasets, found.eval_results) == (None, "other", None, None)
    assert "`my-base`, fine-tuned: mode" in text and "rank 4, alpha 12" in text and str(tmp_path) not in text
    assert "does not say on what data it was trained" in text
    assert "trained on |" not in text and "steps, tokens" not in text and "## Recipe" not in text
    assert str(tmp_path) not in (out / "export.json").read_text()
    for command in commands_in(text):
        parse(command)


@pytest.mark.parametrize("to", ["merged", "gguf", "peft", "lora"])
def test_another_base_is_read_instead_of_the_one_named(tmp_path, adapter_of, base, to):
    """Planted bugs caught: --base-model handed to one form and not to another; the former base named in what is written."""
    adapter, expected = adapter_of()
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    out = tmp_path / "out"
    with pytest.raises(ModelError, match=r"names no base .*\n  name one with --base-model"):
        export(adapter, "--to", to, "--output", out)
    export(adapter, "--to", to, "--output", out, "--base-model", base)
    if to in ("peft", "lora"):
        assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
        torch.testing.assert_close(logits(PeftModel.from_pretrained(plain(base), out)), expected, rtol=1e-3, atol=1e-3)
    if to == "merged":
        # Another base is another model: an earlier merge is no longer taken.
        other = shutil.copytree(base, tmp_path / "other")
        before = (out / "model.safetensors").stat().st_mtime_ns
        export(adapter, "--to", to, "--output", out, "--base-model", base)
        assert (out / "model.safetensors").stat().st_mtime_ns == before
        export(adapter, "--to", to, "--output", out, "--base-model", other)
        assert (out / "model.safetensors").stat().st_mtime_ns != before


@pytest.mark.parametrize("to", ["merged", "gguf", "peft", "lora"])
def test_it_needs_a_place(adapter_of, to):
    """Planted bugs caught: written into the adapter's directory, or over it."""
    adapter, _ = adapter_of()
    with pytest.raises(UsageError, match="is an adapter outside a run: say where the export goes") as refused:
        export(adapter, "--to", to)
    assert commands_in(str(refused.value)) == [f"dorakit export {adapter} --to {to} --output DIR"]
    with pytest.raises(UsageError, match="is what the result is made from"):
        export(adapter, "--to", to, "--output", adapter)
    assert {file.name for file in adapter.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "optimizer.pt"
    }  # fmt: skip


def test_a_hub_base_is_named(tmp_path, adapter_of):
    """Planted bugs caught: a base of the hub not named in the card, or no server's line for it."""
    adapter, _ = adapter_of()
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "org/base"}))
    shutil.copy(resolve("tiny:llama").directory / "tokenizer.json", adapter)
    shutil.copy(resolve("tiny:llama").directory / "tokenizer_config.json", adapter)
    said = export(adapter, "--to", "peft", "--output", tmp_path / "out")
    assert said["serve"][0].startswith("vllm serve org/base --enable-lora")
    text = (tmp_path / "out" / "README.md").read_text()
    assert ModelCard(text).data.base_model == "org/base" and "from_pretrained('org/base')" in text
    assert said["notes"] == []
