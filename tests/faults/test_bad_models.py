"""Base models and adapters that strangers made, broken in every way that we know of, through the real command line.

Numbers are those of the list of bad inputs that dorakit holds itself to: 54 to 65 are model directories, 73 to 76 adapters.

    54  no config.json, or an adapter in its place     61  a dtype or quantization that is not read
    55  config.json invalid, architecture unknown      62  quantized by bitsandbytes: NF4 only
    56  pickled weights only                           63  NaN or infinity in the weights
    57  index and shards disagree, or lead outside     64  no tokenizer, no end-of-text token
    58  a git-lfs pointer                              65  a config that names code
    59  truncated, or a header that lies               73  names that another tool wrote
    60  tensors missing, or of another shape           74  an adapter that does nothing
                                                       75  rank and alpha against the tensors
                                                       76  another base than in training
"""
# ruff: noqa: E501  (a row of the table is a line)

import json
import os
import re
import shutil
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from made_models import (
    change_json,
    change_tensors,
    header_of,
    set_first,
    shard,
    with_header,
    write_gguf,
    write_index,
)
from tiny_runs import forget_digests, tiny_recipe
from transformers import modeling_gguf_pytorch_utils

from dorakit import Run
from dorakit.adapters.peft_config import read_config
from dorakit.adapters.peft_format import check_adapter
from dorakit.cli import app
from dorakit.errors import ModelError
from dorakit.model.source import resolve
from dorakit.model.tasks import CAUSAL_LM

GENERATE = "generate {model} --prompt x --max-new-tokens 1"
ADAPTER = "generate {adapter} --prompt x --max-new-tokens 1"
MERGE = "merge {adapter} --output {tmp}/merged --no-receipt"
TRAIN = "train {recipe} --quiet --set model.base={model}"


@dataclass(frozen=True)
class Case:
    """A way of being broken: entry of the list, what `make` does to the files, what is run, what is said, exit code.

    `late` marks what only the weights themselves show; everything else is refused before transformers loads any.
    """

    entry: int
    name: str
    make: Callable[["Files"], object]
    said: str
    argv: str = GENERATE
    code: int = 2
    late: bool = False


class Files:
    """Copies to break: a tiny model, an adapter of it, and the directory around them."""

    def __init__(self, tmp: Path, adapter: Path):
        self.tmp = tmp
        self.model = Path(shutil.copytree(resolve("tiny:llama").directory, tmp / "model"))
        self.adapter = forget_digests(shutil.copytree(adapter, tmp / "adapter"))
        self.config = self.model / "config.json"
        self.weights = self.model / "model.safetensors"
        self.tensors = self.adapter / "adapter_model.safetensors"
        self.settings = self.adapter / "adapter_config.json"

    def arguments(self, argv: str) -> list[str]:
        recipe = tiny_recipe(self.tmp / "recipe", "lora").origin.path if "{recipe}" in argv else ""
        places = {"model": self.model, "adapter": self.adapter, "tmp": self.tmp, "recipe": recipe}
        return [word.format(**places) for word in argv.split()]


def config(**values: object) -> Callable[[Files], object]:
    return lambda files: change_json(files.config, **values)


def settings(**values: object) -> Callable[[Files], object]:
    return lambda files: change_json(files.settings, **values)


def file(name: str, content: object) -> Callable[[Files], object]:
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda files: (files.model / name).write_text(text)


def index(change: Callable[[dict], object]) -> Callable[[Files], object]:
    """A model in two shards, whose weight_map `change` has altered."""

    def make(files: Files) -> None:
        weight_map = shard(files.model)
        write_index(files.model, change(weight_map) or weight_map)

    return make


def header(change: Callable[[dict], object]) -> Callable[[Files], object]:
    def make(files: Files) -> None:
        content = header_of(files.weights)
        with_header(files.weights, change(content) or content)

    return make


def entry(content: dict, key: str, value: object) -> None:
    """Set a key of one tensor of a header."""
    content["model.norm.weight"][key] = value


def first_to(name: str) -> Callable[[dict], object]:
    """A change of a weight_map: its first tensor is said to be in the file `name`."""
    return lambda weight_map: weight_map.update({min(weight_map): name})


def renamed(change: Callable[[str], str]) -> Callable[[Files], object]:
    def make(files: Files) -> None:
        change_tensors(files.tensors, lambda tensors: {change(name): tensor for name, tensor in tensors.items()})

    return make


def truncated(path: Callable[[Files], Path], size: Callable[[int], int]) -> Callable[[Files], object]:
    return lambda files: os.truncate(path(files), size(path(files).stat().st_size))


def linked_outside(files: Files) -> None:
    files.weights.rename(files.tmp / "elsewhere.safetensors")
    files.weights.symlink_to(files.tmp / "elsewhere.safetensors")


def linked_to_a_neighbour(files: Files) -> None:
    neighbour = files.model.with_name(files.model.name + "-2")
    neighbour.mkdir()
    files.weights.rename(neighbour / files.weights.name)
    files.weights.symlink_to(neighbour / files.weights.name)


def linked_to_nothing(files: Files) -> None:
    files.weights.unlink()
    files.weights.symlink_to(files.model / "absent")


def as_fifo(files: Files) -> None:
    files.weights.unlink()
    os.mkfifo(files.weights)


def as_directory(files: Files) -> None:
    files.weights.unlink()
    files.weights.mkdir()


def only_pickles(files: Files) -> None:
    files.weights.rename(files.model / "pytorch_model.bin")


def without(name: str) -> Callable[[Files], object]:
    return lambda files: (files.model / name).unlink()


def lost_shard(files: Files) -> None:
    shard(files.model)
    (files.model / "model-00002-of-00002.safetensors").unlink()


def other_download(files: Files) -> None:
    shard(files.model)
    shutil.copy(files.model / "model-00002-of-00002.safetensors", files.model / "model-00003-of-00003.safetensors")


def twice_stored(files: Files) -> None:
    shard(files.model)
    one, two = sorted(files.model.glob("model-*.safetensors"))
    shutil.copy(one, two)


def no_tokenizer(files: Files) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (files.model / name).unlink()


def no_end(files: Files) -> None:
    path = files.model / "tokenizer_config.json"
    stated = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in stated.items() if key != "eos_token"}))


def drop(*parts: str) -> Callable[[Files], object]:
    def change(tensors: dict) -> dict:
        return {name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)}

    return lambda files: change_tensors(files.weights, change)


def first_of(path: Callable[[Files], Path], value: float) -> Callable[[Files], object]:
    return lambda files: change_tensors(path(files), set_first(value))


def as_float8(files: Files) -> None:
    change_tensors(files.weights, lambda t: {name: v.to(torch.float8_e4m3fn) for name, v in t.items()})


def bytes_at(path: Callable[[Files], Path], content: bytes) -> Callable[[Files], object]:
    return lambda files: path(files).write_bytes(content)


def weights(files: Files) -> Path:
    return files.weights


def tensors(files: Files) -> Path:
    return files.tensors


def gguf_file(files: Files) -> Path:
    path = files.tmp / "model.gguf"
    return path if path.exists() else write_gguf(path)


def gguf_counts(files: Files) -> None:
    content = gguf_file(files).read_bytes()
    gguf_file(files).write_bytes(content[:8] + struct.pack("<QQ", 12, 1 << 60) + content[24:])


def gguf_layers(files: Files) -> None:
    content = bytearray(gguf_file(files).read_bytes())
    key = b"llama.block_count"
    struct.pack_into("<I", content, content.index(key) + len(key) + 4, 2**31 - 1)
    gguf_file(files).write_bytes(content)


def zero_b(files: Files) -> None:
    change_tensors(files.tensors, lambda t: {n: torch.zeros_like(v) if "lora_B" in n else v for n, v in t.items()})


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 5368709120\n"
CODE = r"names code, and code that a model brings or asks for is never run"

CASES = [
    Case(54, "no config", without("config.json"), r"model is not a .*config.json \(it holds .*model.safetensors", TRAIN),
    Case(54, "adapter as base", lambda f: (shutil.rmtree(f.model), f.adapter.rename(f.model)), r"is an adapter, not a base", TRAIN),
    Case(54, "both at once", lambda f: shutil.copy(f.settings, f.model), r"a base model and an adapter at once", TRAIN),
    Case(55, "not JSON", file("config.json", '{"model_type": "llama",\n  "vocab_size" 3}'), r"config.json:2:16: not valid JSON: Expecting ':' delimiter, at '3}'"),
    Case(55, "not UTF-8", lambda f: f.config.write_bytes(b'{"a": "\xff"}'), r"config.json: not UTF-8 text: byte 0xff at offset 7"),
    Case(55, "no object", file("config.json", "[1]"), r"config.json holds a list, expected an object"),
    Case(55, "lists in lists", file("config.json", '{"a": ' + "[" * 100_000), r"config.json: not usable JSON: maximum recursion"),
    Case(55, "unknown", config(model_type="lama"), r"config.json: model_type is 'lama', .*\n  did you mean llama"),
    Case(55, "none", config(model_type=None), r"config.json: model_type is None"),
    Case(55, "no language model", config(model_type="vit"), r"its architecture, vit in config.json, is no causal language model\n.*llama", late=True),
    Case(55, "a size as text", config(hidden_size="large"), r"config.json cannot be used: .*hidden_size"),
    Case(55, "sizes from nowhere", config(num_hidden_layers=10**9), r"num_hidden_layers is 1,000,000,000, and the weights have \d+ tensors"),
    Case(55, "a vocabulary from nowhere", config(vocab_size=10**12), r"vocab_size is 1,000,000,000,000, and the weights have 259 as"),
    Case(56, "pickles", only_pickles, r"has only pickled weights .*never read; expected \*.safetensors\n.*save_pretrained", TRAIN),
    Case(56, "adapter pickle", lambda f: f.tensors.rename(f.adapter / "adapter_model.bin"), r"pickled adapters are never read\); it holds .*adapter_model.bin", ADAPTER),
    Case(57, "shard missing", lost_shard, r"index.json names files that are missing \(1\): 'model-00002-of-00002"),
    Case(57, "shard of another download", other_download, r"does not name all shards beside it \(1\): model-00003-of-00003"),
    Case(57, "tensor in two", twice_stored, r"names shards that hold the same tensors \(8\): .* and 3 more"),
    Case(57, "tensor elsewhere", index(first_to("model-00002-of-00002.safetensors")), r"names tensors that are not where it says \(1\): 'lm_head"),
    Case(57, "tensor nowhere", index(lambda m: m.update(extra=min(m.values()))), r"names tensors that are not where it says \(1\): 'extra' \(not in model-00001"),
    Case(57, "shard above", index(first_to("../../x.safetensors")), r"names what is no \*.safetensors file beside it \(1\): '../../x.safetensors'"),
    Case(57, "shard absolute", index(first_to("/etc/passwd")), r"names what is no .* beside it \(1\): '/etc/passwd'"),
    Case(57, "shard a number", index(lambda m: dict.fromkeys(m, 3)), r"names what is no .* beside it \(1\): 3"),
    Case(57, "unread index leads out", lambda f: write_index(f.model, {"a": "../x.safetensors"}), r"names what is no .* beside it \(1\)"),
    Case(57, "no weight_map", index(lambda m: [1]), r"index.json: expected the objects metadata and weight_map"),
    Case(57, "no index", lambda f: (shard(f.model), (f.model / "model.safetensors.index.json").unlink()), r"has neither model.safetensors nor model.safetensors.index.json; it holds model-00001"),
    Case(57, "link to a directory whose name goes on", linked_to_a_neighbour, r"model.safetensors is a link to .*-2/model.safetensors, outside its directory"),
    Case(57, "link outside", linked_outside, r"model.safetensors is a link to .*elsewhere.safetensors, outside its directory"),
    Case(57, "link to nothing", linked_to_nothing, r"model.safetensors is a link to nothing: .*absent"),
    Case(57, "FIFO", as_fifo, r"model.safetensors is not a regular file"),
    Case(57, "directory", as_directory, r"model.safetensors is a directory"),
    Case(58, "pointer", bytes_at(weights, LFS), r"model.safetensors is a git-lfs pointer, not the weights\n  run `git lfs pull`", TRAIN),
    Case(58, "pointer to a config", lambda f: f.config.write_bytes(LFS), r"config.json is a git-lfs pointer"),
    Case(58, "pointer to an adapter", bytes_at(tensors, LFS), r"adapter_model.safetensors is a git-lfs pointer", ADAPTER),
    Case(58, "pointer to a GGUF", lambda f: gguf_file(f).write_bytes(LFS), r"model.gguf is a git-lfs pointer", "generate {tmp}/model.gguf -p x"),
    Case(59, "one byte short", truncated(weights, lambda n: n - 1), r"is truncated: it is ([\d,]+) bytes, its header says [\d,]+\n  download it again", TRAIN),
    Case(59, "half", truncated(weights, lambda n: n // 2), r"model.safetensors is truncated"),
    Case(59, "empty", truncated(weights, lambda n: 0), r"model.safetensors is 0 bytes"),
    Case(59, "five gigabytes of header", bytes_at(weights, struct.pack("<Q", 5368709112) + b"{" + b" " * 1015), r"it is 1,024 bytes, its header says 5,368,709,120 for itself"),
    Case(59, "2^63 of header", bytes_at(weights, struct.pack("<Q", 1 << 63) + b"{}"), r"is truncated: it is 10 bytes, its header says 9,223"),
    Case(59, "nine megabytes of header", bytes_at(weights, struct.pack("<Q", 9 << 20) + b"{" + b" " * ((9 << 20) - 1)), r"has a header of 9,437,184 bytes, more than the 8,388,608"),
    Case(59, "more than said", lambda f: f.weights.write_bytes(f.weights.read_bytes() + b"x"), r"there is more than it tells of"),
    Case(59, "a web page", bytes_at(weights, b"<!DOCTYPE html><html></html>" * 9), r"is not a safetensors file, but a web page: it begins with b'<!DOCTYPE"),
    Case(59, "a pickle", bytes_at(weights, b"PK\x03\x04" + b"\0" * 99), r"is not a safetensors file, but a zip"),
    Case(59, "a name twice", lambda f: with_header(f.weights, header_of(f.weights), pairs='"lm_head.weight": {}'), r"header: 'lm_head.weight' is there twice"),
    Case(59, "overlap", header(lambda h: h["model.norm.weight"].update(data_offsets=[0, 256])), r"header: .* and '.*' overlap"),
    Case(59, "dtype unknown", header(lambda h: entry(h, "dtype", "F4")), r"holds 'model.norm.weight' with dtype 'F4'; known are BOOL"),
    Case(59, "shape against bytes", header(lambda h: entry(h, "shape", [65])), r"F32 of shape \[65\], takes 260 bytes, and its data_offsets are 256 apart"),
    Case(59, "shape that overflows", header(lambda h: entry(h, "shape", [1 << 40, 1 << 40])), r"takes 4,835,703,278,458,516,698,824,704 bytes"),
    Case(59, "negative shape", header(lambda h: entry(h, "shape", [-8, -8])), r"'model.norm.weight' has shape \[-8, -8\]"),
    Case(59, "a size with a point", header(lambda h: entry(h, "shape", [64.0])), r"'model.norm.weight' has shape \[64.0\]"),
    Case(59, "shape of texts", header(lambda h: entry(h, "shape", ["64"])), r"has shape \['64'\]"),
    Case(59, "no JSON", lambda f: with_header(f.weights, "{" + "x" * 50), r"damaged header: Expecting property name"),
    Case(59, "adapter truncated", truncated(tensors, lambda n: n - 1), r"adapter_model.safetensors is truncated", MERGE),
    Case(59, "GGUF truncated", truncated(gguf_file, lambda n: n - 64), r"model.gguf is truncated: it is .* bytes, its header says", "generate {tmp}/model.gguf -p x"),
    Case(59, "GGUF of 2^60 keys", gguf_counts, r"claims 1,152,921,504,606,846,976 metadata keys in", "generate {tmp}/model.gguf -p x"),
    Case(59, "GGUF of a billion layers", gguf_layers, r"llama.block_count is 2,147,483,647, more than its 12 tensors bear out", "generate {tmp}/model.gguf -p x"),
    Case(60, "tensors missing", drop("mlp"), r"do not fit, 6 tensors:\n  model.layers.0.mlp.down_proj.weight is not there(\n  .*){4}\n  and 1 more", late=True),
    Case(60, "shapes", config(intermediate_size=96), r"down_proj.weight has shape \(64, 128\), expected \(64, 96\)(\n  .*){4}\n  and 1 more", late=True),
    Case(60, "shapes under NF4", config(intermediate_size=96), r"(\(64, 128\), .* makes it \(64, 96\)|\(128, 64\), .* makes it \(96, 64\))", TRAIN + " --set adapter.mode=qlora", late=True),
    Case(61, "GPTQ", config(quantization_config={"quant_method": "gptq", "bits": 4}), r"is already quantized \(gptq\); only bitsandbytes' NF4", TRAIN),
    Case(61, "float8", as_float8, r"\d+ tensors are F8_E4M3, the first is '.*'; 8-bit floats cannot be read", TRAIN),
    Case(61, "no method", config(quantization_config=["x"]), r"already quantized \(quantization_config: \['x'\]\)"),
    Case(62, "8-bit", config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}), r"already quantized \(bitsandbytes, 8 bit\)", TRAIN),
    Case(63, "NaN", first_of(weights, float("nan")), r"model.layers.0.mlp.down_proj.weight holds NaN or infinite values", late=True),
    Case(63, "infinity under NF4", first_of(weights, float("inf")), r"/model: model.layers.0.mlp.down_proj.weight holds NaN", TRAIN + " --set adapter.mode=qdora", late=True),
    Case(63, "NaN in an adapter", first_of(tensors, float("nan")), r"adapter_model.safetensors: .*lora_. ?.*holds NaN or infinite values \(1 of 28", ADAPTER, late=True),
    Case(64, "no tokenizer", no_tokenizer, r"no tokenizer: .*model has none of tokenizer.json", TRAIN),
    Case(64, "tokenizer damaged", file("tokenizer.json", "{"), r"no usable tokenizer: "),
    Case(64, "no end of text", no_end, r"the tokenizer has no end-of-text token"),
    Case(65, "config", config(auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}), rf"config.json: auto_map = .*modeling_evil.* {CODE}", TRAIN),
    Case(65, "deep inside", config(text_config={"a": [{"auto_map": {"x": "y.z"}}]}), rf"config.json: text_config.a\[0\].auto_map = .* {CODE}"),
    Case(65, "tokenizer", lambda f: change_json(f.model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}), rf"tokenizer_config.json: auto_map = .* {CODE}"),
    Case(65, "generation", lambda f: change_json(f.model / "generation_config.json", trust_remote_code=True), rf"generation_config.json: trust_remote_code = true {CODE}"),
    Case(65, "processor", file("processor_config.json", {"auto_map": {"AutoProcessor": "evil.Evil"}}), rf"processor_config.json: auto_map = .* {CODE}"),
    Case(65, "attention kernel", config(_attn_implementation_internal="evil/kernel"), rf"_attn_implementation_internal = .* {CODE}"),
    Case(65, "experts kernel", config(_experts_implementation_internal="evil/kernel"), rf"_experts_implementation_internal = .* {CODE}"),
    Case(65, "attention of a hub", config(attn_implementation="evil/kernel:fn"), rf"attn_implementation = \"evil/kernel:fn\" {CODE}"),
    Case(65, "attention per part", config(_attn_implementation={"text": "evil/kernel"}), rf"_attn_implementation = .* {CODE}"),
    Case(65, "adapter", settings(auto_map={"x": "evil.Evil"}), rf"adapter_config.json: auto_map = .* {CODE}", ADAPTER),
    Case(65, "adapter imports", settings(auto_mapping={"base_model_class": "X", "parent_library": "evil"}), rf"auto_mapping = .* {CODE}", ADAPTER),
    Case(65, "megatron", settings(megatron_config={"a": 1}, megatron_core="evil"), rf"megatron_\w+ = .* {CODE}", MERGE),
    Case(65, "megatron's module", settings(megatron_core="evil.core"), rf"megatron_core = .* {CODE}", MERGE),
    Case(65, "adapter's tokenizer", lambda f: (f.adapter / "tokenizer_config.json").write_text('{"auto_map": {"a": "b.c"}}'), rf"tokenizer_config.json: auto_map = .* {CODE}", ADAPTER),
    Case(65, "base by address", settings(base_model_name_or_path="https://evil.example/m"), r"base_model_name_or_path = 'https://evil.example/m' is an address, which is never fetched\n.*--base-model", ADAPTER),
    Case(73, "torch.compile", renamed(lambda n: n.replace("model.model.", "model._orig_mod.model.")), r"is not a name that PEFT writes: torch.compile left _orig_mod", ADAPTER),
    Case(73, "DDP", renamed(lambda n: "module." + n), r"'module.base_model.*: DistributedDataParallel or DeepSpeed", ADAPTER),
    Case(73, "FSDP", renamed(lambda n: n.replace("layers.0", "layers.0._fsdp_wrapped_module")), r"FSDP left", ADAPTER),
    Case(73, "state_dict", renamed(lambda n: n.replace(".weight", ".default.weight")), r"a state_dict of PEFT", ADAPTER),
    Case(73, "mlx-lm", renamed(lambda n: n.removeprefix("base_model.model.").replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b")), r"mlx-lm or torchtune", ADAPTER),
    Case(73, "no prefix", renamed(lambda n: n.removeprefix("base_model.model.")), r"it would begin 'base_model.model.'", ADAPTER),
    Case(74, "nothing trained", zero_b, r"every lora_B is zero, so this adapter changes nothing", MERGE, code=0, late=True),
    Case(75, "another rank", settings(r=8), r"does not fit r = 8 .*:\n  .*lora_A.weight has shape \(4, 128\), and the config says rank 8(\n  .*){4}\n  and 23 more", ADAPTER),
    Case(75, "a rank from nowhere", settings(r=2_000_000_000), r"the config says rank 2000000000", ADAPTER),
    Case(75, "rank as text", settings(r="4"), r"adapter_config.json: r is '4', expected a whole number above 0", ADAPTER),
    Case(75, "rank 0", settings(r=0), r"r is 0, expected a whole number above 0", ADAPTER),
    Case(75, "alpha NaN", settings(lora_alpha=float("nan")), r"lora_alpha is nan, expected a number", ADAPTER),
    Case(75, "dropout", settings(lora_dropout=1.5), r"lora_dropout is 1.5, expected a number from 0 to below 1", ADAPTER),
    Case(75, "use_dora", settings(use_dora="no"), r"use_dora is 'no', expected true or false", ADAPTER),
    Case(75, "pattern", settings(rank_pattern={"(": 4}), r"rank_pattern: '\(' is not a regular expression", ADAPTER),
    Case(75, "endless pattern", settings(alpha_pattern={"(.*a)*b": 4}), r"alpha_pattern: '.*' could take for ever to match", ADAPTER),
]  # fmt: skip
# 62 (NF4 is read), 76 and the names of modules are tests of their own below.


@pytest.fixture(scope="module")
def adapter(trained):
    return trained("lora").adapter


@pytest.fixture
def files(tmp_path, adapter):
    return Files(tmp_path, adapter)


def run_command(arguments, monkeypatch, capsys):
    """The command line in this process: exit code, stdout and stderr."""
    monkeypatch.setattr("sys.argv", ["dorakit", *map(str, arguments)])
    try:
        app.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    shown = capsys.readouterr()
    return code, shown.out, shown.err


class NeverAsked:
    """Stands where transformers would load weights."""

    @staticmethod
    def from_pretrained(*_, **__):
        raise AssertionError("weights were loaded before the files were checked")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.entry}-{case.name.replace(' ', '-')}")
def test_what_is_said(case, files, monkeypatch, capsys):
    case.make(files)
    if not case.late:
        monkeypatch.setattr("dorakit.model.load.CAUSAL_LM", replace(CAUSAL_LM, auto=NeverAsked))
    code, _, said = run_command(files.arguments(case.argv), monkeypatch, capsys)
    assert re.search(case.said, said), said
    assert "Traceback" not in said and "this is a bug" not in said
    assert code == case.code
    assert len(said) < 2000


def test_a_tokenizer_that_pads_with_nothing(files, monkeypatch, capsys):
    """Entry 64. Dies if what is used instead is not said, or not recorded, or keeps a run from being quantized."""
    change_json(files.model / "tokenizer_config.json", pad_token=None)
    run = files.tmp / "recipe" / "run-lora"
    code, _, said = run_command([*files.arguments(TRAIN), "--set", f"output_dir={run}"], monkeypatch, capsys)
    assert code == 0, said
    (note,) = [note for note in Run.open(run).read("run.json")["notes"] if "padding token" in note]
    assert note.startswith("the tokenizer has no padding token: <|im_end|> is used")
    code, _, said = run_command(["quantize", files.model, "--output", files.tmp / "small"], monkeypatch, capsys)
    assert code == 0 and note in said.replace("\n", ""), said


def test_the_table_is_complete():
    """Planted bug caught: an entry without a case. 76 is the test below."""
    assert {case.entry for case in CASES} | {76} == {*range(54, 66), *range(73, 77)}


def test_whole_files_are_read(files, monkeypatch, capsys):
    """Planted bug caught: a check that refuses what is right, in one file or several."""
    assert run_command(files.arguments(GENERATE), monkeypatch, capsys)[0] == 0
    assert run_command(files.arguments(ADAPTER), monkeypatch, capsys)[0] == 0
    shard(files.model)
    assert run_command(files.arguments(GENERATE), monkeypatch, capsys)[0] == 0


def test_what_peft_writes_where_nothing_is_meant(files, monkeypatch, capsys):
    """Planted bug caught: every adapter refused that PEFT saved without task_type, for naming the class of its base."""
    mapping = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama.modeling_llama"}
    change_json(files.settings, auto_mapping=mapping, megatron_core="megatron.core", megatron_config=None)
    change_json(files.model / "tokenizer_config.json", trust_remote_code=False)
    assert run_command(files.arguments(ADAPTER), monkeypatch, capsys)[0] == 0
    assert run_command(files.arguments(GENERATE), monkeypatch, capsys)[0] == 0


def test_a_snapshot_of_the_hub_links_to_its_own_blobs(files, monkeypatch, capsys):
    """Planted bugs caught: any link refused; or any link out of a directory called snapshots followed."""
    cache = files.tmp / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(files.model.iterdir())):
        path.rename(cache / "blobs" / f"{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    files.model = snapshot
    assert run_command(files.arguments(GENERATE), monkeypatch, capsys)[0] == 0
    (cache / "blobs").rename(cache / "others")
    for path in snapshot.iterdir():
        target = os.readlink(path)
        path.unlink()
        path.symlink_to(target.replace("blobs", "others"))
    code, _, said = run_command(files.arguments(GENERATE), monkeypatch, capsys)
    assert code == 2 and "outside its directory" in said


@pytest.mark.parametrize(
    "patterns",
    [
        {f".*[a-z._0-9]*.*x{i}": 4 for i in range(1000)},
        {f".*x{i}.*": 4 for i in range(1000)},
        {f"x{i}+": 4 for i in range(10_000)},
    ],
)
def test_patterns_do_not_take_for_ever(files, patterns):
    """All together too. Planted bug caught: a bound for each pattern alone."""
    change_json(files.settings, rank_pattern=patterns)
    with pytest.raises(ModelError, match="patterns have so many repetitions"):
        read_config(files.adapter)


def test_many_plain_patterns_are_quick(files):
    """Ten thousand module names, as PEFT writes them. Planted bug caught: each compiled anew for each module."""
    change_json(files.settings, rank_pattern={f"model.layers.{i}.mlp.up_proj": 4 for i in range(100, 10_099)})
    before = time.process_time()
    check_adapter(files.adapter)
    assert time.process_time() - before < 20


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("vocab", "{outside}"),
        ("merges_file", "../private.txt"),
        ("spm_file", "private.txt"),
        ("fast_tokenizer_files", ["tokenizer.json", "../private.txt"]),
        ("extra", {"vocab_file": "{outside}"}),
    ],
)
def test_a_config_names_no_file_elsewhere(files, monkeypatch, capsys, key, name):
    """Its lines would be tokens of what is written. Planted bug caught: only texts at the top are looked at."""
    outside = files.tmp / "private.txt"
    outside.write_text("password=hunter2\n")
    monkeypatch.chdir(files.tmp)
    value = json.loads(json.dumps(name).replace("{outside}", str(outside)))
    settings = files.model / "tokenizer_config.json"
    before = settings.read_text()
    change_json(settings, **{key: value})
    code, _, said = run_command(files.arguments(GENERATE), monkeypatch, capsys)
    assert code == 2 and f"tokenizer_config.json: {key}" in said and "names a file outside" in said, said
    settings.write_text(before)
    change_json(settings, name_or_path=str(outside))
    assert run_command(files.arguments(GENERATE), monkeypatch, capsys)[0] == 0


@pytest.mark.parametrize("deep", ["additional_chat_templates/leak.jinja", "additional_chat_templates"])
def test_a_link_below_the_top_leads_nowhere(files, monkeypatch, capsys, deep):
    """Planted bug caught: links looked for at the top alone."""
    (files.tmp / "private").mkdir()
    (files.tmp / "private" / "leak.jinja").write_text("password=hunter2\n")
    link = files.model / deep
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(files.tmp / "private" / ("leak.jinja" if deep.endswith("jinja") else ""))
    code, _, said = run_command(files.arguments(GENERATE), monkeypatch, capsys)
    assert code == 2 and f"{link} is a link to" in said and "outside its directory" in said, said


def test_nf4_of_bitsandbytes_is_read_and_looked_at(trained, files, monkeypatch, capsys):
    """Entries 62 and 63. Planted bugs caught: NF4 refused; a NaN in its statistics taken for a weight."""
    command = ["quantize", trained("lora").path, "--output", files.tmp / "small", "--quiet"]
    assert run_command(command, monkeypatch, capsys)[0] == 0
    files.model = files.tmp / "small"
    assert run_command(files.arguments(GENERATE), monkeypatch, capsys)[0] == 0

    def change(tensors):
        next(value for name, value in tensors.items() if name.endswith("nested_absmax"))[0] = float("nan")

    change_tensors(files.model / "model.safetensors", change)
    code, _, said = run_command(files.arguments(GENERATE), monkeypatch, capsys)
    assert code == 2 and re.search(r"model\.layers\..*weight holds NaN or infinite values", said), said


def test_another_base_than_in_training(run_of, monkeypatch, capsys):
    """Entry 76. Planted bug caught: the message names no digest, so that nobody can tell which of the two is which."""
    run = run_of("lora")
    base = run.read("run.json")["base"]
    now = base["files"]["model.safetensors"]
    run.update(base={**base, "files": {**base["files"], "model.safetensors": "0" * 64}})
    code, _, said = run_command(["generate", run.path, "--prompt", "x"], monkeypatch, capsys)
    assert code == 3
    assert f"model.safetensors (sha256 {'0' * 12} in training, sha256 {now[:12]} now)" in said


def test_no_module_that_a_config_names_is_imported(files, monkeypatch, capsys):
    """Planted bug caught: `trust_remote_code=True`, or a config that is read only after transformers has seen it."""
    sentinel = files.tmp / "touched"
    code = f"from pathlib import Path\nPath({str(sentinel)!r}).touch()\nclass Evil: pass\n"
    for place in (files.model, files.adapter, files.tmp):
        (place / "evil_module.py").write_text(code)
    monkeypatch.syspath_prepend(str(files.tmp))
    whole = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "evil_module.Evil")
    for path in (files.config, files.model / "tokenizer_config.json", files.settings):
        before = path.read_text()
        change_json(path, auto_map=whole, auto_mapping={"base_model_class": "Evil", "parent_library": "evil_module"})
        for argv in (GENERATE, ADAPTER, TRAIN):
            command = files.arguments(argv + (" --base-model {model}" if argv == ADAPTER else ""))
            assert run_command(command, monkeypatch, capsys)[0] == (
                0 if "adapter" in str(path) and argv != ADAPTER else 2
            )
        path.write_text(before)
    assert not sentinel.exists()


def test_a_gguf_file_brings_nothing_that_lies_beside_it(files, monkeypatch, capsys):
    """Planted bug caught: transformers reads config and tokenizer files, and their code, from the file's directory."""
    path = write_gguf(files.tmp / "model.gguf")
    (files.tmp / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}}')
    (files.tmp / "adapter_config.json").write_text("{")
    code, _, said = run_command(["generate", path, "--prompt", "a", "--max-new-tokens", 1], monkeypatch, capsys)
    assert code == 0, said
    assert not isinstance(modeling_gguf_pytorch_utils.tqdm, partial)  # the bar is transformers' own again
