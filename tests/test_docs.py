"""Every page: its commands parse, its links and anchors lead somewhere, the scripts and recipe keys that it names exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from printed_commands import CLI, PAGES, ROOT, blocks, calls, fault, inline, is_setting, text_of

from dorakit import Recipe
from dorakit.errors import RecipeError
from dorakit.recipe.schema import Recipe as Schema

# What is written on purpose though it would not parse, with the reason. One that parses must go.
EXCEPTIONS = {
    "--offline COMMAND ...": "COMMAND stands for any command",
}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_commands_parse(page):
    """Planted bug caught: an option that was renamed, left in a page."""
    text = text_of(page)
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
