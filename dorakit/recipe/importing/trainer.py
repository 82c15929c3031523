"""The settings of transformers' TrainingArguments, which axolotl, LLaMA-Factory, TRL and unsloth hand on to it."""

from __future__ import annotations

from typing import Any

from dorakit.recipe.importing.keys import asks_for_nothing
from dorakit.recipe.importing.ledger import Ledger, refused, translated

_ATTENTION = {  # value of flash_attn, or a switch of this name
    "fa2": "flash_attention_2",
    "sdpa": "sdpa",
    "disabled": "eager",
    "flash_attention": "flash_attention_2",
    "use_flash_attention_2": "flash_attention_2",
    "use_flash_attn": "flash_attention_2",
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
}
_SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "cosine_with_min_lr": "cosine",
    "cosine_with_restarts": "cosine",
}


def carry_trainer(
    ledger: Ledger,
    *,
    learning_rate: float | None,
    epochs: float,
    schedule: str,
    warmup: float = 0,
    optimizer: str = "adamw",
    null_is_no_clipping: bool = True,
) -> None:
    """Carry them; the arguments are what the toolkit uses where none is given."""
    set_steps(ledger, "max_steps", "num_train_epochs", "num_epochs", epochs=epochs)
    if null_is_no_clipping and ledger.is_null("max_grad_norm"):
        ledger.set("training.max_grad_norm", 0.0, "max_grad_norm, null")
    ledger.carry("training.max_grad_norm", "max_grad_norm")
    ledger.carry("training.seed", "seed")
    _set_intervals(ledger)
    ledger.carry("optimizer.learning_rate", "learning_rate", default=learning_rate)
    set_optimizer(ledger, "optim", "optimizer", default=optimizer)
    ledger.carry("optimizer.weight_decay", "weight_decay")
    set_schedule(ledger, "lr_scheduler_type", "lr_scheduler", default=schedule, warmup=warmup)
    betas = ledger.number("adam_beta1"), ledger.number("adam_beta2")
    if betas != (None, None):
        ledger.set("optimizer.betas", [betas[0] or 0.9, betas[1] or 0.999], "adam_beta1, adam_beta2")
    _set_checkpointing(ledger)
    set_dtype(ledger)
    set_attention(ledger)


def set_steps(ledger: Ledger, steps_key: str, *names: str, epochs: float) -> None:
    """training.max_steps and training.epochs: transformers goes on for max_steps, however few rows there are."""
    steps = ledger.number(steps_key)
    if steps is None or steps <= 0:
        if steps is not None:
            ledger.settle(steps_key)
        ledger.carry("training.epochs", *names, default=epochs)
        return
    ledger.set("training.max_steps", int(steps), steps_key)
    ledger.set("training.epochs", float(steps), f"as many as {steps_key}, which decides: an epoch has a step or more")
    name, asked = ledger.pick(*names)
    if asked is not None:
        ledger.leave(name, asked, f"{steps_key} stands beside it, and goes before")


def _set_checkpointing(ledger: Ledger) -> None:
    """training.gradient_checkpointing; a word names a way of it, such as axolotl's offload."""
    way = ledger.take("gradient_checkpointing")
    if isinstance(way, str) and way not in ("none", "off", "no"):
        ledger.leave(
            "gradient_checkpointing", way, "carried as true: activations are computed again, and not moved away"
        )
    if way is not None:
        ledger.set("training.gradient_checkpointing", way not in (False, "none", "off", "no"), "gradient_checkpointing")


def _set_intervals(ledger: Ledger) -> None:
    ledger.carry("training.log_every", "logging_steps")
    for key, name, strategies in (
        ("training.eval_every", "eval_steps", ("eval_strategy", "evaluation_strategy")),
        ("training.save_every", "save_steps", ("save_strategy",)),
    ):
        (chosen, strategy), value = ledger.pick(*strategies), ledger.number(name)
        if strategy in (False, "no"):
            ledger.set(key, 0, f"{chosen}: no")
        elif strategy == "steps":
            ledger.settle(chosen)
        elif strategy is not None:
            ledger.leave(chosen, strategy, f"{key} is a number of steps here")
        if value is None:
            continue
        if strategy not in (None, "steps"):
            ledger.leave(name, value, f"{chosen} stands beside it, and goes before")
        elif 0 < value < 1:
            ledger.leave(name, value, f"{key} is a number of steps here, not a share of them")
        else:
            ledger.set(key, int(value), name)


def set_optimizer(ledger: Ledger, *names: str, default: str) -> None:
    """optimizer.name; a rule that there is not here is listed, and the toolkit's usual one taken."""
    name, asked = ledger.pick(*names)
    meant = translated("optimizer.name", asked)
    if asked is None or refused("optimizer.name", meant):
        ledger.set_default("optimizer.name", default)
        if asked is not None:
            ledger.leave(name, asked, f"no such optimizer here; {default} is taken")
    else:
        ledger.set("optimizer.name", meant, name)


def set_schedule(ledger: Ledger, *names: str, default: str, warmup: float = 0, section: str = "") -> None:
    """optimizer.schedule and the warmup; what ends elsewhere than at 0 is said, and `constant` has no warmup there."""
    name, asked = ledger.pick(*names)
    word = default if asked is None else str(asked).lower()
    schedule = _SCHEDULES.get(word)
    if asked is None or schedule is None:
        ledger.set_default("optimizer.schedule", default)
        if asked is not None:
            ledger.leave(name, asked, f"the schedules here are linear, cosine and constant; {default} is taken")
    else:
        ledger.set("optimizer.schedule", schedule, name)
        if word in ("cosine_with_min_lr", "cosine_with_restarts"):
            ledger.leave(name, asked, "carried as cosine, which falls to 0 once")
    values = {f"{section}{key}": ledger.number(f"{section}{key}") for key in ("warmup_steps", "warmup_ratio")}
    said = [(key, value) for key, value in values.items() if value is not None]
    asking = [(key, value) for key, value in said if value > 0]
    for key, _ in said:
        if key not in dict(asking):
            ledger.settle(key)
    if word == "constant":
        for key, value in asking:
            ledger.leave(key, value, f"{name}: constant has no warmup there; constant_with_warmup has")
    elif asking:
        (key, value), *others = asking
        _set_warmup(ledger, value, key)
        for other, unread in others:
            ledger.leave(other, unread, f"{key} stands beside it, and goes before")
    elif not said and warmup:
        _set_warmup(ledger, warmup, f"{ledger.toolkit}'s default")


def _set_warmup(ledger: Ledger, value: float, source: str) -> None:
    """Below 1 it is a share, which transformers 5 takes from warmup_steps too."""
    key = "optimizer.warmup_ratio" if value < 1 else "optimizer.warmup_steps"
    ledger.set(key, value if value < 1 else int(value), source)


def set_dtype(ledger: Ledger) -> None:
    """model.dtype: float16 is not trained in, so a wish for it is listed."""
    for name in ("bf16", "pure_bf16", "bfloat16", "fp16", "float16", "torch_dtype", "dtype"):
        value = ledger.take(name)
        if value is None:
            continue
        word = str(value).lower().removeprefix("torch.")
        on = name.removeprefix("pure_") if word in ("true", "full", "apex") else word
        if on in ("bf16", "bfloat16", "float32", "fp32"):
            dtype = "bfloat16" if on.startswith("b") else "float32"
            if ledger.recipe.get("model.dtype", dtype) == dtype:
                source = ledger.sources.get("model.dtype")
                ledger.set("model.dtype", dtype, f"{source}, {name}" if source else name)
            else:
                ledger.leave(name, value, f"model.dtype has its value from {ledger.sources['model.dtype']}")
        elif on in ("fp16", "float16", "half"):
            ledger.leave(name, value, "nothing is trained in float16 here; model.dtype is what the machine has")
        elif on in ("false", "auto", "none", "0"):
            ledger.settle(name)
        else:
            ledger.leave(name, value, "the dtypes here are bfloat16 and float32")


def set_attention(ledger: Ledger) -> None:
    """model.attention from a name or from one of the switches."""
    ledger.carry("model.attention", "attn_implementation")
    for name in ("flash_attn", "flash_attention", "use_flash_attention_2", "use_flash_attn"):
        _switch(ledger, name)
    for name in ("sdp_attention", "eager_attention"):
        _switch(ledger, name)


def _switch(ledger: Ledger, name: str) -> None:
    value: Any = ledger.take(name)
    if value is None:
        return
    chosen = _ATTENTION.get("fa2" if name == "flash_attn" else name) if value is True else _ATTENTION.get(str(value))
    if asks_for_nothing(value) or value == "auto":
        ledger.settle(name)
    elif chosen is None:
        ledger.leave(name, value, "attention here is sdpa, eager or flash_attention_2")
    elif ledger.recipe.get("model.attention", chosen) != chosen:
        ledger.leave(name, value, f"model.attention has its value from {ledger.sources['model.attention']}")
    else:
        ledger.set("model.attention", chosen, name)
