"""Axolotl 0.18; see toolkits.py."""

from __future__ import annotations

import os
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
    set_targets,
    set_template,
    set_validation,
)
from dorakit.recipe.importing.keys import Keys
from dorakit.recipe.importing.ledger import Ledger
from dorakit.recipe.importing.trainer import carry_trainer

_LOADERS = ("json", "csv", "parquet", "text", "arrow")  # a path that says how data_files are read
_CHAT = ("chat_template", "sharegpt", "chatml", "messages", "conversational", "openai")
# type of rows -> format, and the columns that are called otherwise than here
_TYPES: dict[str, tuple[str, dict[str, str]]] = {
    **dict.fromkeys(_CHAT, ("chat", {})),
    "alpaca": ("instruction", {}),
    "alpaca_chat": ("instruction", {}),
    "instruct": ("instruction", {}),
    "alpaca_chat.load_qa": ("instruction", {"instruction": "question", "output": "answer"}),
    "gpteacher": ("instruction", {"output": "response"}),
    "completion": ("text", {}),
    "pretrain": ("text", {}),
}
_AS_HERE = {"sharegpt", "alpaca", "completion", "pretrain", *_CHAT}
_SAID_TWICE = ("messages", "conversations")  # what format chat looks for by itself
_ROLE_NAMES = {"role": ("role", "from"), "content": ("content", "value")}


def axolotl(ledger: Ledger, directory: Path) -> None:
    """Carry what has another meaning in axolotl."""
    ledger.carry("model.base", "base_model")
    ledger.carry("model.revision", "revision_of_model")
    kind, dtype = ledger.take("adapter"), ledger.take("peft.weight_dtype")
    ledger.drop_if("peft.backend", "bnb")
    four_bit = ledger.flag("load_in_4bit") or kind == "qlora" or dtype == "nf4"
    if dtype not in (None, "nf4"):
        ledger.leave("peft.weight_dtype", dtype, "a quantized base has 4 bits, NF4, here")
    set_mode(
        ledger,
        *("adapter", "load_in_4bit", "peft.weight_dtype", "peft_use_dora"),
        adapter=kind not in (None, "", False, "none"),
        dora=ledger.flag("peft_use_dora"),
        four_bit=four_bit,
    )
    carry_adapter(ledger, rank=None, alpha=None, dropout=None)
    everything, targets = ledger.flag("lora_target_linear"), ledger.take("lora_target_modules")
    if everything or targets:
        set_targets(
            ledger, "all" if everything else targets, "lora_target_linear" if everything else "lora_target_modules"
        )
    if everything and targets:
        ledger.leave("lora_target_modules", targets, "lora_target_linear stands beside it: every linear layer")
    if ledger.take("lora_model_dir"):
        ledger.leave(
            "lora_model_dir", "an adapter", "to begin with an adapter: `dorakit train RECIPE --from DIRECTORY`"
        )
    _set_rows(ledger)
    set_validation(ledger, "val_set_size")
    set_template(ledger, "chat_template")
    set_length(ledger, "sequence_len", default=512, overlength=None)
    ledger.carry("data.overlength", "excess_length_strategy")
    ledger.carry("data.packing", "sample_packing")
    set_batch(ledger, "micro_batch_size", "gradient_accumulation_steps", defaults=(1, 1), whole="batch_size")
    carry_trainer(ledger, learning_rate=None, epochs=1.0, schedule="cosine", warmup=0.03, null_is_no_clipping=False)


def _set_rows(ledger: Ledger) -> None:
    rows, pretraining = ledger.entries("datasets"), ledger.entries("pretraining_dataset")
    sources = [source for row in rows for source in _sources(row)]
    for row in pretraining:
        row.drop_if("type", "pretrain")
        source: dict[str, Any] = {"path": row.take("path"), "format": "text"}
        if (column := row.take("text_column")) not in (None, "text"):
            source["columns"] = {"text": column}
        carry_place(row, source, split="split", name="name", offset="skip")
        row.close("has no counterpart in data.train")
        sources.append(source)
    keys = [key for key, found in (("datasets", rows), ("pretraining_dataset", pretraining)) if found]
    ledger.set("data.train", sources, named(keys or ["datasets"], rows + pretraining))
    on_all = ledger.flag("train_on_inputs") or bool(pretraining)
    ledger.set(
        "data.train_on", "all" if on_all else "completion", ledger.said("train_on_inputs", "pretraining_dataset")
    )
    for row in ledger.entries("test_datasets"):
        for source in _sources(row):
            hold_out(ledger, source, "test_datasets", split="test", inside=row)


def _sources(row: Keys) -> list[dict[str, Any]]:
    """An entry of `datasets`; one that names several files is as many sources."""
    source: dict[str, Any] = {"path": row.take("path"), "format": "chat"}
    _set_form(row, source)
    carry_place(row, source, split="split", name="name", revision="revision")
    form, files = row.take("ds_type"), row.texts("data_files")
    row.close("has no counterpart in data.train")
    path = str(source["path"])
    if not files:
        return [source]
    if path in _LOADERS or form or path.startswith((".", "/", "~")):
        folder = path if path.startswith((".", "/", "~")) and not path.endswith(tuple(_LOADERS)) else ""
        return [source | {"path": os.path.join(folder, file)} for file in files]
    row.leave("data_files", files, "all files of a hub data set are read here, in its split")
    return [source]


def _set_form(row: Keys, source: dict[str, Any]) -> None:
    """Format, prompt and columns from the type of rows, and what only axolotl's code knows listed."""
    kind = row.take("type")
    custom = row.inside("type", {k.removeprefix("type."): row.take(k) for k in row.below("type")})
    columns: dict[str, Any] = {}
    if isinstance(kind, str):
        found = _TYPES.get(kind) or (("instruction", {}) if kind.startswith("alpaca") else None)
        if found is None:
            row.leave("type", kind, "no such form of rows here: say format, columns and prompt in data.train")
        else:
            source["format"], columns = found[0], dict(found[1])
            if kind not in _AS_HERE:
                row.leave("type", kind, "its prompt is axolotl's own; say it as `prompt` of the source: check it")
    elif custom.below(""):
        source["format"] = "instruction"
        carry_place(custom, columns, instruction="field_instruction", input="field_input", output="field_output")
        prompt = custom.take("format")
        if isinstance(prompt, str) and "{instruction}" in prompt and "{system}" not in prompt:
            source["prompt"] = prompt
        elif prompt is not None:
            custom.leave("format", prompt, "a prompt is a text that holds {instruction}")
        custom.close("the prompt is `prompt` of a source in data.train here")
    for key, name in (("field_messages", "messages"), ("field_system", "system"), ("field_tools", "tools")):
        column = row.take(key)
        if column is not None and column not in (name, *(_SAID_TWICE if name == "messages" else ())):
            columns[name] = column
    if source["format"] == "text" and (column := row.take("field")) not in (None, "text"):
        columns["text"] = column
    for name, known in _ROLE_NAMES.items():
        row.drop_if(f"message_property_mappings.{name}", *known)
        row.drop_if(f"message_field_{name}", *known)
    row.drop_if("roles_to_train", ["assistant"], ["gpt"], ["assistant", "gpt"], ["gpt", "assistant"])
    row.drop_if("train_on_eos", "turn")
    row.drop_if("chat_template", "tokenizer_default")
    if columns := {name: column for name, column in columns.items() if name != column}:
        source["columns"] = columns
