"""Which toolkit a configuration is for, and the function that converts it.

Each converter takes the keys whose meaning differs from what their name says here; what is only named differently is
carried by `Ledger.finish`. Defaults are those of the toolkits' own sources, 2026.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dorakit.recipe.importing.axolotl import axolotl
from dorakit.recipe.importing.ledger import Ledger
from dorakit.recipe.importing.llamafactory import llamafactory
from dorakit.recipe.importing.torchtune import torchtune
from dorakit.recipe.importing.trl import trl
from dorakit.recipe.importing.unsloth import unsloth

TOOLKITS: dict[str, Callable[[Ledger, Path], None]] = {
    "axolotl": axolotl,
    "llamafactory": llamafactory,
    "torchtune": torchtune,
    "trl": trl,
    "unsloth": unsloth,
}
# Whose files are known and not converted, by keys that none of the above has. mlx-lm trains the last layers of a model
# whose depth its file does not say, ms-swift's rows are ModelScope's; both find the form of rows by looking at them.
_OTHERS: dict[str, tuple[str, ...]] = {
    "mlx-lm": ("fine_tune_type", "lora_parameters", "iters", "steps_per_eval", "adapter_path"),
    "ms-swift": ("train_type", "tuner_type", "sft_type", "tuner_backend", "split_dataset_ratio", "rlhf_type", "use_hf"),
    "litgpt": ("lora_query", "lora_projection", "lora_mlp"),
    "AutoTrain": ("params",),
    "Ludwig": ("input_features", "output_features"),
    "mergekit": ("merge_method", "slices"),
    "accelerate": ("compute_environment", "distributed_type"),
    "DeepSpeed": ("zero_optimization",),
    "PEFT (an adapter's adapter_config.json)": ("peft_type",),
    "open-instruct": ("dataset_mixer_list", "with_tracking"),
    "transformers' run_clm.py": ("block_size", "train_file"),
}
_AXOLOTL = ("pretraining_dataset", "sequence_len", "micro_batch_size", "num_epochs", "val_set_size", "adapter")
_LLAMAFACTORY = ("stage", "finetuning_type", "cutoff_len", "template", "dataset_dir")
_TRL: tuple[str, ...] = (
    "dataset_name",
    "dataset_mixture",
    "dataset_mixer",
    "use_peft",
    "use_peft_lora",
    "dataset_text_field",
)
_TRL += ("assistant_only_loss", "completion_only_loss", "max_seq_length", "dataset_train_split", "reward_funcs")
_UNSLOTH = ("max_seq_length", "load_in_4bit", "training_type", "lora_r", "dataset", "local_dataset", "format_type")


def toolkit_of(content: Mapping[str, Any]) -> str | None:
    """Whose configuration this is, by the keys that only one of them has; a name outside TOOLKITS is not converted."""
    keys = set(content)
    sections = [value for value in content.values() if isinstance(value, Mapping)]
    if any("_component_" in section for section in sections):
        return "torchtune"
    if any("_target_" in section for section in sections):
        return "NeMo"
    for name, marks in _OTHERS.items():
        if keys.intersection(marks):
            return name
    if "base_model" in keys and (keys.intersection(_AXOLOTL) or _holds_mappings(content.get("datasets"))):
        return "axolotl"
    if "model_name_or_path" in keys:
        if keys.intersection(_LLAMAFACTORY) or isinstance(content.get("dataset"), str):
            return "llamafactory"
        return "trl" if keys.intersection(_TRL) or _holds_mappings(content.get("datasets")) else None
    known = [name for name in ("data", "training", "lora") if set(_mapping(content, name)).intersection(_UNSLOTH)]
    return "unsloth" if known and isinstance(content.get("model", ""), str) else None


def _holds_mappings(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value)


def _mapping(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = content.get(name)
    return value if isinstance(value, Mapping) else {}
