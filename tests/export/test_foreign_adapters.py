"""The table of refused adapters in docs/export.md: each row is refused in its words, none is missing, and its advice works."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig
from tiny_runs import IDS, tiny_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

import dorakit
from dorakit import load_adapter, train
from dorakit.adapters.peft_config import UNSUPPORTED
from dorakit.errors import ModelError
from dorakit.model.load import load_base

PAGE = (Path(dorakit.__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## Adapters that are refused")[2].partition("\n## ")[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in SECTION.splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| adapter |"))
]


def base(name="tiny:llama"):
    return load_base(name, dtype="float32").model


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


def saved(directory, config, name="tiny:llama"):
    """An adapter that PEFT made and saved, with something learnt; its logits."""
    theirs = get_peft_model(base(name), config)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    theirs.peft_config["default"].base_model_name_or_path = name
    theirs.save_pretrained(directory, save_embedding_layers=False)
    return logits(theirs)


@pytest.fixture(params=ROWS, ids=lambda row: row[0])
def row(request, tmp_path):
    """An adapter as a row has it, the message and the advice."""
    _, setting, message, advice = request.param
    changes = json.loads(setting.strip("`"))
    targets = changes.get("target_modules", ["q_proj"])
    saved(tmp_path / "adapter", LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return tmp_path / "adapter", message.strip("`"), advice


def test_a_row_is_refused_in_its_words(row, tmp_path):
    """Planted bugs caught: a row that is read after all; another message or advice than the page's."""
    adapter, message, advice = row
    for refused in (
        lambda: load_adapter(base(), adapter),
        lambda: train(tiny_recipe(tmp_path, "lora", ("adapter.alpha=8",)), start_from=adapter, quiet=True),
    ):
        with pytest.raises(ModelError) as caught:
            refused()
        assert message in str(caught.value) and advice in str(caught.value)


def test_no_row_is_missing():
    """Planted bug caught: a setting refused in the code, and not on the page."""
    rows = {key for _, setting, _, _ in ROWS for key in json.loads(setting.strip("`"))}
    assert rows == {*UNSUPPORTED, "peft_type", "init_lora_weights", "target_modules"}


LORA = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}
MERGED = {
    "bias": LoraConfig(**LORA, target_modules=["q_proj"], bias="all"),
    "bias of the adapted": LoraConfig(**LORA, target_modules=["q_proj"], bias="lora_only"),
    "lora_bias": LoraConfig(**LORA, target_modules=["q_proj"], lora_bias=True),
    "embedding": LoraConfig(**LORA, target_modules=["embed_tokens"]),
    "head": LoraConfig(**LORA, target_modules=["lm_head"]),
    "tokens": LoraConfig(**LORA, target_modules=["q_proj"], trainable_token_indices=[5, 7]),
    "parameters": LoraConfig(**LORA, target_modules=[], target_parameters=["q_proj.weight"]),
    "blocks": LoraConfig(
        **LORA, target_modules=["q_proj"], use_bdlora=BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2)
    ),
    "kasa": LoraConfig(**LORA, target_modules=["q_proj"], kasa_config=KasaConfig()),
    "ia3": IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", MERGED)
def test_the_merge_that_is_advised_is_the_adapter(tmp_path, kind):
    """Planted bug caught: advice for an adapter that PEFT cannot merge, or merges into another model."""
    name = "tiny:qwen2"  # whose projections have biases
    expected = saved(tmp_path / "adapter", MERGED[kind], name)
    with pytest.raises(ModelError, match="merge it in PEFT"):
        load_adapter(base(name), tmp_path / "adapter")
    lines = re.search(r"((?:^    .*\n)+)\n*\Z", SECTION.rstrip() + "\n", re.MULTILINE)[1]
    base(name).save_pretrained(tmp_path / "base")
    load_base(name, dtype="float32").tokenizer.save_pretrained(tmp_path / "base")
    places = {"BASE": tmp_path / "base", "ADAPTER": tmp_path / "adapter", "DIR": str(tmp_path / "merged")}
    code = "\n".join(line.strip() for line in lines.splitlines())
    exec(
        code,
        {
            **places,
            "PeftModel": PeftModel,
            "AutoModelForCausalLM": AutoModelForCausalLM,
            "AutoTokenizer": AutoTokenizer,
        },
    )
    assert (expected - logits(base(name))).abs().max() > 0.01
    torch.testing.assert_close(logits(base(str(tmp_path / "merged"))), expected, rtol=1e-3, atol=1e-3)
