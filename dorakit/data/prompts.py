"""Prompts of format `instruction`, byte for byte: trailing blanks and indents are part of what a model learns."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dorakit.errors import DataError


@dataclass(frozen=True)
class Prompt:
    """The text before an answer, for rows with and without an `input`; '' says that such rows do not fit."""

    without_input: str
    with_input: str

    def fill(self, instruction: str, context: str, row: str) -> str:
        """Put a row's texts in, in one pass: braces inside them stay what they are."""
        form = self.with_input if context else self.without_input
        if not form:
            raise DataError(
                f"{row}: the row has an `input` and the prompt has no place for it.\n"
                "  use prompt: default, or a prompt text that holds {input} too"
            )
        values = {"{instruction}": instruction, "{input}": context}
        return re.sub(r"\{instruction\}|\{input\}", lambda match: values[match.group()], form)


_TASK = "Below is an instruction that describes a task"
_TASK_WITH_INPUT = _TASK + ", paired with an input that provides further context"
_REQUEST = ". Write a response that appropriately completes the request."
_INDENT = " " * 16

# Stanford Alpaca, 2023, with the newline after the last heading that alpaca-lora and most data since have.
_ALPACA = Prompt(
    f"{_TASK}{_REQUEST}\n\n### Instruction:\n{{instruction}}\n\n### Response:\n",
    f"{_TASK_WITH_INPUT}{_REQUEST}\n\n### Instruction:\n{{instruction}}\n\n### Input:\n{{input}}\n\n### Response:\n",
)
# LLM-Adapters, as in the DoRA paper's finetune.py: two blanks after "request." (one with an input), and blank lines
# between the parts that hold the indent.
_LLM_ADAPTERS = Prompt(
    f"{_TASK}{_REQUEST}  \n\n{_INDENT}### Instruction:\n{_INDENT}{{instruction}}\n{_INDENT}\n"
    f"{_INDENT}### Response:\n{_INDENT}",
    f"{_TASK_WITH_INPUT}{_REQUEST} \n\n{_INDENT}### Instruction:\n{_INDENT}{{instruction}}\n{_INDENT}\n"
    f"{_INDENT}### Input:\n{_INDENT}{{input}}\n{_INDENT}\n{_INDENT}### Response:\n{_INDENT}",
)
# ... and as in its commonsense_evaluate.py, which differs: one blank (none with an input), empty lines.
_LLM_ADAPTERS_EVALUATION = Prompt(
    f"{_TASK}{_REQUEST} \n\n{_INDENT}### Instruction:\n{_INDENT}{{instruction}}\n\n{_INDENT}### Response:\n{_INDENT}",
    f"{_TASK_WITH_INPUT}{_REQUEST}\n\n{_INDENT}### Instruction:\n{_INDENT}{{instruction}}\n\n"
    f"{_INDENT}### Input:\n{_INDENT}{{input}}\n\n{_INDENT}### Response:\n{_INDENT}",
)
_ORCA_MATH = Prompt("###Question:\n{instruction}\n###Answer:\n", "")

_TRAINING = {"default": _ALPACA, "llm-adapters": _LLM_ADAPTERS, "orca-math": _ORCA_MATH}
_EVALUATION = {**_TRAINING, "llm-adapters": _LLM_ADAPTERS_EVALUATION}
NAMES = (*_TRAINING, "chat")


def prompt_of(name: str, *, evaluation: bool = False) -> Prompt:
    """The prompt that a recipe names, or that its text spells out.

    Raises:
        DataError: Neither a known name nor a text with {instruction}.
    """
    known = _EVALUATION if evaluation else _TRAINING
    if name in known:
        return known[name]
    if "{instruction}" not in name:
        raise DataError(
            f"prompt {name!r} is neither a known prompt ({', '.join(NAMES)}) nor a text that holds {{instruction}}"
        )
    if "{input}" in name:
        return Prompt(name, name)
    return Prompt(name, "")
