import contextlib
import json
import shutil

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import IDS, tiny_recipe, tiny_run
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from dorakit import merge, quantize
from dorakit.adapters.attach import adapter_layers, base_only
from dorakit.cli.app import app
from dorakit.errors import ModelError, ResourceError, UsageError
from dorakit.export.receipt import logits_bytes, sample_rows
from dorakit.model.load import load_base
from dorakit.model.nf4 import NF4Linear
from dorakit.target import open_target


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def by_bitsandbytes(directory):
    """As a user of transformers loads it, computing in float32 and without bitsandbytes' CPU repacking."""
    model, report = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
    assert layers
    for layer in layers.values():
        # On a CPU with avx512_bf16 the first eval forward repacks the weight; see dorakit/model/nf4.py.
        layer.support_avx512bf16_for_cpu = False
        layer.compute_dtype = torch.float32
        layer.compute_type_is_set = True
    for parameter in model.parameters():  # those that are not quantized keep the dtype of the file
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    return model, layers


def save_tiny(architecture, directory):
    """A tiny model as a directory, its biases not zero."""
    base = load_base(f"tiny:{architecture}", dtype="float32", attention="auto")
    with torch.no_grad():
        for name, parameter in base.model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.3)
    base.model.save_pretrained(directory)
    base.tokenizer.save_pretrained(directory)
    return str(directory)


def receipt(directory):
    return json.loads((directory / "quantize.json").read_text())


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral"])
def test_transformers_own_quantizer_loads_it(tmp_path, architecture):
    """Planted bugs caught: nibbles swapped; the offset of the double quantization lost; biases left out."""
    source = save_tiny(architecture, tmp_path / "model")
    directory = quantize(source, output=tmp_path / "nf4", quiet=True)
    theirs, layers = by_bitsandbytes(directory)
    ours = load_base(str(directory), dtype="float32", attention="auto").model
    own = {name: module for name, module in ours.named_modules() if isinstance(module, NF4Linear)}
    assert own.keys() == layers.keys() and len(own) == 14
    for name, layer in layers.items():
        dense = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert dense.dtype == torch.bfloat16 and layer.weight.quant_state.nested
        assert torch.equal(own[name].dequantize(torch.bfloat16), dense)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-3, atol=1e-3)
    original = load_base(source, dtype="float32", attention="auto").model
    assert 0.003 < (logits(ours) - logits(original)).abs().max() < 0.5


def test_config_and_what_stays_in_16_bit(run_of):
    run = run_of("lora")
    directory = quantize(run, quiet=True)
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    assert {key: config[key] for key in config if key.startswith(("quant_", "load_", "bnb_"))} == {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
    }
    assert config["llm_int8_skip_modules"] == ["lm_head"]
    tensors = load_file(directory / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert tensors[name].dtype == torch.bfloat16
    assert tensors["model.layers.0.mlp.up_proj.weight"].dtype == torch.uint8


@pytest.mark.parametrize("mode", ["lora", "dora", "full"])
def test_a_run_with_and_without_its_merged_directory_gives_the_same_bytes(run_of, mode):
    """Planted bugs caught: the adapter left out of the quantized weights; a stale merged directory used, or of another dtype."""
    run = run_of(mode)
    direct = load_file(quantize(run, quiet=True) / "model.safetensors")
    if mode == "full":
        assert receipt(run.quantized)["source"] == "model"
        source = open_target(str(run.path)).model.state_dict()
    else:
        assert receipt(run.quantized)["source"] == "adapter, merged in memory"
        source = {f"{n}.weight": layer.merged_weight() for n, layer in adapter_layers(open_target(str(run.path)).model)}
        merge(run, quiet=True)
        again = load_file(quantize(run, quiet=True) / "model.safetensors")
        content = receipt(run.quantized)
        assert content["source"] == "merged directory"
        assert content["adapter_sha256"] == json.loads((run.merged / "merge.json").read_text())["adapter_sha256"]
        assert direct.keys() == again.keys() and all(torch.equal(direct[name], again[name]) for name in direct)
        merged = (run.merged / "merge.json").read_text()
        for known, other in ((content["adapter_sha256"], "0" * 64), ('"dtype": "float32"', '"dtype": "float16"')):
            assert known in merged
            (run.merged / "merge.json").write_text(merged.replace(known, other))
            quantize(run, quiet=True)
            assert receipt(run.quantized)["source"] == "adapter, merged in memory"
    layers = dict(load_base(str(run.quantized), dtype="float32").model.named_modules())
    errors = receipt(run.quantized)["relative_error"]["layers"]
    assert len(errors) == 14
    for name, error in errors.items():
        dense = source[f"{name}.weight"].bfloat16().float()
        found = (layers[name].dequantize(torch.float32) - dense).norm() / dense.norm()
        assert error == pytest.approx(float(found), rel=1e-4)
        assert 0.03 < error < 0.15


def test_figures_of_the_receipt(run_of):
    run = run_of("dora")
    content = receipt(quantize(run, quiet=True))
    tensors = load_file(run.quantized / "model.safetensors")
    assert content["bytes_after"] == sum(tensor.nbytes for tensor in tensors.values())
    live = open_target(str(run.path), base_only=True).model
    assert content["bytes_before"] == 2 * sum(parameter.numel() for parameter in live.parameters())
    errors = content["relative_error"]
    assert errors["max"] == max(errors["layers"].values()) == errors["layers"][errors["worst"]]
    assert errors["mean"] == pytest.approx(sum(errors["layers"].values()) / len(errors["layers"]))
    assert content["perplexity"]["data"] == "test.jsonl" and content["perplexity"]["reason"] is None
    assert content["base"] == "tiny:llama" and content["unquantized_layers"] == ["lm_head"]


def kl(p, q):
    p, q = (x.double().log_softmax(-1) for x in (p, q))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("mode", ["lora", "qdora"])
def test_how_far_4_bits_move_the_answers(run_of, mode):
    """Planted bugs caught: the base's answers taken for the live model's; 4 bits compared with themselves."""
    run = run_of(mode)
    directory = quantize(run, quiet=True)
    live = open_target(str(run.path), onto="original")
    after = load_base(str(directory), dtype="float32").model.eval()
    samples, rows = sample_rows(run.recipe, live.tokenizer)
    before, base, quantized = [], [], []
    with torch.no_grad():
        for sample in samples:
            before.append(live.model(sample.ids[None]).logits[0])
            with base_only(live.model):
                base.append(live.model(sample.ids[None]).logits[0])
            quantized.append(after(sample.ids[None]).logits[0])
    found = receipt(directory)["compared"]
    assert (found["rows"], found["compared_on"]) == (len(samples), rows)
    moved, learned = kl(torch.cat(before), torch.cat(quantized)), kl(torch.cat(before), torch.cat(base))
    assert found["all"]["kl"] == pytest.approx(moved, rel=1e-3)
    assert found["all"]["learned_kl"] == pytest.approx(learned, rel=1e-3)
    assert found["all"]["lost"] == pytest.approx(moved / learned, rel=1e-3)


def test_what_was_learned_is_known_of_a_merged_directory(run_of):
    """Planted bug caught: a merged directory, which has no adapter to switch off, taken for one that learned nothing."""
    run = run_of("lora")
    merge(run, quiet=True)
    directory = quantize(run, quiet=True)
    assert receipt(directory)["source"] == "merged directory"
    learned = json.loads((run.merged / "merge.json").read_text())["receipt"]["all"]["learned_kl"]
    assert receipt(directory)["compared"]["all"]["learned_kl"] == learned > 0
    merge(run, receipt=False, quiet=True)
    assert receipt(quantize(run, quiet=True))["compared"]["all"]["lost"] is None


def test_a_head_that_was_trained_stays_in_16_bit(tmp_path):
    """Planted bug caught: the trained copy of lm_head taken for one more linear layer."""
    run = tiny_run(tmp_path, "lora", ("adapter.modules_to_save=[lm_head]",))
    directory = quantize(run, quiet=True)
    tensors = load_file(directory / "model.safetensors")
    live = open_target(str(run.path)).model
    assert torch.equal(tensors["lm_head.weight"], live.lm_head.copy.weight.bfloat16())
    theirs, _ = by_bitsandbytes(directory)
    ours = load_base(str(directory), dtype="float32").model
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-3, atol=1e-3)


def test_skipped_modules_of_the_run_are_skipped_again(tmp_path):
    run = tiny_run(tmp_path, "qlora", ("quantization.skip_modules=[lm_head, down_proj]",))
    directory = quantize(run, quiet=True)
    kept = receipt(directory)["unquantized_layers"]
    assert kept == ["lm_head", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    theirs, layers = by_bitsandbytes(directory)
    assert not any("down_proj" in name for name in layers)
    ours = load_base(str(directory), dtype="float32").model
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-3, atol=1e-3)


def test_without_a_recipe_perplexity_is_null_with_the_reason(tmp_path):
    source = save_tiny("llama", tmp_path / "model")
    content = receipt(quantize(source, output=tmp_path / "nf4", quiet=True))["perplexity"]
    assert (content["before"], content["after"]) == (None, None)
    assert "--recipe" in content["reason"]
    recipe = tiny_recipe(tmp_path / "recipe", "lora")
    content = receipt(quantize(source, output=tmp_path / "nf4", recipe=recipe, quiet=True))["perplexity"]
    assert content["before"] == pytest.approx(content["after"], rel=0.05)


def test_what_cannot_be_quantized(run_of, tmp_path):
    run = run_of("lora")
    with pytest.raises(UsageError, match="--output DIR"):
        quantize("tiny:llama", quiet=True)
    with pytest.raises(UsageError, match="only nf4"):
        quantize(run, format="int3", quiet=True)
    quantize(run, quiet=True)
    with pytest.raises(ModelError, match="NF4 already"):
        quantize(run.quantized, output=tmp_path / "again", quiet=True)
    assert not (tmp_path / "again").exists()
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "keep").write_text("x")
    with pytest.raises(UsageError, match="not made by this command"):
        quantize(run, output=tmp_path / "again", quiet=True)
    merge(run, quiet=True)
    with pytest.raises(UsageError, match="what the result is made from"):
        quantize(run.merged, output=run.merged, quiet=True)


def test_space_for_what_is_written(monkeypatch, tmp_path):
    """Planted bug caught: two bytes for every weight, four times what NF4 takes."""
    source = save_tiny("llama", tmp_path / "model")
    dense = 2 * sum(tensor.numel() for tensor in load_file(tmp_path / "model" / "model.safetensors").values())
    live = load_base(str(source))
    answers = logits_bytes(live.model, sample_rows(None, live.tokenizer)[0])
    usage = shutil.disk_usage(tmp_path)
    for share, enough in ((0.7, True), (0.4, False)):

        def left(_, *, share=share):
            written = sum(file.stat().st_size for file in tmp_path.glob(".tmp-*/in/scratch-*/*"))
            return usage._replace(free=int(share * dense) + answers + 1024 - written)

        with monkeypatch.context() as patch, contextlib.nullcontext() if enough else pytest.raises(ResourceError):
            patch.setattr(shutil, "disk_usage", left)
            quantize(source, output=tmp_path / f"nf4-{share}", quiet=True)


def test_a_base_that_is_nf4_already(tmp_path):
    """Planted bug caught: settings of the recipe that the bytes on disk contradict, passed over in silence."""
    stored = str(quantize(save_tiny("llama", tmp_path / "model"), output=tmp_path / "nf4", quiet=True))
    with pytest.raises(ModelError, match=r"block 64, double-quantized; the recipe says block 128.*\n.*block_size: 64"):
        tiny_run(tmp_path / "block", "qlora", ("quantization.block_size=128",), base=stored)
    with pytest.raises(ModelError, match=r"magnitude\.init: original needs the weights before"):
        tiny_run(tmp_path / "norms", "qdora", ("adapter.magnitude.init=original",), base=stored)
    for mode in ("lora", "qlora"):
        run = tiny_run(tmp_path / mode, mode, base=stored)
        assert f"{stored} is stored as NF4: block 64, double-quantized" in run.read("run.json")["notes"]
        with pytest.raises(ModelError, match="its original weights are not there"):
            merge(run, onto="original", quiet=True)
        assert not run.merged.exists()


@pytest.mark.parametrize("mode", ["qlora", "qdora"])
def test_an_update_on_an_nf4_base_survives(run_of, mode):
    """An update too small to leave the grid of its NF4 base must not round away.

    Planted bug that dies here: quantizing what `merge` writes, whose every weight rounds back to the base's code.
    """
    run = run_of(mode)
    base = {n: m for n, m in open_target(str(run.path)).model.named_modules() if isinstance(m, NF4Linear)}
    moved = shutil.copytree(merge(run, quiet=True), run.path.parent / "moved")
    on_the_grid = load_file(quantize(moved, output=run.path.parent / "twice", quiet=True) / "model.safetensors")
    written = load_file(quantize(run, quiet=True) / "model.safetensors")
    assert receipt(run.quantized)["source"] == "adapter, merged in memory onto the original weights"
    lost = kept = 0
    for name, layer in base.items():
        key = f"{name.removesuffix('.base')}.weight"
        codes = layer.weight.reshape(-1)
        lost += int((on_the_grid[key].reshape(-1) != codes).sum())
        kept += int((written[key].reshape(-1) != codes).sum())
    assert lost < kept
    # The run's own merged directory is recognised.
    again = load_file(quantize(run.merged, quiet=True) / "model.safetensors")
    assert all(torch.equal(again[name], written[name]) for name in written)


def test_row_norms_kept_are_the_learnt_magnitude(tmp_path):
    """Planted bugs caught: the factor upside down; rows scaled as if absmax lay column by column; bytes of the codes moved."""
    run = tiny_run(tmp_path / "run", "qdora", ("quantization.double_quant=false",))
    plain = quantize(run, output=tmp_path / "plain", quiet=True)
    kept = quantize(run, output=tmp_path / "kept", keep_row_norms=True, quiet=True)
    magnitude = {
        name: layer.lora_magnitude_vector.detach()
        for name, layer in adapter_layers(open_target(str(run.path)).model)
        if "down_proj" not in name
    }
    distance = {}
    for directory in (plain, kept):
        layers = dict(load_base(str(directory), dtype="float32").model.named_modules())
        distance[directory] = max(
            float(((layers[name].row_norm() - m) / m).abs().max()) for name, m in magnitude.items()
        )
    # What is left is the rounding to bfloat16.
    assert distance[kept] < 0.004 < 0.01 < distance[plain]
    before, after = (load_file(directory / "model.safetensors") for directory in (plain, kept))
    codes = [name for name in before if name.endswith("_proj.weight")]
    assert len(codes) == 14 and all(torch.equal(before[name], after[name]) for name in codes)
    assert receipt(plain)["row_norm_error"]["kept"] is False and receipt(kept)["row_norm_error"]["kept"] is True
    assert receipt(kept)["row_norm_error"]["mean"] < receipt(plain)["row_norm_error"]["mean"] / 3


def test_a_layer_whose_rows_are_no_whole_blocks_keeps_no_norms(run_of, tmp_path, capsys):
    """Planted bug caught: blocks that lie over two rows scaled by one of them, in silence."""
    run = tiny_run(tmp_path, "qlora", ("quantization.block_size=128",))
    directory = quantize(run, keep_row_norms=True)
    names = receipt(directory)["row_norm_error"]["not_kept"]
    assert names and "row norms not kept" in capsys.readouterr().err
    layers = dict(load_base(str(directory), dtype="float32").model.named_modules())
    assert all(layers[name].in_features % 128 for name in names)


def test_what_is_printed(run_of):
    """Commands that can be pasted. Planted bug caught: RUN printed in place of the run."""
    run = run_of("lora")
    printed = CliRunner().invoke(app, ["quantize", str(run.path)], catch_exceptions=False).output
    found = receipt(run.quantized)["compared"]["supervised"]
    assert (
        f"KL(before || after) {found['kl']:.2e} nats a token, KL(before || base) {found['learned_kl']:.2e}" in printed
    )
    assert f"dorakit export {run.path} --to gguf --type q8_0; 16 hardly: dorakit merge {run.path}" in printed
    assert CliRunner().invoke(app, ["merge", str(run.path)], catch_exceptions=False).exit_code == 0
