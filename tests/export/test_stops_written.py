"""Every directory that is written lists the stop that was trained, and what its base lists."""

import json

import gguf
import pytest
from tiny_runs import tiny_recipe
from tokenizers import AddedToken
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from dorakit import merge, quantize, train
from dorakit.export.outputs import export_lora, export_peft
from dorakit.export.to_gguf import export_gguf
from dorakit.model.tiny import tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Gives a run in a mode on a base that lists <|im_end|> and one more, and whose turns end in a token of no role."""
    place = tmp_path_factory.mktemp("stops")
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken("<|eot|>", special=True, normalized=False)])
    tokenizer.save_pretrained(place / "base")
    settings = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **settings))
    model.save_pretrained(place / "base")
    stated = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, 5], temperature=0.6)  # refused by save_pretrained
    stated.to_json_file(place / "base" / "generation_config.json")
    row = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}

    def run(mode):
        overrides = (f"data.chat_template={json.dumps(TEMPLATE)}", "data.train.0.format=chat", "evaluation.metric=none")
        recipe = tiny_recipe(place / mode, mode, (*overrides, "training.max_steps=1"), base=str(place / "base"))
        (place / mode / "train.jsonl").write_text(8 * (json.dumps(row) + "\n"))
        return train(recipe, quiet=True)

    return run


def listed(directory):
    ids = json.loads((directory / "generation_config.json").read_text())["eos_token_id"]
    return AutoTokenizer.from_pretrained(directory).convert_ids_to_tokens(ids)


def test_a_run_and_its_exports(made):
    """Planted bugs caught: a directory with its base's file, or without any; what the base lists left out; GGUF with eos
    alone; a full model not saved for a setting that transformers refuses.
    """
    full, lora = made("full"), made("lora")
    merge(lora, quiet=True)
    export_peft(lora, quiet=True)
    export_lora(lora, max_rank=8, quiet=True)
    for directory in (full.model, lora.adapter, lora.merged, lora.peft, lora.lora, quantize(full, quiet=True)):
        assert listed(directory) == ["<|im_end|>", "<|eot|>", AutoTokenizer.from_pretrained(directory).decode([5])]
        assert json.loads((directory / "generation_config.json").read_text())["temperature"] == 0.6
    export_gguf(full, quiet=True)
    fields = gguf.GGUFReader(full.gguf / "model-f16.gguf").fields
    tokenizer = AutoTokenizer.from_pretrained(full.model)
    found = [fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("eos", "eot", "eom")]
    assert found == [*tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|eot|>"]), 5]
    assert 'PARAMETER stop "<|eot|>"' in (full.gguf / "Modelfile").read_text()
