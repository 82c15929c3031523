"""Conversions that several toolkits need: method, targets, batch, held-out rows, the settings of transformers' trainer."""

from __future__ import annotations

from typing import Any, get_args

from dorakit.recipe.importing.ledger import Ledger
from dorakit.recipe.schema import LoggingSection

TRACKERS: tuple[str, ...] = get_args(get_args(LoggingSection.model_fields["to"].annotation)[0])
_PROJECT = "which project is said by the environment: WANDB_PROJECT (docs/trackers.md)"
_TRACKER_PLACES = (  # key, its tracker, what says this here
    ("wandb_project", "wandb", _PROJECT),
    ("logging.wandb_project", "wandb", _PROJECT),
    ("metric_logger.project", "wandb", _PROJECT),
    ("wandb_entity", "wandb", "whose account is said by the environment: WANDB_ENTITY"),
    ("mlflow_tracking_uri", "mlflow", "which store is said by the environment: MLFLOW_TRACKING_URI (docs/trackers.md)"),
    ("mlflow_experiment_name", "mlflow", "which experiment is said by the environment: MLFLOW_EXPERIMENT_NAME"),
)
_FOUR_BIT = ("load_in_4bit", "quantization_bit", "model.quantize_base")
ALL_LINEAR = ("all", "all-linear", "all_linear")


def set_mode(ledger: Ledger, *, adapter: bool, dora: bool, four_bit: bool, source: str) -> None:
    """adapter.mode from the three switches that others have for it."""
    if not adapter:
        if four_bit:
            switch = next(filter(ledger.has, _FOUR_BIT), _FOUR_BIT[0])
            ledger.leave(switch, True, "full fine-tuning needs a base that is not quantized")
        ledger.set("adapter.mode", "full", source)
        return
    ledger.set("adapter.mode", ("q" if four_bit else "") + ("dora" if dora else "lora"), source)


def set_targets(ledger: Ledger, value: Any, source: str) -> None:
    """adapter.target_modules from a list, a text with commas, or a word for all of them."""
    if isinstance(value, str) and value not in ALL_LINEAR and "," in value:
        value = [name.strip() for name in value.split(",")]
    if value in ALL_LINEAR or (isinstance(value, list) and len(value) == 1 and value[0] in ALL_LINEAR):
        value = "all-linear"
    elif isinstance(value, str):
        value = [value]
    ledger.set("adapter.target_modules", value, source)


def carry_adapter(ledger: Ledger, *, rank: int | None, alpha: float | None, dropout: float | None) -> None:
    """Rank, alpha and dropout with the toolkit's defaults."""
    ledger.carry("adapter.rank", "lora_r", "lora_rank", default=rank)
    ledger.carry("adapter.alpha", "lora_alpha", default=alpha)
    ledger.carry("adapter.dropout", "lora_dropout", default=dropout)
    ledger.carry("adapter.rslora", "use_rslora", "peft_use_rslora")


def set_batch(ledger: Ledger, micro: str, accumulation: str, *, defaults: tuple[int, int]) -> None:
    """Documents per optimizer step are the product that other toolkits leave to the reader. On one device."""
    size, steps = int(ledger.number(micro) or defaults[0]), int(ledger.number(accumulation) or defaults[1])
    factors = [f"{name} {value}" for name, value in ((micro, size), (accumulation, steps)) if ledger.has(name)]
    ledger.set("training.batch_size", size * steps, f"{' x '.join(factors) or 'defaults'}, one device")
    ledger.set("training.micro_batch_size", size, micro)


def carry_trainer(
    ledger: Ledger, *, learning_rate: float | None, epochs: float, schedule: str, warmup_ratio: float
) -> None:
    """The settings of transformers' TrainingArguments; arguments are what the toolkit uses where none is given."""
    ledger.carry("training.epochs", "num_train_epochs", "num_epochs", default=epochs)
    ledger.drop_if("max_steps", -1, 0)
    ledger.carry("training.max_grad_norm", "max_grad_norm")
    ledger.carry("training.seed", "seed", "random_seed")
    ledger.carry("training.log_every", "logging_steps")
    for key, name in (("training.eval_every", "eval_steps"), ("training.save_every", "save_steps")):
        value = ledger.number(name)
        if isinstance(value, float) and value < 1:
            ledger.leave(name, value, f"{key} is a number of steps here, not a share of them")
        elif value is not None:
            ledger.set(key, int(value), name)
    ledger.carry("optimizer.learning_rate", "learning_rate", default=learning_rate)
    ledger.carry("optimizer.name", "optim", "optimizer", default="adamw")
    ledger.carry("optimizer.schedule", "lr_scheduler_type", "lr_scheduler", default=schedule)
    ledger.carry("optimizer.weight_decay", "weight_decay")
    steps, ratio = ledger.number("warmup_steps"), ledger.number("warmup_ratio")
    if steps:
        ledger.set("optimizer.warmup_steps", steps, "warmup_steps")
        if ratio:
            ledger.leave("warmup_ratio", ratio, "warmup_steps stands beside it, and goes before")
    elif ratio:
        ledger.set("optimizer.warmup_ratio", ratio, "warmup_ratio")
    elif ratio is None and warmup_ratio:
        ledger.set_default("optimizer.warmup_ratio", warmup_ratio)
    betas = ledger.take("adam_beta1"), ledger.take("adam_beta2")
    if betas != (None, None):
        ledger.set("optimizer.betas", [betas[0] or 0.9, betas[1] or 0.999], "adam_beta1, adam_beta2")
    for name, dtype in (("bf16", "bfloat16"), ("fp16", "float16")):
        value = ledger.take(name)
        if value in (True, "true", "full"):
            ledger.set("model.dtype", dtype, name)
        elif value is not None:
            ledger.empty.append(name)


def set_trackers(ledger: Ledger) -> None:
    """logging.to from the trackers' names, their switches, and the keys that say where in them."""
    sources: dict[str, str] = {}
    for key in ("report_to", "metric_logger._component_"):
        for name in ledger.texts(key):
            word = name.rsplit(".", 1)[-1].lower().removesuffix("logger")
            if word in TRACKERS:
                sources.setdefault(word, key)
            elif word in ("none", "disk", "stdout"):  # metrics.jsonl and the terminal are always told
                ledger.empty.append(key)
            else:
                ledger.leave(key, name, f"the trackers here are {', '.join(TRACKERS)}")
    for tracker in TRACKERS:
        for key in (f"use_{tracker}", f"logging.enable_{tracker}"):
            if value := ledger.take(key):
                sources.setdefault(tracker, key)
            elif value is not None:
                ledger.empty.append(key)
    for key, tracker, where in _TRACKER_PLACES:
        if value := ledger.take(key):
            sources.setdefault(tracker, key)
            ledger.leave(key, value, where)
    if sources:
        ledger.set("logging.to", list(sources), ", ".join(dict.fromkeys(sources.values())))


def set_validation(ledger: Ledger, *names: str) -> None:
    """Rows held out: a share below 1, else a number of rows."""
    value = ledger.number(*names)
    if value:
        key = "data.validation.fraction" if value < 1 else "data.validation.rows"
        ledger.set(key, value if value < 1 else int(value), names[0])
