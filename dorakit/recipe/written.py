"""A first recipe for rows that somebody has just pointed at: settings chosen by their number and length, with comments.

The settings are starting points, not findings: small data gets small batches and more passes, long rows fewer at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dorakit.recipe.resolved import yaml_value
from dorakit.recipe.schema import MODES
from dorakit.words import counted

DEFAULT_MODE = "qdora"
LONGEST = 4096  # tokens: longer documents are a decision about memory, and not made for anybody

_TRUNCATED = "text"  # the format whose rows may be cut: in the others the end is the answer
_COLUMN = 44  # where comments begin, where the setting is not longer

# Key, value as YAML, comment.
Line = tuple[str, str, str]


@dataclass(frozen=True)
class Fit:
    """Settings that fit a device, by its plan. `device` and `memory` are words for comments."""

    device: str
    memory: str
    micro_batch_size: int
    gradient_checkpointing: bool
    max_seq_len: int


@dataclass(frozen=True)
class Draft:
    """What a first recipe is written from.

    `base` and `path` are as the recipe is to name them. `prompt` is for format instruction, `chat_template` for a base that
    has none. `longest_of_99` is the number of tokens that 99 of 100 rows do not exceed, and `counted_by` says how it is
    known. `model_limit` is the most that the model takes, where that is known. `architecture` is the base's, for
    `--twin`, None where it is not known or the base is tiny. `fit` is None where nothing is known of memory.
    """

    base: str
    mode: str
    path: str
    format: str
    columns: dict[str, str]
    num_rows: int
    longest_of_99: int
    counted_by: str
    prompt: str = "default"
    chat_template: str | None = None
    model_limit: int | None = None
    architecture: str | None = None
    fit: Fit | None = None

    @property
    def usual_seq_len(self) -> int:
        """Room for 99 of 100 rows, as a multiple of 64 (128 above 1024), within what the model takes."""
        step = 64 if self.longest_of_99 <= 1024 else 128
        rounded = math.ceil(self.longest_of_99 / step) * step
        return min(rounded, LONGEST, self.model_limit or LONGEST)

    @property
    def max_seq_len(self) -> int:
        """The usual length, or as much of it as fits."""
        return self.usual_seq_len if self.fit is None else self.fit.max_seq_len

    @property
    def usual_micro_batch_size(self) -> int:
        """Rows at once where memory does not matter."""
        return 4 if self.usual_seq_len <= 1024 else 2 if self.usual_seq_len <= 2048 else 1

    @property
    def in_99_of_100(self) -> str:
        """What the length rests on, in words."""
        return f"99 of 100 rows have at most {self.longest_of_99:,}, {self.counted_by}"

    @property
    def num_held_out(self) -> int:
        """Validation rows: 2 % but at most 500, and of few rows a larger share."""
        if self.num_rows < 20:
            return 0
        share = 0.02 if self.num_rows >= 1000 else 0.05
        return min(500, max(2, round(share * self.num_rows)))

    @property
    def batch_size(self) -> int:
        """Rows per optimizer step."""
        return 4 if self.num_rows < 200 else 8 if self.num_rows < 1000 else 16

    @property
    def epochs(self) -> int:
        """Passes over the rows."""
        return 5 if self.num_rows < 200 else 3 if self.num_rows < 20_000 else 1

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return math.ceil((self.num_rows - self.num_held_out) / self.batch_size) * self.epochs


def recipe_text(draft: Draft) -> str:
    """The recipe as YAML, each setting with a comment: why this, and what else one can write."""
    lines = [
        "# yaml-language-server: $schema=schema.json",
        "# Made by `dorakit init`. For completion in an editor: `dorakit schema --output schema.json`, beside this file.",
        "# What is not written here has a default: docs/recipes.md, or `dorakit validate THIS --explain`.",
        *([] if draft.fit is None else [f"# Memory, as `dorakit plan` adds it up: {draft.fit.memory}."]),
        "version: 1",
        *_section("model", _model(draft)),
        *_section("adapter", _adapter(draft.mode)),
        "data:",
        "  train:",
        *_entry(_source(draft)),
        *_indented(_data(draft), "  "),
        *_section("training", _training(draft)),
        *_section("optimizer", _optimizer(draft)),
    ]
    if draft.format != "text":
        lines += [
            "# What `dorakit eval` measures; without it the loss on the validation rows:",
            "# evaluation: {path: test.jsonl, metric: exact_match}",
        ]
    return "\n".join(lines) + "\n"


def _model(draft: Draft) -> list[Line]:
    why = "a hub id, ./directory, file.gguf, pkg:<package>/<file> or tiny:llama"
    lines: list[Line] = [("base", yaml_value(draft.base), why)]
    if draft.architecture is not None:
        lines.append(
            ("architecture", yaml_value(draft.architecture), "for --twin, which tries the recipe on a tiny base")
        )
    return lines


def _adapter(mode: str) -> list[Line]:
    also = {
        "full": "all weights; or lora, dora, with the base in 4 bits qlora, qdora",
        "lora": "or dora; with the base in 4 bits qlora, qdora; full: all weights",
        "dora": "or lora; with the base in 4 bits qlora, qdora; full: all weights",
        "qlora": "LoRA on a base in 4 bits; or qdora, lora, dora, full",
        "qdora": "DoRA on a base in 4 bits; or qlora, lora, dora, full",
    }
    assert also.keys() == set(MODES)
    lines: list[Line] = [("mode", mode, also[mode])]
    if mode == "full":
        return lines
    return [
        *lines,
        ("rank", "16", "a larger one can learn more and takes more memory; 8 to 64 are usual"),
        ("alpha", "32", "the update counts alpha / rank; twice the rank is usual"),
        ("target_modules", "all-linear", "or a list of layers: [q_proj, v_proj]"),
    ]


def _source(draft: Draft) -> list[Line]:
    fields = {
        "chat": "messages with role and content, or conversations with from and value",
        "instruction": "instruction, input (or none), output",
        "completion": "prompt, completion",
        "text": "text",
    }
    lines: list[Line] = [
        ("path", yaml_value(draft.path), counted(draft.num_rows, "row")),
        ("format", draft.format, f"fields: {fields[draft.format]}"),
    ]
    if draft.columns:
        lines.append(("columns", yaml_value(draft.columns), "field: its name in the data"))
    if draft.format == "instruction":
        others = "the model's own chat template; or default (Alpaca's)"
        if draft.prompt == "default":
            others = "Alpaca's; or chat (the model's chat template)"
        lines.append(("prompt", draft.prompt, f"{others}, or a text with {{instruction}}"))
    return lines


def _data(draft: Draft) -> list[Line]:
    lines: list[Line] = []
    if draft.chat_template is not None:
        lines.append(("chat_template", yaml_value(draft.chat_template), "the model has none; a text or a file"))
    held_out = draft.num_held_out
    is_share = 0 < held_out < 500 and draft.num_rows >= 1000
    value = "{fraction: 0.02}" if is_share else f"{{rows: {held_out}}}"
    why = "not trained on but measured; or path: another file" if held_out else "too few to hold any out; or path: file"
    lines.append(("validation", value, why))
    if draft.format != "text":
        lines.append(("train_on", "completion", "learn the answers; all: the questions too"))
    limit = draft.max_seq_len
    too_long = f"; more do not fit {draft.fit.device}" if draft.fit and limit < draft.usual_seq_len else ""
    lines.append(("max_seq_len", str(limit), f"tokens; {draft.in_99_of_100}{too_long}"))
    is_cut = draft.format == _TRUNCATED and draft.longest_of_99 > limit
    overlength = ("truncate", "drop") if is_cut else ("drop", "truncate")
    lines.append(("overlength", overlength[0], f"what happens to longer rows; or {overlength[1]}, error"))
    lines.append(("packing", "false", "true: several short rows in one of max_seq_len, apart from each other"))
    return lines


def _training(draft: Draft) -> list[Line]:
    steps, usual = draft.num_steps, draft.usual_micro_batch_size
    micro, is_checkpointed = usual, False
    why_micro, why_not = "fewer take less memory and give the same result", "true: less memory, more time"
    if draft.fit is not None:
        micro, is_checkpointed = draft.fit.micro_batch_size, draft.fit.gradient_checkpointing
        if micro < usual:
            why_micro = f"{usual} do not fit {draft.fit.device}; the result is the same"
        if is_checkpointed:
            why_not = f"less memory, more time; false does not fit {draft.fit.device}"
    at_end = "0: once, at the end"
    every = _every(steps)
    lines: list[Line] = [
        ("epochs", str(draft.epochs), f"passes over the rows; {counted(steps, 'step')} in all"),
        ("batch_size", str(draft.batch_size), "rows per step of the optimizer"),
        ("micro_batch_size", str(micro), f"rows at once: {why_micro}"),
        ("gradient_checkpointing", yaml_value(is_checkpointed), why_not),
        ("log_every", str(max(1, min(10, steps // 20))), "steps between two lines of metrics"),
    ]
    if draft.num_held_out:
        lines.append(("eval_every", str(every), f"steps between two validations; {at_end}"))
    return [*lines, ("save_every", str(every), f"steps between two checkpoints to go on from; {at_end}")]


def _optimizer(draft: Draft) -> list[Line]:
    rate, why = ("2e-4", "the first to vary: 1e-4 to 1e-3 for adapters")
    if draft.mode == "full":
        rate, why = ("2e-5", "the first to vary: 1e-5 to 5e-5 for all weights")
    return [
        ("name", "adamw", "or paged_adamw_8bit, with less memory on a GPU"),
        ("learning_rate", rate, why),
        ("schedule", "cosine", "falls to 0 at the end; or linear, constant"),
        ("warmup_ratio", "0.03", "share of the steps in which the rate rises to its peak"),
    ]


def _every(steps: int) -> int:
    """A round number that lies some five times in the run; 0, at the end only, in a short one."""
    if steps < 50:
        return 0
    round_numbers = [10, 20, 50, 100, 200, 500]
    return max(number for number in round_numbers if number <= max(10, steps / 5))


def _section(name: str, lines: list[Line]) -> list[str]:
    return [f"{name}:", *_indented(lines, "  ")]


def _entry(lines: list[Line]) -> list[str]:
    first, *rest = _indented(lines, "      ")
    return [f"    - {first.lstrip()}", *rest]


def _indented(lines: list[Line], indent: str) -> list[str]:
    return [f"{f'{indent}{key}: {value}':{_COLUMN}}  # {comment}" for key, value, comment in lines]
