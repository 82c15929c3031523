"""Configurations with another objective than supervised fine-tuning, or another method, are refused by name.

A recipe made of them would train something else.

axolotl, LLaMA-Factory and torchtune have keys that choose the objective. Settings of an objective that is not chosen have
no effect there, and are listed as not carried over. In TRL the command chooses, so its settings are all there is to see.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dorakit.errors import Problem
from dorakit.recipe.fields import dotted
from dorakit.recipe.foreign import KEYS, OBJECTIVE
from dorakit.recipe.tree import Node, PathKey

_OFF = (None, False, "", "none", "null", "false", "no", "off")
# "beta" is not in KEYS: in a recipe it is a slip for optimizer.betas.
_OBJECTIVE_KEYS = {"beta", "teacher_model_name_or_path", *(key for key, hint in KEYS.items() if hint == OBJECTIVE)}
# `type: chat_template` is a conversation in axolotl, `type: chat_template.NAME` a pair of answers.
_PREFERENCE_TYPES = (
    "chat_template",
    "chatml",
    "llama3",
    "zephyr",
    "user_defined",
    "passthrough",
    "orpo",
    "bradley_terry",
)
# What chooses the method, and the methods that there are here: any other trains other weights.
_METHODS = {"axolotl": ("adapter", ("lora", "qlora")), "llamafactory": ("finetuning_type", ("lora", "full"))}
_NO_METHOD = "dorakit trains all weights, or LoRA and DoRA adapters: adapter.mode full, lora, dora, qlora or qdora"
_SFT_LOSSES = ("nll", "dft", "chunked_nll")  # of TRL's SFTConfig; every other loss_type is another trainer's
_PREFERENCE_ROWS = ("preference", "paired", "hh_rlhf")


def other_objectives(toolkit: str, root: Node) -> list[Problem]:
    """A problem for every key that asks for another objective than supervised fine-tuning, or another method."""
    found = {"axolotl": _axolotl, "llamafactory": _llamafactory, "torchtune": _torchtune, "trl": _trl}.get(toolkit)
    problems = [] if found is None else [_problem(root, path) for path in found(root)]
    key, methods = _METHODS.get(toolkit, ("", ()))
    asked = root.at((key,))
    if asked is not None and _is_on(asked) and asked.value not in methods:
        message = f"{key}: {' '.join(asked.text.split())[:60]} asks for another method than those here"
        problems.append(asked.key_place.problem(message, _NO_METHOD))
    return problems


def _problem(root: Node, path: PathKey) -> Problem:
    node = root.at(path)
    assert node is not None
    written = f"{dotted(path)}: {' '.join(node.text.split())[:60]}" if node.text else dotted(path)
    return node.key_place.problem(f"{written} asks for another objective than supervised fine-tuning", OBJECTIVE)


def _axolotl(root: Node) -> Iterator[PathKey]:
    for key in ("rl", "reward_model", "process_reward_model", "kd_trainer"):
        if _is_on(root.at((key,))):
            yield (key,)
    for section in ("datasets", "test_datasets"):
        entries = root.at((section,))
        for index, entry in enumerate(entries.items if entries else []):
            kind = entry.entries.get("type")
            before, dot, _ = str(kind.value).partition(".") if kind else ("", "", "")
            if (dot and before in _PREFERENCE_TYPES) or before == "stepwise_supervised":
                yield section, index, "type"
            inside = kind.entries if kind else {}
            for key in ("field_chosen", "field_rejected"):
                if key in entry.entries:
                    yield section, index, key
                elif key in inside:
                    yield section, index, "type", key


def _llamafactory(root: Node) -> Iterator[PathKey]:
    stage = root.at(("stage",))
    if _is_on(stage) and stage is not None and stage.value not in ("sft", "pt"):
        yield ("stage",)
    if _is_on(root.at(("do_predict",))) and not _is_on(root.at(("do_train",))):
        yield ("do_predict",)


def _torchtune(root: Node) -> Iterator[PathKey]:
    loss, rows = _text(root, ("loss", "_component_")), _text(root, ("dataset", "_component_"))
    if ".rlhf." in loss or "KL" in loss.rsplit(".", 1)[-1]:
        yield "loss", "_component_"
    if any(word in rows.rsplit(".", 1)[-1] for word in _PREFERENCE_ROWS):
        yield "dataset", "_component_"
    for key in ("reward_and_value_model", "teacher_model"):
        if key in root.entries:
            yield (key,)


def _trl(root: Node) -> Iterator[PathKey]:
    for key, node in root.entries.items():
        if key in _OBJECTIVE_KEYS and _is_on(node):
            yield (key,)
    losses = root.at(("loss_type",))
    if losses is not None and _is_on(losses):
        words = losses.plain() if isinstance(losses.value, list) else [losses.value]
        if any(word not in _SFT_LOSSES for word in words):
            yield ("loss_type",)


def _text(root: Node, path: PathKey) -> str:
    node = root.at(path)
    return str(node.value) if node is not None else ""


def _is_on(node: Node | None) -> bool:
    value: Any = None if node is None else node.value
    return isinstance(value, (dict, list)) or (value.lower() if isinstance(value, str) else value) not in _OFF
