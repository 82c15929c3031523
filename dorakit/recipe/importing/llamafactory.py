"""LLaMA-Factory 0.9; see toolkits.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dorakit.recipe.importing.catalogue import Catalogue
from dorakit.recipe.importing.conversions import (
    TEMPLATE,
    carry_adapter,
    hold_out,
    set_batch,
    set_length,
    set_mode,
    set_targets,
    set_validation,
)
from dorakit.recipe.importing.ledger import Ledger
from dorakit.recipe.importing.trainer import carry_trainer

_BITSANDBYTES = ("bnb", "bitsandbytes", "BNB")


def llamafactory(ledger: Ledger, directory: Path) -> None:
    """Carry what has another meaning in LLaMA-Factory."""
    ledger.carry("model.base", "model_name_or_path")
    ledger.carry("model.revision", "model_revision")
    stage, kind = ledger.take("stage") or "sft", ledger.take("finetuning_type") or "lora"
    bits = ledger.take("quantization_bit")
    if bits not in (None, 4, "none"):
        ledger.leave("quantization_bit", bits, "a quantized base has 4 bits here; trained on the base as it is")
    ledger.drop_if("quantization_method", *_BITSANDBYTES)
    ledger.carry("quantization.format", "quantization_type")
    set_mode(
        ledger,
        *("finetuning_type", "quantization_bit", "use_dora"),
        adapter=kind != "full",
        dora=ledger.flag("use_dora"),
        four_bit=bits == 4,
    )
    carry_adapter(ledger, rank=8, alpha=_twice(ledger.peek("lora_rank")), dropout=0.0)
    if targets := ledger.take("lora_target"):
        set_targets(ledger, targets, "lora_target")
    _set_tokens(ledger, kind)
    _set_rows(ledger, directory, stage)
    set_length(ledger, "cutoff_len", default=2048, overlength="truncate")
    name, packed = ledger.pick("packing", "neat_packing")
    if packed is None and stage == "pt":
        ledger.set_default("data.packing", True, " in stage pt")
    elif packed is not None:
        ledger.set("data.packing", packed, name)
    set_batch(ledger, "per_device_train_batch_size", "gradient_accumulation_steps", defaults=(8, 1))
    carry_trainer(ledger, learning_rate=5e-5, epochs=3.0, schedule="linear")


def _set_tokens(ledger: Ledger, kind: str) -> None:
    """Added tokens, whose embeddings LLaMA-Factory trains where nothing is said."""
    tokens = [token for name in ("new_special_tokens", "add_special_tokens") for token in ledger.texts(name)]
    if tokens:
        ledger.set("model.added_tokens", tokens, ledger.said("new_special_tokens", "add_special_tokens"))
    modules = ledger.texts("additional_target")
    if modules:
        ledger.set("adapter.modules_to_save", modules, "additional_target")
    elif tokens and kind == "lora":
        ledger.set_default("adapter.modules_to_save", ["embed_tokens", "lm_head"], " with new tokens")


def _set_rows(ledger: Ledger, directory: Path, stage: str) -> None:
    limit, folder = ledger.number("max_samples"), str(ledger.take("dataset_dir") or "data")
    catalogue = Catalogue(folder, directory)
    sources = [catalogue.source(ledger, "dataset", name, limit) for name in ledger.texts("dataset")]
    if stage == "pt":
        sources = [_as_text(source) for source in sources]
        ledger.leave("stage", stage, "rows are joined and cut into blocks there; here each row is cut at max_seq_len")
    ledger.set("data.train", sources, f"{ledger.said('dataset', 'dataset_dir', 'max_samples')}, dataset_info.json")
    for name in ledger.texts("eval_dataset"):
        hold_out(ledger, catalogue.source(ledger, "eval_dataset", name, limit), "eval_dataset", split="train")
    set_validation(ledger, "val_size")
    if template := ledger.take("template"):
        ledger.leave("template", template, TEMPLATE)
    on_prompt, last_only = ledger.flag("train_on_prompt"), ledger.flag("mask_history")
    train_on = "all" if on_prompt or stage == "pt" else "completion"
    if last_only and not any(
        source["format"] == "chat" or "history" in source.get("columns", {}) for source in sources
    ):
        last_only = False  # rows of one turn
    ledger.set(
        "data.train_on", "last" if last_only else train_on, ledger.said("train_on_prompt", "mask_history", "stage")
    )


def _as_text(source: dict[str, Any]) -> dict[str, Any]:
    """A source of stage pt: the column `prompt` holds the text."""
    columns = source.get("columns", {})
    rest = {key: value for key, value in source.items() if key not in ("prompt", "columns")}
    column = columns.get("instruction", "text")
    return rest | {"format": "text"} | ({"columns": {"text": column}} if column != "text" else {})


def _twice(rank: Any) -> int:
    """LLaMA-Factory's alpha where none is given; a rank that is no number is listed where it is carried."""
    return 2 * (rank if isinstance(rank, int) and rank else 8)
