"""Trying a chat template once, in a child process that may be stopped, before it is used.

A template is a program, and it comes with the base model or the recipe. transformers runs it in jinja2's immutable
sandbox, which keeps it from files and from Python's insides; but nothing keeps it from running for ever, or from
filling memory. So it renders a small conversation first, in a process with limits. A template may still behave
differently on other rows: this finds accidents and the plainly hostile, and is no proof.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import time
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateSyntaxError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import SandboxedEnvironment
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from dorakit.data.quoting import quoted
from dorakit.errors import DataError, ResourceError

SECONDS = 2  # of processor time
MAX_MEMORY = 256 * 1024 * 1024
MAX_TEXT = 1024 * 1024
# For a child that does not even run; of the clock, so long that a busy machine does not come near.
_PATIENCE = 20.0
_ASKED, _ANSWERED = "What is two and two?", "It is four."
_TURNS = [
    {"role": "user", "content": _ASKED},
    {"role": "assistant", "content": _ANSWERED},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Sure."},
]


def try_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Render a small conversation with the tokenizer's chat template, once for each template and name.

    What the template itself refuses (a missing system turn, say) is no fault: the rows will show. A tokenizer without a
    template has nothing to try.

    Args:
        tokenizer: Holds the template.
        name: What messages call the template.

    Raises:
        DataError: It cannot be parsed, reaches for what the sandbox forbids, takes too much time, memory or text, or
            writes nothing of what is said.
        ResourceError: No process can be started.
    """
    stated = tokenizer.chat_template
    special = tuple((key, value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str))
    for template in stated.values() if isinstance(stated, dict) else [stated] if stated else []:
        _try(str(template), name, special)


def line_of(error: BaseException) -> str:
    """` (line 3 of the template)`, as far as jinja tells."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while line is None and trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line} of the template)" if line else ""


@lru_cache(maxsize=64)
def _try(template: str, name: str, special: tuple[tuple[str, str], ...]) -> None:
    reading, writing = os.pipe()
    try:
        # A fork, since it starts in milliseconds, and a new interpreter takes seconds to import what renders. What makes
        # forks unsafe is a lock or a thread pool that the child needs and that belonged to a thread of the parent. This
        # child runs pure Python, on plain data, and leaves by _exit: it touches no tensor, no tokenizer and no device,
        # flushes and frees nothing. Should it hang all the same, it is killed below.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads, see above
            child = os.fork()
    except OSError as error:
        os.close(reading)
        os.close(writing)
        raise ResourceError(f"{name} cannot be tried, for no process can be started: {error.strerror}") from None
    if child == 0:
        _render_and_exit(template, dict(special), writing)
    os.close(writing)
    said, status = _wait(child, reading)
    fault = said if status == 0 else _cause_of_death(status)
    if fault:
        raise DataError(
            f"{name} cannot be used: {fault}\n"
            "  mend it, set data.chat_template to another one, or take a base whose template you trust"
        )


def _wait(child: int, reading: int) -> tuple[str, int]:
    """What the child said, and its status as `waitpid` gives it; killed when its time is over."""
    said = b""
    deadline = time.monotonic() + _PATIENCE
    try:
        while select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
            block = os.read(reading, 65536)
            said += block
            if not block:
                break
        else:
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(reading)
        _, status = os.waitpid(child, 0)
    return said.decode("utf-8", "replace"), status


def _cause_of_death(status: int) -> str:
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number in (signal.SIGXCPU, signal.SIGKILL):
        return f"it takes more than {SECONDS} seconds for a conversation of {len(_TURNS)} short turns"
    return (
        f"rendering {len(_TURNS)} short turns ended its process ({signal.Signals(number).name if number else status})"
    )


def _render_and_exit(template: str, special: dict[str, str], writing: int) -> NoReturn:
    """The child: render, say in a line what is wrong, leave."""
    code = 1
    try:
        gc.disable()  # a collection could free what belongs to a device
        _limit()
        fault = _fault(template, special)
        os.write(writing, quoted(fault, 400).encode("utf-8", "replace") if fault else b"")
        code = 0
    finally:
        os._exit(code)


def _limit() -> None:
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # where there is no /proc, time alone is limited
        # The address space of the parent is part of the child's, and with a GPU it is large.
        mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MAX_MEMORY, mapped + MAX_MEMORY))


def _fault(template: str, special: dict[str, str]) -> str:
    """What is wrong with the template, '' where nothing is."""
    # An unsafe attribute is an undefined value to the sandbox, and an error only where something is done with it.
    SandboxedEnvironment.unsafe_undefined = _refuse  # type: ignore[assignment, method-assign]
    options: dict[str, Any] = {"chat_template": template, **special}
    for turns, add_generation_prompt in ((_TURNS, False), (_TURNS[:1], True)):
        try:
            (text,), _ = render_jinja_template([turns], add_generation_prompt=add_generation_prompt, **options)
        except TemplateSyntaxError as error:
            return f"{error.message}{line_of(error)}"
        except SecurityError as error:
            return f"{error}{line_of(error)}"
        except MemoryError:
            return f"it takes more than {MAX_MEMORY >> 20} MiB of memory"
        except RecursionError as error:
            return f"it calls itself without end{line_of(error)}"
        except (OverflowError, ArithmeticError) as error:
            return f"{error}{line_of(error)}"
        except Exception:  # a template raises what it likes; the rows will show whether it matters
            continue
        if len(text) > MAX_TEXT:
            return f"it writes {len(text):,} characters for {len(turns)} short turns"
        if len(turns) > 1 and _ASKED not in text and _ANSWERED not in text:
            return "it writes nothing of what the user and the assistant say (turns have a text as content)"
    return ""


def _refuse(_: SandboxedEnvironment, obj: Any, attribute: str) -> NoReturn:
    raise SecurityError(f"access to attribute {attribute!r} of a {type(obj).__name__} is unsafe")
