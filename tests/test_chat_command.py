"""`dorakit chat` at a terminal and in a pipe."""

import io
import json
import os
import pty
import re
import select
import signal
import sys
import time

import pytest
from rich.console import Console
from test_terminal import HOSTILE, SHOWN, steers
from typer.testing import CliRunner

from dorakit.cli import answers, app
from dorakit.evaluation import generation
from dorakit.interruptions import interrupts_noted, interrupts_raised

# Hot enough that a random model writes every byte there is.
WILD = ("--temperature", "50", "--max-new-tokens", "200")


def piped(text, *arguments, code=0):
    result = CliRunner().invoke(app.app, ["chat", *map(str, arguments)], input=text)
    assert result.exit_code == code, result.exception
    return result


def test_each_line_of_a_pipe_is_a_turn():
    """Planted bugs caught: a command asked as a text; a context that is not forgotten; the second line lost."""
    result = piped("one\n\ntwo\n/clear\none\n/nosuch\n/quit\nthree\n", "tiny:llama", "--json", "--max-new-tokens", "5")
    turns = [json.loads(line) for line in result.stdout.splitlines()]
    assert [turn["prompt"] for turn in turns] == ["one", "two", "one"]
    assert turns[0] == turns[2] and turns[0]["text"]
    assert set(turns[0]) == {"prompt", "text", "finished", "dropped_turns"}
    assert "no such command: /nosuch" in result.stderr and "> " not in result.stderr


def test_a_pipe_with_a_base(trained):
    """Planted bug caught: the base's answer under the adapter's name."""
    options = {"compare": True, "max_new_tokens": 5, "quiet": True}
    flags = [trained("lora").path, "--compare", "--max-new-tokens", "5"]
    [turn] = [json.loads(line) for line in piped("1 plus 3 =\n", *flags, "--json").stdout.splitlines()]
    [expected] = generation.answer_prompts(str(trained("lora").path), ["1 plus 3 ="], **options)
    assert (turn["text"], turn["base_text"]) == (expected["text"], expected["base_text"])
    assert turn["text"] != turn["base_text"]
    result = piped("1 plus 3 =\n", *flags)
    assert result.stdout.startswith("base:\n") and "\nadapter:\n" in result.stdout
    assert "rows of format completion, which have no turns" in result.stderr
    assert not steers(result.stdout)


def test_bytes_of_a_model_do_not_steer_the_terminal():
    """Planted bug caught: pieces printed as the model wrote them."""
    out = piped("go\n", "tiny:llama", *WILD).stdout
    assert not steers(out)
    assert re.search(r"\\x[01][0-9a-f]", out)


@pytest.mark.parametrize("width", [60, 100])
def test_pieces_of_a_hostile_answer(width, monkeypatch):
    """Planted bug caught: the columns show what the blocks would spell out."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    console = Console(file=out, force_terminal=True, width=width, height=20, no_color=True)
    monkeypatch.setattr(answers, "Console", lambda **_: console)
    screen = answers.screen(["base", "adapter"])
    for name in ("base", "adapter"):
        screen.open(name)
        for character in HOSTILE:
            screen.add(character)
    screen.close()
    shown = re.sub(r"\x1b\[[\d;]*[mKA]|\x1b\[\?25[lh]|\r", "", out.getvalue())  # what rich and the columns need
    assert not steers(shown)
    if width == 60:
        assert shown == f"base:\n{SHOWN}\nadapter:\n{SHOWN}\n"
    else:
        assert re.search("┃ base +┃ adapter +┃", shown) and shown.count(r"\x1b]0;owned\x07\x1b[2J") >= 4


def test_lines_that_are_no_text():
    """Planted bug caught: a traceback of the tokenizer, called a bug of dorakit."""
    result = CliRunner().invoke(app.app, ["chat", "tiny:llama"], input=b"\xff\xfe\n")
    assert result.exit_code == 1 and "is no UTF-8 text" in str(result.exception)


def test_options_that_cannot_be_honoured():
    """Planted bug caught: a seed that changes nothing, taken in silence."""
    result = CliRunner().invoke(app.app, ["chat", "tiny:llama", "--seed", "3"])
    assert "at temperature 0 nothing is drawn" in str(result.exception)


def test_an_impatient_ctrl_c_is_no_more_than_one():
    """Planted bugs caught: the second press leaves the chat; none is heard at the prompt, where a line is read."""
    with interrupts_noted() as received:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT] * 2
        with pytest.raises(KeyboardInterrupt), interrupts_raised():
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert len(received) == 3


class Terminal:
    """`dorakit ...` in a process of its own at a pseudo-terminal."""

    def __init__(self, *arguments):
        self.seen = ""
        self.pid, self.side = pty.fork()
        if self.pid == 0:
            # Anew, and not as a fork: torch's thread pool does not always live through one.
            os.environ["TERM"] = "dumb"  # readline would mark pasted text with escape codes
            os.execv(sys.executable, [sys.executable, "-m", "dorakit", *map(str, arguments)])

    def wait_for(self, text, seconds=60):
        """Read until a text appears; gives what came up to there."""
        until = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < until, self.seen
            if select.select([self.side], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.side, 65536).decode(errors="replace")
                except OSError:  # it is at its end
                    pytest.fail(f"it ended without {text!r}: {self.seen}")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text):
        os.write(self.side, text.encode())

    def leave(self):
        """Wait for its end; gives the exit code and what was not yet read."""
        while True:
            try:
                self.seen += os.read(self.side, 65536).decode(errors="replace")
            except OSError:
                break
        os.close(self.side)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), self.seen


def test_at_a_terminal_ctrl_c_stops_the_answer_and_not_the_chat():
    """Planted bugs caught: Ctrl-C leaves the chat, in an answer or at the prompt; it waits for the end of the answer."""
    chat = Terminal("chat", "tiny:llama", "--max-new-tokens", "8000")
    chat.wait_for("> ")
    chat.type("Hi\n")
    chat.wait_for("Hi\r\n")
    time.sleep(0.5)
    chat.type("\x03")
    answer = chat.wait_for("stopped\r\n")
    assert answer.strip("^C\r\n")
    chat.wait_for("> ")
    chat.type("half a li")
    chat.wait_for("half a li")
    time.sleep(0.3)  # Python's input misses a signal that comes between two looks at the line
    chat.type("\x03")
    chat.wait_for("/quit or Ctrl-D leaves\r\n> ")
    chat.type("/help\n")
    assert "/clear" in chat.wait_for("stop the answer\r\n> ")
    chat.type("\x04")
    code, rest = chat.leave()
    assert code == 0 and not steers(rest.replace("\r", ""))
