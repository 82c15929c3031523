"""Tied embeddings, added tokens, shards: the files of a merged model."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_runs import IDS, tiny_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from dorakit import attach_, merge
from dorakit.errors import ResourceError
from dorakit.export.destination import check_space
from dorakit.export.shards import write_description, write_shards
from dorakit.export.tensors import plain_model
from dorakit.model.load import load_base
from dorakit.target import open_target


def logits(model, ids=IDS):
    with torch.no_grad():
        return model.eval()(ids).logits


def tied_llama(directory):
    """A tiny llama whose head is its embedding."""
    base = load_base("tiny:llama", dtype="float32")
    base.model.config.tie_word_embeddings = True
    base.model.tie_weights()
    base.model.save_pretrained(directory)
    base.tokenizer.save_pretrained(directory)
    assert "lm_head.weight" not in load_file(directory / "model.safetensors")
    return str(directory)


def perturb_(model):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def write(model, tokenizer, directory):
    directory.mkdir()
    plain = plain_model(model)
    write_shards(directory, ((tensor.name, tensor.make()) for tensor in plain.tensors))
    write_description(directory, model, tokenizer, dtype=torch.float32, is_tied=plain.is_tied)
    return plain


@pytest.mark.parametrize("modules", [[], ["embed_tokens"], ["lm_head"]], ids=["frozen", "embedding", "head"])
def test_tied_stays_tied(tmp_path, modules):
    """Planted bugs caught: two copies written; the frozen embedding written instead of the trained one."""
    base = load_base(tied_llama(tmp_path / "base"), dtype="float32")
    attach_(base.model, method="lora", rank=2, target_modules=["q_proj"], modules_to_save=modules)
    perturb_(base.model)
    plain = write(base.model, base.tokenizer, tmp_path / "merged")
    assert plain.is_tied
    names = set(load_file(tmp_path / "merged" / "model.safetensors"))
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is True
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again), logits(base.model), rtol=1e-4, atol=1e-5)


def test_head_that_left_its_embedding_is_untied(tmp_path):
    """Planted bug caught: the config still says tied, so that transformers drops the head."""
    base = load_base(tied_llama(tmp_path / "base"), dtype="float32")
    head = base.model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    head.weight.data[5] += 1.0
    plain = write(base.model, base.tokenizer, tmp_path / "merged")
    assert not plain.is_tied
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(again), logits(base.model), rtol=1e-4, atol=1e-5)
    assert base.model.config.tie_word_embeddings is True  # the live model is as it was


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_added_tokens_are_in_the_merged_model(tmp_path, is_tied):
    base = tied_llama(tmp_path / "base") if is_tied else "tiny:llama"
    overrides = ("model.added_tokens=['<|json|>']", "adapter.modules_to_save=[embed_tokens, lm_head]")
    run = tiny_run(tmp_path / "run", "dora", overrides, base=base)
    directory = merge(run, quiet=True)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    number = tokenizer.convert_tokens_to_ids("<|json|>")
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.get_input_embeddings().weight.shape[0] == number + 1 == len(tokenizer)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == is_tied
    ids = torch.cat([IDS, torch.full((2, 1), number)], dim=1)
    live = logits(open_target(str(run.path)).model, ids)
    torch.testing.assert_close(logits(model, ids), live, rtol=1e-4, atol=1e-4)


def test_biases_and_families(tmp_path):
    """Planted bug caught: the bias of an adapted layer left out."""
    for architecture in ("qwen2", "gemma2", "mistral", "phi3"):
        base = load_base(f"tiny:{architecture}", dtype="float32", attention="auto")
        attach_(base.model, method="dora", rank=2)
        perturb_(base.model)
        with torch.no_grad():
            for name, parameter in base.model.named_parameters():
                if name.endswith("bias"):
                    parameter.add_(0.3)
        write(base.model, base.tokenizer, tmp_path / architecture)
        again, report = AutoModelForCausalLM.from_pretrained(tmp_path / architecture, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        torch.testing.assert_close(logits(again), logits(base.model), rtol=1e-4, atol=1e-5)


def test_names_on_disk_are_those_of_the_family(tmp_path):
    """Mixtral's experts are fused in memory; on disk they are one by one, as everyone else reads them."""
    base = load_base("tiny:mixtral", dtype="float32")
    base.model.save_pretrained(tmp_path / "theirs")
    write(base.model, base.tokenizer, tmp_path / "ours")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_shards_hold_everything_once(tmp_path):
    """Planted bugs caught: the last shard not written; a shard above the limit."""
    model = load_base("tiny:llama", dtype="float32").model
    tensors = {name: tensor.detach() for name, tensor in model.named_parameters()}
    total = write_shards(tmp_path, tensors.items(), limit=70_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total == sum(tensor.nbytes for tensor in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 3 and [f.name for f in files] == sorted(set(index["weight_map"].values()))
    for file in files:
        with safe_open(file, framework="pt") as shard:
            names = list(shard.keys())
            sizes = [shard.get_tensor(name).nbytes for name in names]
        assert sum(sizes) <= 70_000 or len(sizes) == 1
        assert file.stat().st_mode & 0o777 == 0o644
    model.config.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_views_are_written_without_what_they_look_into(tmp_path):
    big = torch.arange(10_000.0)
    write_shards(tmp_path, [("part", big[:10])])
    assert (tmp_path / "model.safetensors").stat().st_size < 1000
    assert torch.equal(load_file(tmp_path / "model.safetensors")["part"], big[:10])


def test_settings_that_transformers_would_not_save(tmp_path):
    base = load_base("tiny:llama", dtype="float32")
    base.model.generation_config.temperature = 0.6  # without do_sample, as some Llama models ship it
    write(base.model, base.tokenizer, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["temperature"] == 0.6 and written["eos_token_id"] == base.tokenizer.eos_token_id


def test_too_little_space_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(ResourceError, match="GB free"):
        check_space(tmp_path / "a" / "b", 1 << 60)
    check_space(tmp_path / "a" / "b", 1)
