"""Kinds of models: who builds one, what PEFT calls it, and its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel


@dataclass(frozen=True)
class Task:
    """A kind of model.

    Attributes:
        auto: The Auto class of transformers that builds it.
        peft_type: `task_type` in PEFT's adapter_config.json.
        backbone: Gives the module that turns token ids into hidden states.
        head: Gives the module that turns hidden states into logits; None if the model has none.
    """

    auto: Any
    peft_type: str
    backbone: Callable[[PreTrainedModel], Any]
    head: Callable[[PreTrainedModel], Any]


CAUSAL_LM = Task(
    auto=AutoModelForCausalLM,
    peft_type="CAUSAL_LM",
    backbone=lambda model: model.base_model,
    head=lambda model: model.get_output_embeddings(),
)
