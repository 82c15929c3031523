"""`unsloth train --config`; see toolkits.py."""

from __future__ import annotations

from pathlib import Path

from dorakit.recipe.importing.conversions import carry_adapter, set_batch, set_length, set_mode, set_targets
from dorakit.recipe.importing.ledger import Ledger
from dorakit.recipe.importing.trainer import set_optimizer, set_schedule, set_steps

_TARGETS = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
_FORMATS = {"alpaca": "instruction", "raw": "text", "chatml": "chat", "sharegpt": "chat", "conversational": "chat"}
_PARTS = ("vision_layers", "language_layers", "attention_modules", "mlp_modules")


def unsloth(ledger: Ledger, directory: Path) -> None:
    """Carry what has another meaning in unsloth."""
    ledger.carry("model.base", "model")
    kind, four_bit = ledger.take("training.training_type"), ledger.take("training.load_in_4bit")
    set_mode(
        ledger,
        *("training.training_type", "training.load_in_4bit", "lora.use_dora"),
        adapter=kind != "full",
        dora=ledger.flag("lora.use_dora"),
        four_bit=kind != "full" and four_bit is not False,
    )
    ledger.carry("adapter.rank", "lora.lora_r", default=64)
    ledger.carry("adapter.alpha", "lora.lora_alpha", default=16)
    ledger.carry("adapter.dropout", "lora.lora_dropout", default=0.0)
    ledger.carry("adapter.rslora", "lora.use_rslora")
    carry_adapter(ledger, rank=None, alpha=None, dropout=None)
    for part in _PARTS:  # read for models that see only
        ledger.drop_if(f"lora.finetune_{part}", True)
    if targets := ledger.take("lora.target_modules"):
        set_targets(ledger, targets, "lora.target_modules")
    else:
        ledger.set_default("adapter.target_modules", _TARGETS)
    _set_rows(ledger)
    set_length(ledger, "training.max_seq_length", default=2048, overlength="truncate")
    ledger.carry("data.packing", "training.packing")
    set_batch(ledger, "training.batch_size", "training.gradient_accumulation_steps", defaults=(2, 4))
    set_steps(ledger, "training.max_steps", "training.num_epochs", epochs=3)
    ledger.carry("training.seed", "training.random_seed", default=3407)
    ledger.drop_if("training.save_steps", 0)
    ledger.carry("training.save_every", "training.save_steps")
    checkpointing = ledger.take("training.gradient_checkpointing")
    is_off = checkpointing in (False, "none", "no", "off")
    ledger.set("training.gradient_checkpointing", not is_off, ledger.said("training.gradient_checkpointing"))
    set_optimizer(ledger, "training.optim", default="adamw_8bit")
    ledger.carry("optimizer.learning_rate", "training.learning_rate", default=2e-4)
    set_schedule(ledger, "training.lr_scheduler_type", default="linear", section="training.", warmup=5)
    ledger.carry("optimizer.weight_decay", "training.weight_decay", default=0.01)


def _set_rows(ledger: Ledger) -> None:
    form = ledger.take("data.format_type")
    if not isinstance(form, str) or form not in _FORMATS:
        ledger.leave("data.format_type", form, "the format is found from the rows there; chat is assumed: check it")
    hub, files = ledger.take("data.dataset"), ledger.texts("data.local_dataset")
    paths = [*([hub] if hub else []), *files]
    sources = [{"path": path, "format": _FORMATS.get(str(form), "chat")} for path in paths]
    ledger.set("data.train", sources, ledger.said("data.dataset", "data.local_dataset", "data.format_type"))
    on_completions = ledger.flag("training.train_on_completions") and form != "raw"
    ledger.set("data.train_on", "completion" if on_completions else "all", ledger.said("training.train_on_completions"))
