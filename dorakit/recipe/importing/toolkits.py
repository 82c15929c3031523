"""One function per toolkit: what its keys mean in a recipe, and what it does where a key is absent.

Each takes the keys whose meaning differs from what their name says here; what is only named differently is carried by
`Ledger.finish`. Defaults are those of the toolkits' own sources, 2026.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dorakit.errors import Problem, RecipeError
from dorakit.recipe.importing.conversions import (
    carry_adapter,
    carry_trainer,
    set_batch,
    set_mode,
    set_targets,
    set_validation,
)
from dorakit.recipe.importing.ledger import Ledger
from dorakit.recipe.importing.sectioned import torchtune, unsloth

_TEMPLATE = "the tokenizer's own chat template is used; another goes into data.chat_template as Jinja"
_ALPACA = ("alpaca", "alpaca_chat", "instruct")
_CHAT = ("chat_template", "sharegpt", "chatml", "messages", "conversational", "openai")


def axolotl(ledger: Ledger, directory: Path) -> None:
    """Axolotl 0.18."""
    ledger.carry("model.base", "base_model")
    kind = ledger.take("adapter")
    four_bit = bool(ledger.take("load_in_4bit")) or kind == "qlora"
    dora = bool(ledger.take("peft_use_dora"))
    if kind not in (None, "lora", "qlora"):
        ledger.leave("adapter", kind, "the adapters here are lora and dora; taken as lora")
    set_mode(
        ledger, adapter=kind is not None, dora=dora, four_bit=four_bit, source="adapter, load_in_4bit, peft_use_dora"
    )
    carry_adapter(ledger, rank=None, alpha=None, dropout=None)
    everything, targets = ledger.take("lora_target_linear"), ledger.take("lora_target_modules")
    if everything or targets:
        set_targets(ledger, "all" if everything else targets, "lora_target_linear, lora_target_modules")
    ledger.set("data.train", [_axolotl_source(ledger, source) for source in ledger.mappings("datasets")], "datasets")
    if tests := ledger.mappings("test_datasets"):
        ledger.set("data.validation.path", tests[0].get("path"), "test_datasets")
        if tests[0].get("split"):
            ledger.set("data.validation.split", tests[0]["split"], "test_datasets")
        for further in tests[1:]:
            ledger.leave("test_datasets", further, "there is one source of validation rows")
    set_validation(ledger, "val_set_size")
    _leave_template(ledger, "chat_template")
    ledger.set("data.train_on", "all" if ledger.take("train_on_inputs") else "completion", "train_on_inputs")
    ledger.carry("data.max_seq_len", "sequence_len", default=512)
    ledger.carry("data.packing", "sample_packing")
    set_batch(ledger, "micro_batch_size", "gradient_accumulation_steps", defaults=(1, 1))
    carry_trainer(ledger, learning_rate=None, epochs=1.0, schedule="cosine", warmup_ratio=0.03)
    if ledger.take("flash_attention"):
        ledger.set("model.attention", "flash_attention_2", "flash_attention")


def _axolotl_source(ledger: Ledger, source: Mapping[str, Any]) -> dict[str, Any]:
    rest = dict(source)
    path, files = rest.pop("path", ""), rest.pop("data_files", None)
    if files:
        path = files[0] if isinstance(files, list) else files
        if isinstance(files, list) and len(files) > 1:
            ledger.leave("datasets.data_files", files[1:], "one source per file: add these to data.train")
    rest.pop("ds_type", None)
    kind = rest.pop("type", None)
    entry: dict[str, Any] = {"path": path, "format": "chat"}
    if isinstance(kind, str) and kind.split(".")[0] in _ALPACA:
        entry["format"] = "instruction"
    elif kind == "completion":
        entry["format"] = "text"
        if (column := rest.pop("field", "text")) != "text":
            entry["columns"] = {"text": column}
    elif kind not in (None, *_CHAT):
        ledger.leave("datasets.type", kind, "no such form of rows here: say format, columns and prompt in data.train")
    column = rest.pop("field_messages", None)
    if column and column not in ("messages", "conversations"):
        entry["columns"] = {"messages": column}
    for name in ("split", "name", "revision"):
        if rest.get(name):
            entry[name] = rest.pop(name)
    for name, value in rest.items():
        if value not in (None, False):
            ledger.leave(f"datasets.{name}", value, "has no counterpart in data.train")
    return entry


def llamafactory(ledger: Ledger, directory: Path) -> None:
    """LLaMA-Factory 0.9."""
    ledger.carry("model.base", "model_name_or_path")
    stage = ledger.take("stage")
    kind = ledger.take("finetuning_type") or "lora"
    bits = ledger.take("quantization_bit")
    if bits not in (None, 4):
        ledger.leave("quantization_bit", bits, "a quantized base has 4 bits here")
    dora = bool(ledger.take("use_dora"))
    if kind not in ("lora", "full"):
        ledger.leave("finetuning_type", kind, "the methods here are full, lora and dora; taken as lora")
    set_mode(
        ledger,
        adapter=kind != "full",
        dora=dora,
        four_bit=bits is not None,
        source="finetuning_type, quantization_bit, use_dora",
    )
    carry_adapter(ledger, rank=8, alpha=_twice(ledger.peek("lora_rank")), dropout=0.0)
    if targets := ledger.take("lora_target"):
        set_targets(ledger, targets, "lora_target")
    limit, folder = ledger.number("max_samples"), str(ledger.take("dataset_dir") or "data")
    names = ledger.texts("dataset")
    ledger.set(
        "data.train",
        _llamafactory_sources(ledger, names, limit, directory, folder),
        "dataset, dataset_dir, max_samples",
    )
    set_validation(ledger, "val_size")
    _leave_template(ledger, "template")
    train_on = "all" if ledger.take("train_on_prompt") or stage == "pt" else "completion"
    ledger.set("data.train_on", "last" if ledger.take("mask_history") else train_on, "train_on_prompt, mask_history")
    ledger.carry("data.max_seq_len", "cutoff_len", default=2048)
    ledger.carry("data.packing", "packing", "neat_packing")
    set_batch(ledger, "per_device_train_batch_size", "gradient_accumulation_steps", defaults=(8, 1))
    carry_trainer(ledger, learning_rate=5e-5, epochs=3.0, schedule="linear", warmup_ratio=0.0)


def _llamafactory_sources(
    ledger: Ledger, names: list[str], limit: float | None, directory: Path, folder: str
) -> list[dict[str, Any]]:
    """The names of `dataset`, looked up in dataset_info.json where that can be found."""
    catalogue: dict[str, Any] = {}
    for file in (Path(folder) / "dataset_info.json", directory / folder / "dataset_info.json"):
        if file.is_file():
            catalogue = _read_catalogue(file)
            break
    sources = []
    for name in names:
        facts = catalogue.get(name, {})
        if not facts:
            reason = f"not found in {folder}/dataset_info.json: give its file or hub id and its format in data.train"
            ledger.leave("dataset", name, reason)
        file_name = facts.get("file_name")
        path = f"{folder}/{file_name}" if file_name else facts.get("hf_hub_url", name)
        if facts.get("formatting") == "sharegpt":
            entry: dict[str, Any] = {"path": path, "format": "chat"}
        else:  # its alpaca rows go through the chat template
            entry = {"path": path, "format": "instruction", "prompt": "chat"}
        renamed = {"prompt": "instruction", "query": "input", "response": "output", "messages": "messages"}
        columns = {renamed[k]: v for k, v in facts.get("columns", {}).items() if k in renamed and renamed[k] != v}
        if columns and columns != {"messages": "conversations"}:
            entry["columns"] = columns
        sources.append(entry | ({"limit": limit} if limit else {}))
    return sources


def _twice(rank: Any) -> int:
    """LLaMA-Factory's alpha where none is given; a rank that is no number is listed where it is carried."""
    return 2 * (rank if isinstance(rank, int) and rank else 8)


def _read_catalogue(file: Path) -> dict[str, Any]:
    try:
        catalogue = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError([Problem(f"not JSON: {error}", str(file))]) from None
    if not isinstance(catalogue, dict) or not all(isinstance(facts, dict) for facts in catalogue.values()):
        raise RecipeError([Problem("expected names of data sets, each with its facts", str(file))])
    return catalogue


def trl(ledger: Ledger, directory: Path) -> None:
    """`trl sft --config`."""
    ledger.carry("model.base", "model_name_or_path")
    ledger.carry("model.revision", "model_revision")
    four_bit, dora = bool(ledger.take("load_in_4bit")), bool(ledger.take("use_dora"))
    adapter = bool(ledger.take("use_peft"))
    set_mode(ledger, adapter=adapter, dora=dora, four_bit=four_bit, source="use_peft, load_in_4bit, use_dora")
    carry_adapter(ledger, rank=16, alpha=32, dropout=0.05)
    if (targets := ledger.take("lora_target_modules")) is not None:
        set_targets(ledger, targets, "lora_target_modules")
    source: dict[str, Any] = {"path": ledger.take("dataset_name") or "", "format": "chat"}
    if field := ledger.take("dataset_text_field"):
        source |= {"format": "text"} | ({"columns": {"text": field}} if field != "text" else {})
    elif source["path"]:
        ledger.leave("dataset_name", source["path"], "TRL finds the format from the columns; chat is assumed: check it")
    for key, name in (("name", "dataset_config"), ("split", "dataset_train_split")):
        if value := ledger.take(name):
            source[key] = value
    ledger.set("data.train", [source], "dataset_name")
    narrow = [ledger.take("assistant_only_loss"), ledger.take("completion_only_loss")]
    ledger.set("data.train_on", "completion" if any(narrow) else "all", "assistant_only_loss, completion_only_loss")
    ledger.carry("data.max_seq_len", "max_length", "max_seq_length", default=1024)
    ledger.carry("data.packing", "packing")
    set_batch(ledger, "per_device_train_batch_size", "gradient_accumulation_steps", defaults=(8, 1))
    carry_trainer(ledger, learning_rate=2e-5, epochs=3.0, schedule="linear", warmup_ratio=0.0)


def _leave_template(ledger: Ledger, name: str) -> None:
    template = ledger.take(name)
    if template not in (None, "tokenizer_default", "default"):
        ledger.leave(name, template, _TEMPLATE)


TOOLKITS: dict[str, Callable[[Ledger, Path], None]] = {
    "axolotl": axolotl,
    "llamafactory": llamafactory,
    "torchtune": torchtune,
    "trl": trl,
    "unsloth": unsloth,
}


def toolkit_of(content: Mapping[str, Any]) -> str | None:
    """Whose configuration this is, by the keys that only one of them has."""
    keys = set(content)
    if any(isinstance(value, dict) and "_component_" in value for value in content.values()):
        return "torchtune"
    if "base_model" in keys:
        return "axolotl"
    if "model_name_or_path" in keys:
        return "llamafactory" if keys & {"stage", "finetuning_type", "cutoff_len", "template", "dataset"} else "trl"
    if isinstance(content.get("model"), str) and keys & {"data", "training", "lora"}:
        return "unsloth"
    return None
