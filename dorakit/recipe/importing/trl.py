"""`trl sft --config`, and the scripts around it: alignment-handbook, open-r1, PEFT's examples/sft; see toolkits.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dorakit.recipe.importing.conversions import (
    carry_adapter,
    carry_place,
    hold_out,
    named,
    set_batch,
    set_length,
    set_mode,
    set_peft_targets,
    set_template,
    set_validation,
)
from dorakit.recipe.importing.keys import Keys, asks_for_nothing
from dorakit.recipe.importing.ledger import Ledger
from dorakit.recipe.importing.trainer import carry_trainer

_LISTS = ("dataset_mixture.datasets", "datasets")
_PLACES: tuple[str, ...] = ("dataset_mixer", "dataset_splits", "dataset_name", "dataset_config", "dataset_config_name")
_PLACES += ("dataset_train_split", "splits")
_FORMATS = (("messages", "chat"), ("conversations", "chat"), ("completion", "completion"), ("text", "text"))


def trl(ledger: Ledger, directory: Path) -> None:
    """Carry what has another meaning in TRL."""
    ledger.carry("model.base", "model_name_or_path")
    ledger.carry("model.revision", "model_revision")
    four_bit = ledger.flag("load_in_4bit", "use_4bit_quantization")
    adapter = ledger.flag("use_peft", "use_peft_lora")
    names = ("use_peft", "use_peft_lora", "load_in_4bit", "use_4bit_quantization", "use_dora")
    set_mode(ledger, *names, adapter=adapter, dora=ledger.flag("use_dora"), four_bit=four_bit)
    carry_adapter(ledger, rank=16, alpha=32, dropout=0.05)
    set_peft_targets(ledger, "lora_target_modules")
    if four_bit:
        ledger.carry("quantization.format", "bnb_4bit_quant_type")
        ledger.carry("quantization.double_quant", "use_bnb_nested_quant", "use_nested_quant", default=False)
    ledger.drop_if("bnb_4bit_quant_type", "nf4")
    sources = _set_rows(ledger)
    _set_trained(ledger, sources)
    ledger.drop_if("loss_type", "nll", "chunked_nll")
    set_template(ledger, "chat_template")
    path = ledger.take("chat_template_path")
    if path is not None and str(path).endswith((".jinja", ".jinja2")):
        ledger.set("data.chat_template", path, "chat_template_path")
    elif path is not None:
        ledger.leave("chat_template_path", path, "data.chat_template is Jinja, or a file of it, here")
    cut = ledger.take("truncation_mode")
    if cut == "keep_end":
        ledger.leave("truncation_mode", cut, "data.overlength: truncate keeps the beginning")
    elif cut is not None:
        ledger.settle("truncation_mode")
    set_length(ledger, "max_length", "max_seq_length", default=1024, overlength="truncate")
    ledger.carry("data.packing", "packing")
    set_batch(ledger, "per_device_train_batch_size", "gradient_accumulation_steps", defaults=(8, 1))
    carry_trainer(ledger, learning_rate=2e-5, epochs=3.0, schedule="linear")


def _set_rows(ledger: Ledger) -> list[dict[str, Any]]:
    """data.train and data.validation from a mixture, the mixer of older handbooks, or a name, whichever comes first."""
    form, is_sure = _form(ledger)
    rows = [row for key in _LISTS for row in ledger.entries(key)]
    entries = [entry for row in rows for entry in _entries(row, form)]
    sources = [source for source, _ in entries]
    is_sure |= bool(entries) and all(known for _, known in entries)
    mixer, splits, parts = ledger.section("dataset_mixer"), ledger.texts("dataset_splits"), ledger.texts("splits")
    sources += _mixed(ledger, mixer, splits or ["train"], form)
    hub, split = ledger.take("dataset_name"), ledger.take("dataset_train_split")
    name = ledger.take("dataset_config", "dataset_config_name")
    if sources:
        for key, value in (("dataset_name", hub), ("dataset_train_split", split), ("dataset_config", name)):
            if value is not None:
                ledger.leave(key, value, "a mixture stands beside it, and goes before")
    elif hub:
        split = split or next((part for part in parts if "train" in part), None)
        sources = [{"path": hub} | form | {key: value for key, value in (("name", name), ("split", split)) if value}]
    keys = [key for key in (*_LISTS, *_PLACES) if key in ledger.read]
    if sources and not is_sure:
        reason = f"TRL finds the format from the columns; {form['format']} is assumed: check it"
        ledger.leave("dataset_name" if hub else keys[0], [source["path"] for source in sources], reason)
    ledger.set("data.train", sources, named(keys, rows))
    for test in [split for split in splits if "test" in split]:
        for path in mixer:
            hold_out(ledger, {"path": path, "split": test} | form, "dataset_splits", split=test)
    _set_held_out(ledger, sources, hub, next((part for part in parts if "test" in part), "test"))
    return sources


def _form(ledger: Ledger) -> tuple[dict[str, Any], bool]:
    """Format and columns of rows, and whether the keys say so."""
    if text := ledger.take("dataset_text_field"):
        return {"format": "text"} | ({"columns": {"text": text}} if text != "text" else {}), True
    if ledger.peek("assistant_only_loss") is True:
        return {"format": "chat"}, True
    is_pairs = ledger.peek("completion_only_loss") is True
    return {"format": "completion" if is_pairs else "chat"}, is_pairs


def _entries(row: Keys, form: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bool]]:
    """The sources of an entry of a mixture, and whether the columns that it keeps say which format they are in."""
    source: dict[str, Any] = {"path": row.take("id", "path")} | form
    columns = row.take("columns")
    known = next((known for column, known in _FORMATS if isinstance(columns, list) and column in columns), None)
    if known:
        source = {"path": source["path"], "format": known}
    carry_place(row, source, name="config", split="split", weight="weight")
    carry_place(row, source, name="name", revision="revision")
    files = row.texts("data_files")
    row.close("has no counterpart in data.train")
    is_loader = source["path"] in ("json", "csv", "parquet", "text")
    if files and not is_loader:
        row.leave("data_files", files, "all files of a hub data set are read here, in its split")
    for path in files if files and is_loader else [source["path"]]:
        yield source | {"path": path}, known is not None


def _mixed(ledger: Ledger, mixer: Any, splits: list[str], form: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """alignment-handbook's dataset_mixer: a share of each data set, in the splits that are named for training."""
    configs = ledger.texts("dataset_configs") if mixer else []
    for index, (path, share) in enumerate(mixer.items()):
        for split in [split for split in splits if "train" in split]:
            source = {"path": path} | form | {"split": split, "weight": share}
            yield source | ({"name": configs[index]} if index < len(configs) else {})


def _set_held_out(ledger: Ledger, sources: list[dict[str, Any]], hub: Any, usual: str) -> None:
    """Validation rows: a share of the mixture, or the test split of the data set where TRL evaluates."""
    set_validation(ledger, "dataset_mixture.test_split_size", "test_split_size")
    strategy = ledger.peek("eval_strategy") or ledger.peek("evaluation_strategy")
    split = ledger.take("dataset_test_split")
    if hub and not asks_for_nothing(strategy) and strategy != "no":
        held_out = {**(sources[0] if sources else {}), "path": hub, "split": split or usual}
        hold_out(ledger, held_out, "dataset_test_split", split=usual)
    elif split is not None:
        ledger.leave("dataset_test_split", split, "not read there without eval_strategy")


def _set_trained(ledger: Ledger, sources: list[dict[str, Any]]) -> None:
    """data.train_on: TRL trains on whole conversations where nothing else is said, and on completions of prompts."""
    answers, completion = ledger.take("assistant_only_loss"), ledger.take("completion_only_loss")
    is_pairs = bool(sources) and all(source["format"] == "completion" for source in sources)
    only = True in (answers, completion) or (is_pairs and completion is not False)
    ledger.set(
        "data.train_on", "completion" if only else "all", ledger.said("assistant_only_loss", "completion_only_loss")
    )
