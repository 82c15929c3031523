"""Conversions that several toolkits need: method, targets, batch, rows, templates, held-out rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dorakit.recipe.importing.keys import Keys, asks_for_nothing
from dorakit.recipe.importing.ledger import Ledger
from dorakit.recipe.paths import ROW_FILES, is_template_text

ALL_LINEAR = ("all", "all-linear", "all_linear")
PEFT_DEFAULT = ["q_proj", "v_proj"]
_NAMES = re.compile(r"[\w.]+(\s*,\s*[\w.]+)*,?")
_NO_ADAPTER = ("lm_head", "embed_tokens", "output_layer")
TEMPLATE = "the tokenizer's own chat template is used; another goes into data.chat_template as Jinja"
_PAPER_START = (True, "true", "True", "default", "kaiming")


def set_mode(ledger: Ledger, *names: str, adapter: bool, dora: bool, four_bit: bool) -> None:
    """adapter.mode from the three switches that others have for it, in the keys `names`."""
    source = ledger.said(*names)
    if not adapter:
        if four_bit:
            ledger.leave(source, "4 bits", "full fine-tuning needs a base that is not quantized")
        if dora:
            ledger.leave(source, "DoRA", "no adapter is asked for")
        ledger.set("adapter.mode", "full", source)
        return
    ledger.set("adapter.mode", ("q" if four_bit else "") + ("dora" if dora else "lora"), source)


def set_targets(ledger: Ledger, value: Any, source: str) -> None:
    """adapter.target_modules from a list of names, a text of names with commas, a word for all, or a regular expression.

    PEFT reads a text as an expression over whole names; one that is nothing but names would match none.
    """
    if isinstance(value, str) and value not in ALL_LINEAR and _NAMES.fullmatch(value.strip()):
        value = [name.strip() for name in value.split(",") if name.strip()]
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0] if value[0] in ALL_LINEAR or not _NAMES.fullmatch(value[0]) else value
    if isinstance(value, str):
        ledger.set("adapter.target_modules", "all-linear" if value in ALL_LINEAR else value, source)
        return
    if isinstance(value, list):
        for name in (name for name in _NO_ADAPTER if name in value):
            ledger.leave(source, name, "takes no adapter here; name it in adapter.modules_to_save to train it whole")
        value = [name for name in value if name not in _NO_ADAPTER]
    ledger.set("adapter.target_modules", value, source)


def set_peft_targets(ledger: Ledger, *names: str) -> None:
    """Targets as PEFT takes them, with those that it chooses where none are named."""
    name, value = ledger.pick(*names)
    if not asks_for_nothing(value):
        set_targets(ledger, value, name)
    else:
        ledger.set_default("adapter.target_modules", PEFT_DEFAULT, ": PEFT's for llama, mistral, qwen and gemma")


def carry_adapter(ledger: Ledger, *, rank: int | None, alpha: float | None, dropout: float | None) -> None:
    """Rank, alpha, dropout and the rest of an adapter, with the toolkit's defaults."""
    ledger.carry("adapter.rank", "lora_r", "lora_rank", default=rank)
    ledger.carry("adapter.alpha", "lora_alpha", default=alpha)
    ledger.carry("adapter.dropout", "lora_dropout", default=dropout)
    ledger.carry("adapter.rslora", "use_rslora", "peft_use_rslora")
    if ratio := ledger.number("loraplus_lr_ratio"):
        ledger.set("optimizer.rule", "lora-plus", "loraplus_lr_ratio")
        ledger.set("optimizer.lora_plus.ratio", float(ratio), "loraplus_lr_ratio")
        if str(ledger.recipe.get("adapter.mode")).endswith("dora"):
            reason = "of B, as there; a magnitude keeps the recipe's rate here, where it has B's there"
            ledger.leave("loraplus_lr_ratio", ratio, reason)
    if (rate := ledger.take("loraplus_lr_embedding")) is not None:
        ledger.leave("loraplus_lr_embedding", rate, "modules trained whole keep the recipe's rate here")
    for name in ("init_lora_weights", "peft_init_lora_weights"):
        start = ledger.take(name)
        if start in _PAPER_START:
            ledger.settle(name)
        elif start is not None:
            ledger.leave(name, start, "A and B start as in the LoRA paper here")
    for name in ("lora_task_type", "task_type"):
        ledger.drop_if(name, "CAUSAL_LM")


def set_batch(
    ledger: Ledger, micro: str, accumulation: str, *, defaults: tuple[int, int], whole: str | None = None
) -> None:
    """Documents per optimizer step are the product that other toolkits leave to the reader. On one device.

    `whole` is a key that gives the product instead.
    """
    size = int(ledger.number(micro) or defaults[0])
    steps = ledger.number(accumulation)
    total = ledger.number(whole) if whole and steps is None else None
    if total:
        ledger.set("training.batch_size", int(total), f"{whole}, one device")
    else:
        count = int(steps or defaults[1])
        factors = [f"{name} {value}" for name, value in ((micro, size), (accumulation, count)) if name in ledger.read]
        ledger.set("training.batch_size", size * count, f"{' x '.join(factors) or 'defaults'}, one device")
    ledger.set("training.micro_batch_size", size, micro)
    if ledger.recipe.get("data.packing"):
        reason = "with packing these are packed rows of many documents; training.batch_size counts documents: raise it"
        ledger.leave(micro, size, reason)


def set_length(ledger: Ledger, *names: str, default: int | None, overlength: str | None) -> None:
    """data.max_seq_len and what becomes of longer rows; null, or no default, is no limit there."""
    null = any(ledger.is_null(name) for name in names) and all(ledger.peek(name) is None for name in names)
    if null or (default is None and all(ledger.peek(name) is None for name in names)):
        ledger.set_default("data.overlength", "error", ", no limit: a row that is too long is never cut here unseen")
        if null:
            reason = "no limit there; data.max_seq_len has one, and a longer row is an error: raise it"
            ledger.leave(names[0], None, reason)
        return
    ledger.carry("data.max_seq_len", *names, default=default)
    if overlength and "data.overlength" not in ledger.recipe:
        ledger.set_default("data.overlength", overlength)


def set_template(ledger: Ledger, name: str) -> None:
    """data.chat_template from Jinja; a template that only the toolkit knows by its name is listed."""
    template = ledger.take(name)
    if template in ("tokenizer_default", "default"):
        ledger.settle(name)
    elif template == "jinja" and ledger.peek("chat_template_jinja"):
        ledger.settle(name)
    elif isinstance(template, str) and is_template_text(template):
        ledger.set("data.chat_template", template, name)
    elif template is not None:
        ledger.leave(name, template, TEMPLATE)


def carry_place(row: Keys, source: dict[str, Any], **names: str) -> None:
    """Fields of a source of rows that are only named differently: field=their name."""
    for field, name in names.items():
        value = row.take(name)
        if not asks_for_nothing(value):
            source[field] = value


def hold_out(ledger: Ledger, source: dict[str, Any], key: str, *, split: str, inside: Keys | None = None) -> None:
    """data.validation from a source of rows, which is read in the form of the first training source.

    `split` is the one that the toolkit reads where none is named, which is `validation` here; `inside` is the mapping below
    `key` that the source is from.
    """
    if ledger.recipe.get("data.validation.path"):
        ledger.leave(key, source.get("path"), "there is one source of validation rows")
        return
    if not source.get("path"):
        ledger.leave(key, source, "names no rows")
        return
    written = key if inside is None else named([key], [inside])
    ledger.set("data.validation.path", source["path"], written)
    if source.get("split"):
        ledger.set("data.validation.split", source["split"], written)
    elif not str(source["path"]).lower().endswith(ROW_FILES):
        ledger.set_default("data.validation.split", split)
    first = (ledger.recipe.get("data.train") or [{}])[0]
    # Of another data set, the first one's name and revision say nothing.
    is_another = source["path"] != first.get("path")
    for field in ("format", "columns", "name", "revision", "prompt"):
        usual = None if is_another and field in ("name", "revision") else first.get(field)
        if source.get(field) != usual:
            what = f"the form of the first training source: {field} {usual or 'none'}"
            ledger.leave(f"{key}.{field}", source.get(field), f"validation rows are read in {what}")
    for field in ("limit", "offset"):
        if source.get(field):
            ledger.leave(f"{key}.{field}", source[field], "all rows of data.validation.path are read")


def set_validation(ledger: Ledger, *names: str) -> None:
    """Rows held out: a share below 1, else a number of rows."""
    value = ledger.number(*names)
    if value is None:
        return
    name = ledger.said(*names)
    if not value:
        ledger.settle(name)
    elif ledger.recipe.get("data.validation.path"):
        ledger.leave(name, value, f"validation rows come from {ledger.sources['data.validation.path']}")
    elif value < 1:
        ledger.set("data.validation.fraction", value, name)
    else:
        ledger.set("data.validation.rows", int(value), name)


def named(keys: Sequence[str], rows: Sequence[Keys]) -> str:
    """What data.train came from: the keys, and those inside each of the rows' mappings."""
    inside = list(dict.fromkeys(name for row in rows for name in row.read))
    return ", ".join(keys) + (f" ({', '.join(inside)})" if inside else "")
