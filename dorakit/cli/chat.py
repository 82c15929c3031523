"""`dorakit chat`."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dorakit.cli import options
from dorakit.errors import DorakitError, UsageError
from dorakit.terminal import json_line

if TYPE_CHECKING:
    from dorakit.evaluation.conversation import Answer, Voice

_HELP = """\
/clear  forget the turns so far
/help   show this
/quit   leave; Ctrl-D does too
Ctrl-C  stop the answer"""
_COMMAND = re.compile(r"/\w+\s*")


def chat(
    target: options.Target,
    compare: options.Compare = False,
    max_new_tokens: options.MaxNewTokens = 512,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = None,
    system: options.System = None,
    base_model: options.BaseModel = None,
    accept_changes: options.AcceptChange = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a turn on stdout, messages on stderr.")
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Talk with a run or a model; with --compare its base answers beside it.

    Inside: /clear, /help, /quit. Off a terminal each line of stdin is a turn.

    Examples:
        dorakit chat runs/latest --compare

        dorakit chat runs/latest --json < questions.txt
    """
    sampling = options.sampling(max_new_tokens, temperature, seed)
    check_text(system or "", "--system")
    from dorakit.evaluation.conversation import open_voices

    voices = open_voices(
        target,
        sampling,
        compare=compare,
        system=system,
        base_model=base_model,
        accept_changes=accept_changes or [],
        quiet=quiet,
    )
    if not sys.stdin.isatty():
        _talk(voices, stops=[], is_typed=False, as_json=as_json)
        return
    from dorakit.interruptions import interrupts_noted, terminated_at_once
    from dorakit.progress import say

    say("/help says what can be typed besides texts", quiet=quiet)
    with terminated_at_once(), interrupts_noted() as stops:
        _talk(voices, stops=stops, is_typed=True, as_json=as_json)


def check_text(text: str, place: str) -> None:
    """Refuse what no tokenizer takes.

    Raises:
        UsageError: Not UTF-8, or with a zero character.
    """
    from dorakit.data.turns import fault_in

    if fault := fault_in(text):
        raise UsageError(f"{place} {text[:60]!r} is no UTF-8 text: it holds {fault}")


def _talk(voices: list[Voice], *, stops: list[int], is_typed: bool, as_json: bool) -> None:
    """Take turns until the input ends or says so; `stops` receives each Ctrl-C that shall not end the program."""
    from dorakit.progress import say

    number = 0
    for line in _lines(is_typed=is_typed, prompt_on_stdout=sys.stdout.isatty() and not as_json):
        if _COMMAND.fullmatch(line):
            if line.strip() == "/quit":
                return
            _obey(line.strip(), voices)
            continue
        if not line.strip():
            continue
        number += 1
        try:
            _turn(voices, line, number, stops=stops, as_json=as_json)
        except DorakitError as error:
            if not is_typed:
                raise
            say(f"error: {error}", quiet=False)


def _obey(command: str, voices: list[Voice]) -> None:
    from dorakit.progress import say

    if command == "/clear":
        for voice in voices:
            voice.forget()
        say("the turns so far are forgotten", quiet=False)
    elif command == "/help":
        say(_HELP, quiet=False)
    else:
        say(f"no such command: {command}; /help lists them, and a blank before it makes it a text", quiet=False)


def _lines(*, is_typed: bool, prompt_on_stdout: bool) -> Iterator[str]:
    """What is typed or piped, line by line, without line ends."""
    from dorakit.interruptions import interrupts_raised

    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # refused by name later on
    if is_typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # gives `input` its line editing
    while True:
        try:
            if is_typed and not prompt_on_stdout:
                print("> ", end="", file=sys.stderr, flush=True)
            with interrupts_raised():
                line = input("> " if is_typed and prompt_on_stdout else "")
        except EOFError:
            if is_typed:
                print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            if not is_typed:
                raise
            print("\n/quit or Ctrl-D leaves", file=sys.stderr)
            continue
        yield line


def _turn(voices: list[Voice], text: str, number: int, *, stops: list[int], as_json: bool) -> None:
    """Ask all voices and show their answers, until something is in `stops`."""
    from dorakit.cli.answers import Screen, screen
    from dorakit.interruptions import explain_out_of_memory
    from dorakit.progress import say

    check_text(text, "the text")
    stops.clear()
    asked = [voice.ask(text) for voice in voices]
    for voice, one in zip(voices, asked, strict=True):
        if one.dropped_turns:
            whose = f" of the {voice.name}" if len(voices) > 1 else ""
            say(f"the context{whose} is full: the oldest turns were dropped, {one.dropped_turns} of them", quiet=False)
    answers: list[Answer] = []
    place = Screen() if as_json else screen([voice.name for voice in voices])
    advice = "/clear forgets the turns so far; a lower --max-new-tokens takes less too"
    with explain_out_of_memory(advice), contextlib.closing(place):
        for voice, one in zip(voices, asked, strict=True):
            if stops:
                break
            place.open(voice.name)
            answers.append(voice.answer(one, number=number, take=place.add, is_stopped=lambda: bool(stops)))
    for line in _notes(voices, answers, is_stopped=bool(stops)):
        say(line, quiet=False)
    if as_json:
        typer.echo(json_line(_as_dict(text, voices, answers)))


def _notes(voices: list[Voice], answers: list[Answer], *, is_stopped: bool) -> list[str]:
    if is_stopped:
        silent = "".join(f"; {voice.name} was not asked" for voice in voices[len(answers) :])
        return [f"stopped{silent}"]
    both = list(zip(voices, answers, strict=True))
    cut = [voice.name for voice, answer in both if not answer.finished]
    empty = [voice.name for voice, answer in both if not answer.text.strip()]
    lines = [f"{_whose(cut, voices)} was cut off: --max-new-tokens allows more"] if cut else []
    return [*lines, *([f"{_whose(empty, voices)} is empty"] if empty else [])]


def _whose(names: list[str], voices: list[Voice]) -> str:
    return f"the answer of {' and '.join(names)}" if len(voices) > 1 else "the answer"


def _as_dict(text: str, voices: list[Voice], answers: list[Answer]) -> dict[str, Any]:
    content: dict[str, Any] = {"prompt": text}
    for voice, answer in zip(voices, answers, strict=False):
        prefix = "base_" if voice is not voices[-1] else ""
        content |= {
            f"{prefix}text": answer.text,
            f"{prefix}finished": answer.finished,
            f"{prefix}dropped_turns": answer.dropped_turns,
        }
    return content
