"""The tasks that `dorakit eval --task` knows: how each is asked, answered and judged. A new one is one entry in TASKS.

Commonsense: the DoRA paper's commonsense_evaluate.py (LLM-Adapters' data). Math: LLM-Adapters' evaluate.py, and
Answer.AI's for Orca-Math; docs/evaluation.md says where this differs from them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from dorakit.data.prompts import prompt_of
from dorakit.errors import DataError, UsageError
from dorakit.evaluation.metrics import Verdict
from dorakit.words import did_you_mean

_HEADING = "### Response:"
# How far a number may be from the right one: LLM-Adapters' `miss`.
_MISS = 0.001


@dataclass(frozen=True)
class Task:
    """How one data set is asked, answered and judged.

    Attributes:
        name: As typed, and as the data set's file or directory is called.
        prompt: The text before an answer; {instruction} stands for the row's.
        pattern: What is an answer in a text.
        takes: Which hit counts.
        part: Where a generated text repeats the prompt's heading: what is after the last one is searched, or what is
            before the first one.
        metric: How a hit is compared: as text, or as a number, for which commas are left out of both texts.
        num_beams: 1 is greedy.
        max_new_tokens: Tokens an answer at most.
        options: The answers that a row may have; empty where they are not known beforehand.
        response: The text whose likelihood is taken; {answer} stands for an option.
    """

    name: str
    prompt: str
    pattern: re.Pattern[str]
    takes: Literal["first", "last"]
    max_new_tokens: int
    part: Literal["after last", "before first"] = "after last"
    metric: Literal["text", "number"] = "text"
    num_beams: int = 1
    options: tuple[str, ...] = ()
    response: str = ""

    @property
    def scorings(self) -> tuple[str, ...]:
        """How this task can be scored; the first is the published way."""
        generated = "greedy" if self.num_beams == 1 else "beam"
        return (generated, "logprob") if self.options else (generated,)

    def expected(self, answer: str, row: str) -> str:
        """What a row's answer says is right.

        Raises:
            DataError: It is none of the task's options, or holds no number.
        """
        if self.options and answer not in self.options:
            raise DataError(
                f"{row}: the answer {_short(answer)} is none of those of {self.name}: {', '.join(self.options)}"
            )
        found = self._hit(answer)
        if found is None:
            raise DataError(f"{row}: the answer {_short(answer)} holds no number, and {self.name} compares numbers")
        return found

    def judge(self, answer: str, generated: str, row: str) -> Verdict:
        """Compare a generated text with a row's answer; the errors are those of `expected`."""
        right = self.expected(answer, row)
        pieces = generated.split(_HEADING)
        found = self._hit(pieces[-1] if self.part == "after last" else pieces[0])
        if found is None or self.metric == "text":
            return Verdict(found == right, right, found)
        return Verdict(abs(float(found) - float(right)) <= _MISS, right, found)

    def _hit(self, text: str) -> str | None:
        hits = self.pattern.findall(text.replace(",", "") if self.metric == "number" else text)
        return (hits[0] if self.takes == "first" else hits[-1]) if hits else None


def _options(name: str, options: str, prompt: str = prompt_of("llm-adapters", evaluation=True).without_input) -> Task:
    return Task(
        name=name,
        prompt=prompt,
        pattern=re.compile(options),
        takes="first",
        num_beams=4,
        max_new_tokens=32,
        options=tuple(options.split("|")),
        response="the correct answer is {answer}",
    )


def _numbers(name: str) -> Task:
    # This evaluation's prompt has the white space of the training prompt.
    return Task(
        name=name,
        prompt=prompt_of("llm-adapters").without_input,
        pattern=re.compile(r"-?\d+\.?\d*"),
        takes="last",
        part="before first",
        metric="number",
        max_new_tokens=256,
    )


_ANSWERS = "answer1|answer2|answer3|answer4|answer5"
_COMMONSENSE = (
    _options("boolq", "true|false"),
    _options("piqa", "solution1|solution2"),
    _options("social_i_qa", _ANSWERS),
    _options("hellaswag", "ending1|ending2|ending3|ending4"),
    _options("winogrande", "option1|option2"),
    _options("ARC-Easy", _ANSWERS),
    _options("ARC-Challenge", _ANSWERS),
    _options("openbookqa", _ANSWERS),
)
_MATH = (
    _numbers("AddSub"),
    _numbers("gsm8k"),
    Task(
        name="orca-math",
        prompt=prompt_of("orca-math").without_input,
        pattern=re.compile(r"[\$€£]?\d+(?:\.\d+)?(?:\:\d+(?:\.\d+)?)?"),
        takes="last",
        max_new_tokens=1024,
    ),
)
TASKS = {task.name: task for task in (*_COMMONSENSE, *_MATH)}
GROUPS = {"commonsense": tuple(task.name for task in _COMMONSENSE)}
HARNESS = "lm-eval:"


def tasks_named(text: str) -> list[Task]:
    """The tasks that a text names: names of tasks and groups, separated by commas.

    Raises:
        UsageError: A name that is unknown; the known ones are listed.
    """
    names: dict[str, None] = {}
    for name in (part.strip() for part in text.split(",")):
        if name not in TASKS and name not in GROUPS:
            known = [*GROUPS, *TASKS]
            raise unknown_task(name, known, f"known are {', '.join(known)}, and {HARNESS}NAME of lm-evaluation-harness")
        names |= dict.fromkeys(GROUPS.get(name, (name,)))
    return [TASKS[name] for name in names]


def scoring_of(task: Task, asked: str | None) -> str:
    """How a task is scored where `asked` was asked for, or nothing.

    Raises:
        UsageError: It cannot be scored so.
    """
    if asked is None:
        return task.scorings[0]
    if asked not in task.scorings:
        raise UsageError(f"--scoring {asked}: {task.name} is scored by {' or '.join(task.scorings)}")
    return asked


def check_processes(names: str, processes: int) -> None:
    """Refuse to share out what the harness measures: it has a launcher of its own.

    Raises:
        UsageError: There are several processes for it.
    """
    if processes > 1 and names.startswith(HARNESS):
        raise UsageError(
            f"--task {names}: measured by one process; leave --nproc (or the launcher) out, or share the rows out by the\n"
            "  harness itself: `dorakit merge RUN`, then accelerate launch -m lm_eval --model hf --model_args "
            f"pretrained=RUN/merged --tasks {names.removeprefix(HARNESS)}"
        )


def unknown_task(name: str, known: list[str], listing: str) -> UsageError:
    """The error for a name that is no task, with the nearest of the known ones."""
    return UsageError(f"--task {name[:80]!r}: no such task\n  {f'{did_you_mean(name, known)} {listing}'.strip()}")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
