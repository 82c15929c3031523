"""adapter_config.json as PEFT writes it: read, and held to what an adapter here can be.

Everything that is used later is checked for its kind and range here, since a stranger may have written it: numbers become
sizes of tensors, patterns are run as regular expressions over every module name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from dorakit.adapters.layer import AdapterLinear
from dorakit.adapters.on_disk import OWN_TYPE
from dorakit.errors import ModelError
from dorakit.methods import STARTS, UPDATES
from dorakit.model.configs import check_configs, read_object
from dorakit.model.directory import check_files
from dorakit.model.names import pattern_value

CONFIG = "adapter_config.json"
MERGE_IN_PEFT = (
    "merge it in PEFT (merge_and_unload, then save_pretrained): the merged directory is a model as any other"
)
_RUN_IN_PEFT = "run it with PEFT: no merged model answers as it does"
# Settings of PEFT that change the mathematics and have no counterpart here: the values that mean "not used", and what is
# left to do. docs/export.md has a row for each.
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "bias": (("none",), MERGE_IN_PEFT),
    "lora_bias": ((False,), MERGE_IN_PEFT),
    "target_parameters": ((None, []), MERGE_IN_PEFT),
    "trainable_token_indices": ((None, [], {}), MERGE_IN_PEFT),
    "use_bdlora": ((None, False), MERGE_IN_PEFT),
    "kasa_config": ((None,), MERGE_IN_PEFT),
    "init_weights": ((True, False, "mini", "bat", "gaussian"), MERGE_IN_PEFT),
    "fan_in_fan_out": ((False,), "its base has Conv1D layers (GPT-2), which take no adapter here: use PEFT"),
    "layer_replication": ((None,), "it has layers that its base has not: use PEFT"),
    "use_qalora": ((False,), "it is of a GPTQ base, which is not read here: use PEFT"),
    "alora_invocation_tokens": ((None,), _RUN_IN_PEFT),
    "arrow_config": ((None,), _RUN_IN_PEFT),
}
# Starts of A and B that leave the base as it is; every other one in PEFT changes the base's weights too.
_STARTS_BESIDE_THE_BASE = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
# A few repetitions side by side cost little on module names; one within another can take for ever.
_REPEATED = re.compile(r"(?<!\\)[*+{?]")
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_MAX_REPETITIONS, _MAX_PATTERN, _MAX_PATTERNS = 3, 500, 10_000
# Bound on the matching work of all patterns for one module name; a pattern with n repetitions may try _LENGTH ** n ways.
_LENGTH, _MAX_WORK = 30, 250_000


def read_config(directory: Path) -> dict[str, Any]:
    """The adapter_config.json of a directory, checked, as are the other configs there.

    Raises:
        ModelError: There is none, it is not LoRA's or DoRA's, it names code or uses something that is not supported here.
    """
    path = Path(directory) / CONFIG
    if not path.exists():
        raise ModelError(f"{directory} is not an adapter: it has no {CONFIG}")
    check_files(Path(directory))
    check_configs(Path(directory))
    config = read_object(path)
    if update_of(config) is None:
        if config.get("peft_type") == OWN_TYPE:
            raise ModelError(
                f"{path}: its own entry is {config.get('dorakit')!r:.80}, expected an object with an update of "
                f"{', '.join(UPDATES)}\n  any other needs the version that wrote the file"
            )
        kinds = dict.fromkeys(entry.load().peft_type for entry in UPDATES.values())
        known = ", ".join(kind for kind in kinds if kind != OWN_TYPE)
        raise ModelError(
            f"{path}: peft_type is {config.get('peft_type')!r:.80}; only {known} can be read\n"
            f"  of a kind that PEFT can merge: {MERGE_IN_PEFT}"
        )
    if (initial_start := start_of(config)) not in STARTS:
        raise ModelError(f"{path}: start is {initial_start!r:.80}; only {', '.join(STARTS)} can be read")
    for key, (unused, advice) in UNSUPPORTED.items():
        if key in config and config[key] not in unused:
            raise ModelError(f"{path}: {key} = {config[key]!r:.80} is not supported; only {unused[0]!r} is\n  {advice}")
    start = config.get("init_lora_weights")
    if isinstance(start, (dict, list)) or start not in _STARTS_BESIDE_THE_BASE:
        raise ModelError(
            f"{path}: init_lora_weights = {start!r} changed the base's weights too, so this adapter does not fit the base\n"
            "  PEFT saves one that does: save_pretrained(DIR, path_initial_model_for_weight_conversion=INITIAL_ADAPTER)"
        )
    _check_values(path, config, layer_class_of(config).peft_values)
    return config


def update_of(config: dict[str, Any]) -> str | None:
    """The name of an adapter's update in the table of methods; None where there is none."""
    own = config.get("dorakit")
    if config.get("peft_type") == OWN_TYPE:
        return str(own["update"]) if isinstance(own, dict) and own.get("update") in UPDATES else None
    return next((name for name, entry in UPDATES.items() if entry.load().is_described_by(config)), None)


def layer_class_of(config: dict[str, Any]) -> type[AdapterLinear]:
    """The class of the layers of an adapter whose config `read_config` has checked."""
    update = update_of(config)
    assert update is not None
    layer_class: type[AdapterLinear] = UPDATES[update].load()
    return layer_class


def method_of(config: dict[str, Any]) -> str:
    """`dora` for an adapter with a magnitude, else `lora`."""
    own = config.get("dorakit") if config.get("peft_type") == OWN_TYPE else None
    has_magnitude = own.get("magnitude", False) if isinstance(own, dict) else config.get("use_dora")
    return "dora" if has_magnitude else "lora"


def start_of(config: dict[str, Any]) -> str:
    """The start of an adapter, a name of the table of methods; any but kaiming changed its base."""
    own = config.get("dorakit") if config.get("peft_type") == OWN_TYPE else None
    return str(own.get("start", "kaiming")) if isinstance(own, dict) else "kaiming"


def adapter_base(directory: Path, base_model: str | None = None) -> tuple[str, str]:
    """The base that a PEFT adapter names, and its revision; `base_model` overrides it.

    Raises:
        ModelError: adapter_config.json cannot be read or names none.
    """
    stated = read_config(directory)
    if base_model is not None:
        return base_model, "main"
    base, revision = stated.get("base_model_name_or_path"), stated.get("revision")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{directory / CONFIG} names no base (base_model_name_or_path is {base!r})\n  name one with --base-model"
        )
    if "://" in base:
        raise ModelError(
            f"{directory / CONFIG}: base_model_name_or_path = {base!r} is an address, which is never fetched\n"
            "  name a hub id or a directory with --base-model"
        )
    return base, revision if isinstance(revision, str) and revision else "main"


def used_patterns(config: dict[str, Any], key: str, adapted: Iterable[str]) -> dict[str, Any]:
    """The entries of rank_pattern or alpha_pattern that match an adapted module; PEFT keeps others too."""
    names = list(adapted)
    patterns: dict[str, Any] = config.get(key) or {}
    return {p: value for p, value in patterns.items() if any(pattern_value(name, {p: 1}, 0) for name in names)}


def refuse_adapted_head(model: PreTrainedModel, adapted: Iterable[str], directory: Path) -> None:
    """Refuse LoRA on the output head.

    Raises:
        ModelError: With its name.
    """
    head = model.get_output_embeddings()
    names = {name for name, module in model.named_modules() if module is head} - {""}
    if found := sorted(names & set(adapted)):
        raise ModelError(
            f"{directory} has LoRA on the output head ({found[0]}), which is not supported\n  {MERGE_IN_PEFT}"
        )


def _check_values(path: Path, config: dict[str, Any], own: dict[str, str]) -> None:
    def expect(key: str, what: str, is_right: bool) -> None:
        if not is_right:
            raise ModelError(f"{path}: {key} is {config.get(key)!r}, expected {what}")

    expect("r", "a whole number above 0", _is_rank(config.get("r")))
    whole = config.get("modules_to_save")
    is_list = isinstance(whole, list) and all(isinstance(name, str) for name in whole)
    expect("modules_to_save", "a list of module names", whole is None or is_list)
    for key, kind in {**own, "ensure_weight_tying": "flag"}.items():
        value = config.get(key)
        if kind == "number":
            expect(key, "a number", _is_number(value))
        elif kind == "whole":
            expect(
                key, "a whole number of at least 0", value is None or (_is_number(value) and value == int(value) >= 0)
            )
        elif kind == "dropout":
            expect(key, "a number from 0 to below 1", value is None or (_is_number(value) and 0 <= value < 1))
        elif kind == "flag":
            expect(key, "true or false", value is None or isinstance(value, bool))
    for key, is_value in (("rank_pattern", _is_rank), ("alpha_pattern", _is_number)):
        patterns = config.get(key)
        if patterns is None:
            continue
        right = isinstance(patterns, dict) and len(patterns) <= _MAX_PATTERNS and all(map(is_value, patterns.values()))
        expect(key, "an object of module names and numbers", right)
        for pattern in patterns:
            _check_pattern(path, key, pattern)
        if sum(_LENGTH ** len(_REPEATED.findall(pattern)) for pattern in patterns) > _MAX_WORK:
            raise ModelError(
                f"{path}: {key}: its {len(patterns):,} patterns have so many repetitions (* + ? {{) that matching them could "
                "take hours\n  write the module names out"
            )


def _check_pattern(path: Path, key: str, pattern: str) -> None:
    try:
        re.compile(f"({pattern})")
    except (re.error, RecursionError, OverflowError) as error:
        raise ModelError(f"{path}: {key}: {pattern[:80]!r} is not a regular expression: {error}") from None
    repetitions = len(_REPEATED.findall(pattern))
    if repetitions > _MAX_REPETITIONS or _REPEATED_GROUP.search(pattern) or len(pattern) > _MAX_PATTERN:
        raise ModelError(
            f"{path}: {key}: {pattern[:80]!r} could take for ever to match: a pattern may have {_MAX_REPETITIONS} repetitions,"
            f" none of a group, and {_MAX_PATTERN} characters\n  write the module names out"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9 and math.isfinite(value)


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31
