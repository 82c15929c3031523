"""torchtune 0.6, whose values name the component that reads them; see toolkits.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dorakit.recipe.importing.conversions import (
    carry_adapter,
    hold_out,
    named,
    set_batch,
    set_length,
    set_mode,
    set_targets,
)
from dorakit.recipe.importing.keys import Keys
from dorakit.recipe.importing.ledger import Ledger

# Component of rows -> hub data set, format, columns, whether the prompt is trained on where nothing is said.
_ROWS: dict[str, tuple[str, str, dict[str, str], bool]] = {
    "alpaca_dataset": ("tatsu-lab/alpaca", "instruction", {}, True),
    "alpaca_cleaned_dataset": ("yahma/alpaca-cleaned", "instruction", {}, True),
    "chat_dataset": ("", "chat", {}, False),
    "slimorca_dataset": ("Open-Orca/SlimOrca-Dedup", "chat", {}, False),
    "instruct_dataset": ("", "completion", {"prompt": "input", "completion": "output"}, False),
    "grammar_dataset": ("liweili/c4_200m", "completion", {"prompt": "input", "completion": "output"}, False),
    "samsum_dataset": ("Samsung/samsum", "completion", {"prompt": "dialogue", "completion": "summary"}, False),
    "text_completion_dataset": ("", "text", {}, True),
    "wikitext_dataset": ("EleutherAI/wikitext_document_level", "text", {"text": "page"}, True),
    "cnn_dailymail_articles_dataset": ("ccdv/cnn_dailymail", "text", {"text": "article"}, True),
}
_OPTIMIZERS = {  # torch's AdamW and those of bitsandbytes decay by 0.01 where nothing is said
    "AdamW": ("adamw", 0.01),
    "AdamW8bit": ("adamw_8bit", 0.01),
    "PagedAdamW": ("paged_adamw", 0.01),
    "PagedAdamW8bit": ("paged_adamw_8bit", 0.01),
    "PagedAdamW32bit": ("paged_adamw_32bit", 0.01),
    "SGD": ("sgd", 0.0),
}
_LOSSES = ("CrossEntropyLoss", "CEWithChunkedOutputLoss", "LinearCrossEntropyLoss")


def torchtune(ledger: Ledger, directory: Path) -> None:
    """Carry what has another meaning in torchtune."""
    builder = str(ledger.take("model._component_") or "").rsplit(".", 1)[-1]
    is_adapter = "lora_" in builder or "dora_" in builder
    dora = ledger.flag("model.use_dora") or "dora_" in builder
    four_bit = ledger.flag("model.quantize_base") or builder.startswith(("qlora_", "qdora_"))
    names = ("model._component_", "model.use_dora", "model.quantize_base")
    set_mode(ledger, *names, adapter=is_adapter, dora=dora, four_bit=four_bit)
    base = ledger.take("checkpointer.checkpoint_dir")
    if base:
        ledger.set("model.base", str(base).rstrip("/").removesuffix("/original"), "checkpointer.checkpoint_dir")
        reason = "model.base must hold the model in the form of the hub: check it"
        ledger.leave("checkpointer.checkpoint_dir", base, reason)
    _set_targets(ledger)
    ledger.carry("adapter.rank", "model.lora_rank", default=8)
    ledger.carry("adapter.alpha", "model.lora_alpha", default=16)
    ledger.carry("adapter.dropout", "model.lora_dropout", default=0.0)
    carry_adapter(ledger, rank=None, alpha=None, dropout=None)
    _set_rows(ledger)
    set_length(ledger, "tokenizer.max_seq_len", default=None, overlength="truncate")
    ledger.drop_if("shuffle", True)
    set_batch(ledger, "batch_size", "gradient_accumulation_steps", defaults=(1, 1))
    ledger.carry("training.epochs", "epochs", default=1)
    steps = ledger.number("max_steps_per_epoch")
    if steps and ledger.recipe["training.epochs"] == 1:
        ledger.set("training.max_steps", int(steps), "max_steps_per_epoch, in one epoch")
    elif steps:
        ledger.leave("max_steps_per_epoch", steps, "training.max_steps counts the steps of all epochs here")
    clip = ledger.number("clip_grad_norm")
    ledger.set("training.max_grad_norm", clip or 0.0, "clip_grad_norm")
    ledger.carry("training.gradient_checkpointing", "enable_activation_checkpointing")
    _set_optimizer(ledger)
    ledger.carry("model.dtype", "dtype")
    loss = ledger.take("loss._component_")
    if loss is not None and str(loss).rsplit(".", 1)[-1] in _LOSSES:
        ledger.settle("loss._component_")
    elif loss is not None:
        ledger.leave("loss._component_", loss, "the loss is the cross entropy of the next token here")


def _set_targets(ledger: Ledger) -> None:
    targets = [{"output_proj": "o_proj"}.get(name, name) for name in ledger.texts("model.lora_attn_modules")]
    if ledger.flag("model.apply_lora_to_mlp"):
        targets += ["gate_proj", "up_proj", "down_proj"]
    if ledger.flag("model.apply_lora_to_output"):
        reason = "the output head takes no adapter here; adapter.modules_to_save trains it whole"
        ledger.leave("model.apply_lora_to_output", True, reason)
    if targets:
        set_targets(ledger, targets, ledger.said("model.lora_attn_modules", "model.apply_lora_to_mlp"))


def _set_optimizer(ledger: Ledger) -> None:
    asked = str(ledger.take("optimizer._component_") or "AdamW").rsplit(".", 1)[-1]
    if asked not in _OPTIMIZERS:
        ledger.leave("optimizer._component_", asked, "no such rule here; taken as adamw")
    name, decay = _OPTIMIZERS.get(asked, ("adamw", 0.0))
    ledger.set("optimizer.name", name, "optimizer._component_")
    ledger.carry("optimizer.learning_rate", "optimizer.lr", default=3e-4)
    ledger.carry("optimizer.weight_decay", "optimizer.weight_decay", default=decay)
    asked = str(ledger.take("lr_scheduler._component_") or "constant")
    word = next((word for word in ("cosine", "linear", "constant") if word in asked), None)
    if word is None:
        ledger.leave("lr_scheduler._component_", asked, "schedules here are cosine, linear and constant")
    ledger.set("optimizer.schedule", word or "cosine", "lr_scheduler._component_")
    ledger.carry("optimizer.warmup_steps", "lr_scheduler.num_warmup_steps")


def _set_rows(ledger: Ledger) -> None:
    rows = _rows(ledger, "dataset")
    read = [_source(row) for row in rows]
    ledger.set("data.train", [source for source, _, _ in read], named(["dataset"], rows))
    if any(packed for _, packed, _ in read):
        ledger.set("data.packing", True, "dataset.packed")
    trained = [on_input for _, _, on_input in read]
    ledger.set("data.train_on", "all" if any(trained) else "completion", "dataset.train_on_input")
    if len(set(trained)) > 1:
        ledger.leave("dataset.train_on_input", trained, "data.train_on is of all sources here")
    for row in _rows(ledger, "dataset_val"):
        hold_out(ledger, _source(row)[0], "dataset_val", split="train")


def _rows(ledger: Ledger, name: str) -> list[Keys]:
    """A section of rows, or a list of such sections."""
    section = ledger.section(name)
    return [ledger.inside(name, section)] if section else ledger.entries(name)


def _source(row: Keys) -> tuple[dict[str, Any], bool, bool]:
    """A source of rows, whether it is packed, and whether its prompts are trained on."""
    written = row.take("_component_")
    component = str(written or "").rsplit(".", 1)[-1]
    if component not in _ROWS:
        row.leave("_component_", written, "no such form of rows here: say it in data.train")
    hub, form, usual, on_input = _ROWS.get(component, ("", "chat", {}, False))
    path, files = row.take("source"), row.texts("data_files")
    source: dict[str, Any] = {"path": files[0] if files else path or hub, "format": form}
    if files[1:]:
        row.leave("data_files", files[1:], "one source for each file: add these to data.train")
    columns = dict(usual)
    named_columns = {key: row.take(f"column_map.{key}") for key in ("input", "output", "instruction")}
    theirs = {"input": "prompt", "output": "completion"} if form == "completion" else {}
    for key, value in named_columns.items():
        if value is not None:
            columns[theirs.get(key, key)] = value
    column = row.take("conversation_column" if form == "chat" else "column")
    if column is not None and column not in ("conversations", "messages", "text"):
        columns["messages" if form == "chat" else "text"] = column
    row.drop_if("conversation_style", "sharegpt", "openai")
    if columns := {key: value for key, value in columns.items() if key != value}:
        source["columns"] = columns
    for field in ("split", "name"):
        if value := row.take(field):
            source[field] = value
    packed, asked = row.take("packed"), row.take("train_on_input")
    if packed is False:
        row.settle("packed")
    row.close("has no counterpart in data.train")
    return source, packed is True, on_input if asked is None else asked is True


def without_references(content: Any, root: Any, depth: int = 0) -> Any:
    """Values with OmegaConf's `${section.key}` replaced by what they name, as torchtune reads them."""
    if isinstance(content, dict):
        return {key: without_references(value, root) for key, value in content.items()}
    if isinstance(content, list):
        return [without_references(value, root) for value in content]
    if not isinstance(content, str) or depth > 8:
        return content

    def named_by(match: re.Match[str]) -> str:
        value = root
        for part in match.group(1).split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return match.group() if value is None or isinstance(value, dict | list) else str(value)

    replaced = re.sub(r"\$\{([\w.]+)\}", named_by, content)
    return replaced if replaced == content else without_references(replaced, root, depth + 1)
