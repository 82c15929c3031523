"""Every page: its commands parse, its links and anchors lead somewhere, the scripts and recipe keys that it names exist."""

import ast
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from typer.exceptions import Exit, TyperException

from dorakit import Recipe
from dorakit.cli.app import app
from dorakit.errors import RecipeError
from dorakit.recipe.fields import is_free_mapping, type_at
from dorakit.recipe.schema import Recipe as Schema

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "recipes/README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
CLI = typer.main.get_command(app)

# What is written on purpose though it would not parse, with the reason. One that parses must go.
EXCEPTIONS = {
    "--offline COMMAND ...": "COMMAND stands for any command",
}
PLACES = {"data", "base", "template"}  # what --accept-change takes beside keys

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


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


@each_page
def test_commands_parse(page):
    """Planted bug caught: an option that was renamed, left in a page."""
    text = page.read_text(encoding="utf-8")
    if page.name == "cli.md":  # how a command is used, as Typer writes it
        text = re.sub(r"^\$ dorakit.*$", "", text, flags=re.MULTILINE)
    wrong = []
    for lines, is_mention in ((blocks(text), False), (inline(text), True)):
        for line in lines:
            for call in calls(line):
                why = fault(call, is_mention=is_mention)
                if why and " ".join(call) not in EXCEPTIONS:
                    wrong.append(f"{line.strip()}: {why}")
    assert not wrong, "\n".join(wrong)


def test_exceptions_are_needed():
    for line in EXCEPTIONS:
        assert fault(line.split(), is_mention=False), line


def test_calls_are_found():
    """What the reading of pages must see, so that no page passes for want of being read."""
    assert calls('echo "x" |   dorakit chat runs/a --system "a: b" --max-new-tokens 6') == [
        ["chat", "runs/a", "--system", "a: b", "--max-new-tokens", "6"]
    ]
    assert calls("CUDA_VISIBLE_DEVICES=0 dorakit train a.yaml &") == [["train", "a.yaml"]]
    assert calls("torchrun --standalone -m dorakit train RECIPE       # the same") == [["train", "RECIPE"]]
    assert calls("dorakit export RUN --to gguf [--type f16|bf16]   # RUN/gguf") == [
        ["export", "RUN", "--to", "gguf", "--type", "f16"]
    ]
    assert calls("if true; then dorakit runs; fi") == [["runs"]]
    assert fault(["train", "--no-such"], is_mention=True)
    assert fault(["train", "--from"], is_mention=False) and not fault(["train", "--from"], is_mention=True)
    assert fault(["train", "a.yaml", "b.yaml"], is_mention=True)
    assert fault(["merge"], is_mention=False) and not fault(["merge"], is_mention=True)
    assert fault(["train", "a.yaml", "--set", "adapter.rnak=1"], is_mention=False)
    assert sum(len(calls(line)) for page in PAGES for line in blocks(page.read_text(encoding="utf-8"))) > 100


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_links_lead_somewhere(page):
    """Planted bug caught: a heading that was renamed under a link."""
    wrong = []
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        if not there.exists() or (anchor and anchor not in slugs(there)):
            wrong.append(target)
    assert not wrong, wrong


@each_page
def test_scripts_exist(page):
    named = re.findall(r"\b((?:scripts|docker)/[\w./-]+\.(?:sh|py|sbatch))", page.read_text(encoding="utf-8"))
    assert not [script for script in named if not (ROOT / script).is_file()]


@each_page
def test_recipe_keys_exist(page):
    """Every `section.key` in backticks. Planted bug caught: a field that was renamed, left in a page."""
    keys = re.compile(rf"({'|'.join(Schema.model_fields)})((?:\.\w+)+)")
    files = (".json", ".jsonl", ".md", ".py", ".yaml", ".html")
    named = [match[0] for code in inline(page.read_text(encoding="utf-8")) if (match := keys.match(code))]
    assert not [key for key in named if not key.endswith(files) and not is_setting(key)]


def test_messages_name_anchors_that_exist():
    """Planted bug caught: a question of docs/faq.md that was renamed, still named by a message."""
    named = {
        match
        for file in (ROOT / "dorakit").rglob("*.py")
        for match in re.findall(r"(?<![\w/])docs/(\w+\.md)(?:#([\w-]+))?", file.read_text(encoding="utf-8"))
    }
    asked = {"out-of-memory", "loss-is-nan", "it-never-stops", "it-answers-as-before", "hub-models-and-tokens"}
    assert {anchor for page, anchor in named if page == "faq.md"} >= asked
    wrong = [
        f"docs/{page}#{anchor}"
        for page, anchor in named
        if not (ROOT / "docs" / page).is_file() or (anchor and anchor not in slugs(ROOT / "docs" / page))
    ]
    assert not wrong, wrong


def test_every_page_is_listed():
    listed = set(re.findall(r"\]\((\w+\.md)", (ROOT / "docs/README.md").read_text(encoding="utf-8")))
    assert listed >= {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}


def test_every_recipe_is_listed():
    listed = set(re.findall(r"\]\(([\w.-]+\.yaml)\)", (ROOT / "recipes/README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in (ROOT / "recipes").glob("*.yaml")}


def test_the_recipe_and_the_error_of_recipes_md(tmp_path, monkeypatch):
    """The recipe as printed is valid, and misspelt as printed it gives the error that is printed."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    recipe = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1]
    Path("my.yaml").write_text(recipe, encoding="utf-8")
    assert Recipe.from_yaml("my.yaml").adapter.mode == "qdora"
    shown = re.search(r"```\n(my\.yaml:\d+.*?)```", text, re.DOTALL)[1]
    Path("my.yaml").write_text(recipe.replace("  rank: ", "  rnak: "), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        Recipe.from_yaml("my.yaml")
    assert str(caught.value).strip() == shown.strip()


def hints(source: Path) -> Iterator[tuple[int, str]]:
    """Commands in the texts of a module: in backquotes, or indented on a line of their own. What is put in at run time is 1."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(
            part.value
            if isinstance(part, ast.Constant) and isinstance(part.value, str)
            else "1"
            if isinstance(part, ast.FormattedValue)
            else ""
            for part in parts
        )
        for command in re.findall(
            r"`(dorakit [^`\n]+)`|^\s+(?:next:\s+)?(dorakit [a-z]+ [^\n`]*)$", text, re.MULTILINE
        ):
            yield getattr(node, "lineno", 0), next(filter(None, command))


def test_commands_in_messages_parse():
    """Every command that a message or a docstring of dorakit names. Planted bug caught: an option renamed, but not in a hint."""
    wrong, seen = [], 0
    for source in sorted((ROOT / "dorakit").rglob("*.py")):
        for line, command in hints(source):
            seen += 1
            for call in calls(command):
                # A command or a form that is put in at run time is tested where it is printed (tests/export/test_hints.py).
                is_open = call[0] not in CLI.commands or re.search(r"--to \S*1", command)
                if not is_open and (why := fault(call, is_mention=True)):
                    wrong.append(f"{source.relative_to(ROOT)}:{line}: {command}: {why}")
    assert seen > 60 and not wrong, "\n".join(wrong)
