"""torchtune and unsloth, whose configurations have sections; see toolkits.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dorakit.recipe.importing.conversions import set_batch, set_mode, set_targets
from dorakit.recipe.importing.ledger import Ledger


def unsloth(ledger: Ledger, directory: Path) -> None:
    """`unsloth train --config`."""
    ledger.carry("model.base", "model")
    kind, four_bit = ledger.take("training.training_type"), ledger.take("training.load_in_4bit")
    set_mode(
        ledger,
        adapter=kind != "full",
        dora=bool(ledger.take("lora.use_dora")),
        four_bit=kind != "full" and four_bit is not False,
        source="training_type, load_in_4bit, use_dora",
    )
    ledger.carry("adapter.rank", "lora.lora_r", default=64)
    ledger.carry("adapter.alpha", "lora.lora_alpha", default=16)
    ledger.carry("adapter.dropout", "lora.lora_dropout", default=0.0)
    ledger.carry("adapter.rslora", "lora.use_rslora")
    if targets := ledger.take("lora.target_modules"):
        set_targets(ledger, targets, "lora.target_modules")
    else:
        ledger.set_default("adapter.target_modules", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split())
    form = ledger.take("data.format_type")
    formats = {"alpaca": "instruction", "raw": "text"}
    hub, files = ledger.take("data.dataset"), ledger.texts("data.local_dataset")
    paths = [*([hub] if hub else []), *files]
    if form in (None, "auto"):
        names = ("data.format_type", "data.dataset", "data.local_dataset")
        if (name := next(filter(ledger.has, names), None)) is not None:
            value = form if name == "data.format_type" else ", ".join(map(str, paths))
            ledger.leave(name, value, "the format is found from the rows there; chat is assumed: check it")
    ledger.set(
        "data.train",
        [{"path": path, "format": formats.get(str(form), "chat")} for path in paths],
        "data.dataset, data.local_dataset, data.format_type",
    )
    ledger.set(
        "data.train_on",
        "completion" if ledger.take("training.train_on_completions") else "all",
        "training.train_on_completions",
    )
    ledger.carry("data.max_seq_len", "training.max_seq_length", default=2048)
    ledger.carry("data.packing", "training.packing")
    set_batch(ledger, "training.batch_size", "training.gradient_accumulation_steps", defaults=(2, 4))
    ledger.carry("training.epochs", "training.num_epochs", default=3)
    ledger.drop_if("training.max_steps", 0, -1)
    ledger.carry("training.max_steps", "training.max_steps")
    ledger.carry("training.seed", "training.random_seed", default=3407)
    ledger.drop_if("training.save_steps", 0)
    ledger.carry("training.save_every", "training.save_steps")
    checkpointing = ledger.take("training.gradient_checkpointing")
    ledger.set("training.gradient_checkpointing", checkpointing not in (False, "none"), "gradient_checkpointing")
    ledger.set_default("optimizer.name", "adamw_8bit")
    ledger.carry("optimizer.learning_rate", "training.learning_rate", default=2e-4)
    ledger.set_default("optimizer.schedule", "linear")
    ledger.carry("optimizer.warmup_steps", "training.warmup_steps", default=5)
    ledger.carry("optimizer.weight_decay", "training.weight_decay", default=0.01)


def torchtune(ledger: Ledger, directory: Path) -> None:
    """Torchtune 0.6, whose values name the component that reads them."""
    component = str(ledger.take("model._component_") or "")
    builder = component.rsplit(".", 1)[-1]
    adapter = "lora" in builder or "dora" in builder
    dora = bool(ledger.take("model.use_dora")) or "dora" in builder
    four_bit = bool(ledger.take("model.quantize_base")) or builder.startswith("q")
    set_mode(ledger, adapter=adapter, dora=dora, four_bit=four_bit, source="model._component_, use_dora, quantize_base")
    base = ledger.take("checkpointer.checkpoint_dir")
    if base:
        ledger.set("model.base", str(base).rstrip("/").removesuffix("/original"), "checkpointer.checkpoint_dir")
        ledger.leave(
            "checkpointer.checkpoint_dir", base, "model.base must hold the model in the form of the hub: check it"
        )
    targets = [{"output_proj": "o_proj"}.get(n, n) for n in ledger.texts("model.lora_attn_modules")]
    if ledger.take("model.apply_lora_to_mlp"):
        targets += ["gate_proj", "up_proj", "down_proj"]
    if ledger.take("model.apply_lora_to_output"):
        ledger.leave("model.apply_lora_to_output", True, "the output head is not among the usual targets; add lm_head")
    if targets:
        set_targets(ledger, targets, "model.lora_attn_modules, apply_lora_to_mlp")
    ledger.carry("adapter.rank", "model.lora_rank", default=8)
    ledger.carry("adapter.alpha", "model.lora_alpha", default=16)
    ledger.carry("adapter.dropout", "model.lora_dropout", default=0.0)
    _torchtune_rows(ledger)
    ledger.carry("data.max_seq_len", "tokenizer.max_seq_len")
    ledger.carry("data.packing", "dataset.packed")
    set_batch(ledger, "batch_size", "gradient_accumulation_steps", defaults=(1, 1))
    ledger.carry("training.epochs", "epochs", default=1)
    ledger.carry("training.max_grad_norm", "clip_grad_norm")
    ledger.carry("training.gradient_checkpointing", "enable_activation_checkpointing")
    rule = str(ledger.take("optimizer._component_") or "AdamW").rsplit(".", 1)[-1]
    known = {"AdamW": "adamw", "AdamW8bit": "adamw_8bit", "PagedAdamW8bit": "paged_adamw_8bit", "SGD": "sgd"}
    known |= {"PagedAdamW": "paged_adamw"}
    if rule not in known:
        ledger.leave("optimizer._component_", rule, "no such rule here; taken as adamw")
    ledger.set("optimizer.name", known.get(rule, "adamw"), "optimizer._component_")
    ledger.carry("optimizer.learning_rate", "optimizer.lr", default=3e-4)
    ledger.carry("optimizer.weight_decay", "optimizer.weight_decay")
    schedule = str(ledger.take("lr_scheduler._component_") or "constant")
    word = next((word for word in ("cosine", "linear", "constant") if word in schedule), None)
    if word is None:
        ledger.leave("lr_scheduler._component_", schedule, "schedules here are cosine, linear and constant")
    ledger.set("optimizer.schedule", word or "cosine", "lr_scheduler._component_")
    ledger.carry("optimizer.warmup_steps", "lr_scheduler.num_warmup_steps")
    ledger.carry("model.dtype", "dtype")


def _torchtune_rows(ledger: Ledger) -> None:
    component = str(ledger.take("dataset._component_") or "").rsplit(".", 1)[-1]
    built_in = {"alpaca_dataset": "tatsu-lab/alpaca", "alpaca_cleaned_dataset": "yahma/alpaca-cleaned"}
    path = ledger.take("dataset.data_files") or ledger.take("dataset.source") or built_in.get(component, "")
    source: dict[str, Any] = {"path": path}
    if component in built_in:
        source["format"] = "instruction"
    elif component == "text_completion_dataset":
        source["format"] = "text"
    elif component == "instruct_dataset":
        source |= {"format": "completion", "columns": {"prompt": "input", "completion": "output"}}
    else:
        source["format"] = "chat"
        if component not in ("chat_dataset", ""):
            ledger.leave("dataset._component_", component, "no such form of rows here: say it in data.train")
    if split := ledger.take("dataset.split"):
        source["split"] = split
    ledger.set("data.train", [source], "dataset")
    on_input = ledger.take("dataset.train_on_input")
    everything = on_input if on_input is not None else component in built_in or source["format"] == "text"
    ledger.set("data.train_on", "all" if everything else "completion", "dataset.train_on_input")
