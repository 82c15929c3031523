"""The commands of dorakit in a text that it prints or writes."""

import ast
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import typer
from typer.exceptions import Exit, TyperException

from dorakit.cli.app import app
from dorakit.recipe.fields import is_free_mapping, type_at

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "recipes/README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
CLI = typer.main.get_command(app)
PLACES = {"data", "base", "template"}  # what --accept-change takes beside keys

# Modules that `dorakit export` alone goes through.
EXPORT_MODULES = (
    "trained",
    "outputs",
    "to_gguf",
    "gguf_file",
    "gguf_rope",
    "gguf_vocabulary",
    "plain_lora",
    "rank_search",
)

# Of a message: a command in backquotes, after a colon, or on a line of its own. \0 stands for what is put in at run time,
# and \1 for a whole command.
_HINT = re.compile(
    r"`dorakit (?:--\w+ )?[a-z.\0\x01]|(?:^ +|: +)dorakit [a-z\0]|^dorakit (?:\0|[a-z]+) (?:\0|--)", re.MULTILINE
)


def commands_in(text):
    """Commands between backquotes, after a colon, and on indented lines of their own."""
    return re.findall(r"`(dorakit [^`]+)`", text) + re.findall(r"(?:^ +|: +)(dorakit [^;\n]+)", text, re.MULTILINE)


def hints(file: Path) -> Iterator[str]:
    """A regular expression for each message of a module that names a command; help and other docstrings are none."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    inside |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        texts = [part.value if isinstance(part, ast.Constant) else _put_in(part) for part in parts]
        if all(isinstance(text, str) for text in texts) and _HINT.search("".join(texts)):
            yield re.sub(r"dorakit\\ \x01|\0", ".*", re.escape("".join(texts)))


def _put_in(part: ast.AST) -> str | None:
    if not isinstance(part, ast.FormattedValue):
        return None
    is_command = isinstance(part.value, ast.Call) and getattr(part.value.func, "attr", "") == "command"
    return "dorakit \x01" if is_command else "\0"


def parse(command):
    """Read a command as the shell and the command line would; what is wrong with it is raised."""
    program, name, *arguments = shlex.split(command)
    assert program == "dorakit"
    assert name in CLI.commands, command
    CLI.commands[name].make_context(name, arguments)


def text_of(page: Path) -> str:
    """A page without the lines that say how a command is used, as Typer writes them."""
    return re.sub(r"^\$ dorakit.*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


def blocks(text: str) -> Iterator[str]:
    """The lines of fenced and indented code, those that end in a backslash joined."""
    for fenced, indented in re.findall(r"^```\w*\n(.*?)^```|((?:^    [^\n]*\n)+)", text, re.MULTILINE | re.DOTALL):
        yield from re.sub(r"\\\n", " ", fenced or indented).splitlines()


def inline(text: str) -> list[str]:
    """What stands between backticks in running text."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```|^    [^\n]*$", "", text, flags=re.MULTILINE | re.DOTALL))


def calls(line: str) -> list[list[str]]:
    """The arguments of each call of dorakit in a line of shell; of alternatives the first, of what is optional all."""
    line = re.split(r"(?:^|\s)#(?:\s|$)|(?<![|&;\s])\s{3,}(?![-\s])", line.strip())[
        0
    ]  # a comment, or an explanation in a column
    line = re.sub(r"\[(--[^\]]*)\]", r"\1", line.replace("\\|", "|"))
    line = re.sub(r"(?<=[\w-])\|[^\s`]+", "", line)
    if "dorakit" not in line:
        return []
    shell = shlex.shlex(line, posix=True, punctuation_chars=True)
    shell.whitespace_split, shell.commenters = True, ""
    simple: list[list[str]] = [[]]
    for token in shell:
        if token.strip("();<>|&"):
            simple[-1].append(token)
        else:
            simple.append([])
    found = []
    for words in simple:
        while words and (words[0] in ("if", "then", "else", "do", "$", "-", "run:") or re.match(r"\w+=", words[0])):
            words = words[1:]
        if words[:1] and Path(words[0]).name == "dorakit":
            found.append(words[1:])
        elif "-m" in words[:-1] and words[words.index("-m") + 1] == "dorakit":
            found.append(words[words.index("-m") + 2 :])
    return found


def fault(arguments: list[str], *, is_mention: bool) -> str:
    """Why the command line refuses to be parsed; "" where it does not. A mention in running text may leave arguments out."""
    if not arguments:
        return ""
    try:
        context = CLI.make_context("dorakit", list(arguments))
        rest = [*context._protected_args, *context.args]
        if not rest:
            return ""
        _, command, rest = CLI.resolve_command(context, rest)
        command.make_context(command.name, rest, parent=context)
    except Exit:  # --help, --version
        return ""
    except TyperException as error:
        is_short = type(error).__name__ in ("MissingParameter", "BadOptionUsage")  # `dorakit train --from`
        return "" if is_short and is_mention else error.format_message() or type(error).__name__
    return "" if all(map(is_setting, settings(arguments))) else f"{settings(arguments)} is not all in the schema"


def settings(arguments: list[str]) -> list[str]:
    """The keys that --set and --accept-change name; not the files of results."""
    named = [value for option, value in pairwise(arguments) if option in ("--set", "--accept-change")]
    return [value.partition("=")[0] for value in named if "=" in value or "/" not in value]


def is_setting(key: str) -> bool:
    """Whether the schema has a dotted key; KEY, section.key and the like stand for any."""
    path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
    free = any(is_free_mapping(path[:end]) for end in range(1, len(path)))
    return key in PLACES or key.isupper() or key == "section.key" or free or type_at(path) is not None
