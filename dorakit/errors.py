"""Every error that a person may meet, each with its exit code.

    DorakitError            1  failed while running
    ├── UsageError          2  a command line that cannot be carried out
    ├── RecipeError         2  a recipe with problems, all listed at once
    ├── DataError           2  rows that cannot be read or trained on
    ├── ModelError          2  a base model or an adapter that cannot be used
    ├── RunError            3  a run directory that is locked, changed, corrupt or unfinished
    ├── MachineError        3  this machine lacks something: an extra, a device
    ├── ResourceError       4  out of disk, memory or network
    ├── GateError           5  a gate was not met: non-finite loss, merge receipt, `eval --min`
    ├── Interrupted   130/143  stopped by a signal after saving; resumable
    └── ToldByAnother       *  another process of the group failed first, says why, and gives its exit code

A message says what is wrong, where, the value seen, and what to do. Only dorakit/cli prints and exits. Texts of recipes,
rows and libraries come into messages; `shown` makes them safe to print and to keep.
"""

from __future__ import annotations

from dataclasses import dataclass

from dorakit.secrets import redacted
from dorakit.terminal import printable


class DorakitError(Exception):
    """The root of the tree. `exit_code` is what the command line returns."""

    exit_code = 1

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

    def __init__(self, problems: list[Problem]):
        self.problems = sorted(problems, key=lambda p: (p.file, p.line, p.column))
        super().__init__("\n".join(problem.render() for problem in self.problems))


class DataError(DorakitError):
    """Rows that cannot be read, or from which nothing can be learned."""

    exit_code = 2


class ModelError(DorakitError):
    """A base model, tokenizer or adapter that cannot be used as asked."""

    exit_code = 2


class RunError(DorakitError):
    """A run directory that is locked, changed, corrupt or in the wrong state."""

    exit_code = 3


class MachineError(DorakitError):
    """Something that this machine lacks: an optional package, a device."""

    exit_code = 3


class ResourceError(DorakitError):
    """Out of disk, memory or network."""

    exit_code = 4


class GateError(DorakitError):
    """A gate was not met: non-finite loss, a merge receipt above its limit, `eval --min`."""

    exit_code = 5


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library ran out of memory: CUDA's and the CPU's allocators of torch say it in text only."""
    return isinstance(error, MemoryError) or any(
        text in str(error).lower() for text in ("out of memory", "allocate memory")
    )


class Interrupted(DorakitError):
    """Stopped by a signal after a checkpoint was saved."""

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
