"""Every error that a person may meet, each with its exit code; EXIT_CODES says what the codes mean.

    DorakitError           failed while running
    ├── UsageError         a command line that cannot be carried out
    ├── RecipeError        a recipe with problems, all listed at once
    ├── DataError          rows that cannot be read or trained on
    ├── ModelError         a base model or an adapter that cannot be used
    ├── RunError           a run directory that is locked, changed, corrupt or unfinished
    ├── MachineError       this machine lacks something: an extra, a device, a version
    ├── ResourceError      out of disk, memory or network
    ├── GateError          a gate was not met: non-finite loss, merge receipt, `eval --min`
    ├── Interrupted        stopped by a signal after saving; resumable
    └── ToldByAnother      another process of the group failed first, says why, and gives its exit code

A message says what is wrong, where, the value seen, and what to do. Only dorakit/cli prints and exits. Texts of recipes,
rows and libraries come into messages; `shown` makes them safe to print and to keep.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from dorakit.secrets import redacted
from dorakit.terminal import printable

EXIT_CODES = {
    0: "done",
    1: "failed while running, or a bug in dorakit",
    2: "the command line, the recipe, the rows or the model cannot be used",
    3: "the run directory or this machine refuses",
    4: "out of disk, memory or network",
    5: "a gate was not met: non-finite loss, nothing learned, receipt of a merge or an export, eval --min and --max",
    130: "stopped by Ctrl-C (SIGINT)",
    141: "whatever read stdout is gone (SIGPIPE)",
    143: "stopped by SIGTERM",
}


class DorakitError(Exception):
    """The root of the tree.

    Attributes:
        exit_code: Exit code of the command line.
        kind: Name of the error in JSON.
        result: The JSON of a command that has a result in spite of the error, such as an evaluation below its gate.
    """

    exit_code = 1
    kind: ClassVar[str] = "failed"
    result: dict[str, Any] | None = None

    def __str__(self) -> str:
        return shown(super().__str__())


def shown(text: str) -> str:
    """A text without secrets, and without characters that would steer a terminal or cannot be written as UTF-8."""
    return printable(redacted(text))


def listed(problems: list[str], *, most: int = 5) -> str:
    """The first problems, a line each, and how many there are more."""
    more = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return "\n  ".join([*problems[:most], *more])


class UsageError(DorakitError):
    """The command line asks for something that cannot be carried out."""

    exit_code = 2
    kind = "usage"


@dataclass(frozen=True)
class Problem:
    """One mistake in a recipe.

    `line` and `column` are 1-based; 0 means that the mistake has no place in a file (it came from `--set`, say).
    `source_line` is the offending line as it stands in the file and `length` the number of characters to underline.
    """

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    source_line: str = ""
    length: int = 1
    hint: str = ""

    def render(self) -> str:
        """Lay the mistake out as a compiler does: place, message, the line, a caret line with the hint."""
        if not self.line:
            place = f"{self.file}: " if self.file else ""
            return f"{place}error: {self.message}" + (f"\n       {self.hint}" if self.hint else "")
        head = f"{self.file}:{self.line}:{self.column}: error: {self.message}"
        if not self.source_line:
            return head + (f"\n       {self.hint}" if self.hint else "")
        number = f"{self.line:5d}"
        caret = " " * (self.column - 1) + "^" * max(1, self.length)
        hint = f" {self.hint}" if self.hint else ""
        return f"{head}\n{number} | {self.source_line}\n{' ' * len(number)} | {caret}{hint}"


class RecipeError(DorakitError):
    """A recipe with one or more problems; all of them are in `problems`, in file order."""

    exit_code = 2
    kind = "recipe"

    def __init__(self, problems: list[Problem]):
        self.problems = sorted(problems, key=lambda p: (p.file, p.line, p.column))
        super().__init__("\n".join(problem.render() for problem in self.problems))


class DataError(DorakitError):
    """Rows that cannot be read, or from which nothing can be learned."""

    exit_code = 2
    kind = "data"


class ModelError(DorakitError):
    """A base model, tokenizer or adapter that cannot be used as asked."""

    exit_code = 2
    kind = "model"


class RunError(DorakitError):
    """A run directory that is locked, changed, corrupt or in the wrong state."""

    exit_code = 3
    kind = "run"


class MachineError(DorakitError):
    """Something that this machine lacks: an optional package, a device, a version of a library."""

    exit_code = 3
    kind = "machine"


class ResourceError(DorakitError):
    """Out of disk, memory or network."""

    exit_code = 4
    kind = "resource"


@dataclass(frozen=True)
class Gate:
    """One gate that was missed: the value found, its limit, and the option or recipe key that set the limit.

    A limit of None is one that nobody sets: the value is not finite.
    """

    metric: str
    value: float
    limit: float | None = None
    set_by: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN and no infinity: those are texts."""
        value = self.value if math.isfinite(self.value) else str(self.value)
        return {"metric": self.metric, "value": value, "limit": self.limit, "set_by": self.set_by}


class GateError(DorakitError):
    """A gate was not met: non-finite loss, a merge receipt above its limit, `eval --min`.

    `gates` are the ones that were missed, for programs that read the error as JSON.
    """

    exit_code = 5
    kind = "gate"

    def __init__(self, message: str, *gates: Gate):
        super().__init__(message)
        self.gates = gates


# The allocators of torch and the C library (also for mmap), C++, oneDNN where its code gets no memory, the loader of shared
# libraries, and Python where a thread gets no stack.
_OUT_OF_MEMORY = (
    "out of memory",
    "allocate memory",
    "std::bad_alloc",
    "could not create a primitive",
    "failed to map segment",
    "can't start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library ran out of memory, which most of them say in text only."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY)


class Interrupted(DorakitError):
    """Stopped by a signal after a checkpoint was saved."""

    kind = "interrupted"

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


class ToldByAnother(DorakitError):
    """Another process of the same training failed first and says why; nothing is printed here."""

    def __init__(self, exit_code: int):
        super().__init__("another process of this training failed and says why")
        self.exit_code = exit_code


class PeerLost(Exception):
    """A message between the processes of a group could not be exchanged: another one left, or the network did.

    For parallel/voice.py, which makes an error of it that a person can read.
    """
