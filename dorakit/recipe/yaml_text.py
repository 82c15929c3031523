"""YAML 1.2 text with positions: a file becomes a tree of nodes, each knowing the place it was written at.

PyYAML's scanner and parser deliver the events; everything after that is here, because PyYAML resolves scalars by
YAML 1.1 (`2e-4` a text, `no` a boolean, `12:30` a number) and takes the last of two equal keys in silence. Scalars
follow the YAML 1.2 core schema. Tags, anchors, aliases, merge keys, duplicate keys and second documents are problems.
Nothing is expanded, and size and depth are bounded, so hostile text costs no more than its length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import yaml

from dorakit.errors import Problem
from dorakit.recipe.scalars import scalar
from dorakit.recipe.tree import Node, Place, Scalar
from dorakit.secrets import secrets_in

MAX_BYTES = 256 * 1024
MAX_DEPTH = 24
MAX_PROBLEMS = 40
_LINE_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")
# What PyYAML's reader refuses; found here first, to say it with a place.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_KEEP_SECRET = "remove it (a run keeps its recipe); for the hub use `hf auth login`, or the environment's HF_TOKEN"


def decode(content: bytes, file: str, size: int) -> tuple[str, list[Problem]]:
    """Decode a recipe's bytes, which must be UTF-8 without a byte order mark; `size` is of the whole file."""
    if len(content) > MAX_BYTES:
        return "", [Problem(f"{size:,} bytes are too many for a recipe (at most {MAX_BYTES:,})", file)]
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:4]:
        return "", [Problem("the file is UTF-16 or UTF-32 (byte 0)", file, hint="save it as UTF-8")]
    if content.startswith(b"\xef\xbb\xbf"):
        hint = "save it as UTF-8 without BOM"
        return "", [Problem("the file starts with a byte order mark (byte 0)", file, hint=hint)]
    try:
        return content.decode("utf-8"), []
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"byte 0x{content[error.start]:02x} at offset {error.start} (line {line}) is not UTF-8"
        return "", [Problem(message, file, hint="save it as UTF-8")]


def parse(text: str, template: Place, resolve: Callable[[str], Scalar] = scalar) -> tuple[Node | None, list[Problem]]:
    """Parse one YAML document.

    Args:
        text: The document.
        template: Where the text comes from; every place is this one with a line and a column.
        resolve: What a plain scalar is.

    Returns:
        The tree, None where the text is empty or broken, and all problems found.
    """
    lines = _LINE_BREAK.split(text)
    builder = _Builder(lines, template, resolve)
    if bad := _UNPRINTABLE.search(text):
        before = _LINE_BREAK.split(text[: bad.start()])
        place = builder.place(len(before) - 1, len(before[-1]), 1)
        return None, [place.problem(f"character U+{ord(bad.group()):04X} cannot stand in YAML", "remove it")]
    if found := secret_problems(text, template, is_whole=True):
        return None, found  # nothing else is said about this file: it might quote the secret, cut short
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if not builder.take(event) or len(builder.problems) >= MAX_PROBLEMS:
                break
    except yaml.MarkedYAMLError as error:
        builder.problems.append(_syntax_problem(error, builder))
        return None, builder.problems
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # Escapes such as "\UFFFFFFFF" surface as ValueError from chr().
        builder.problems.append(template.problem(f"not valid YAML: {str(error).splitlines()[0]}"))
        return None, builder.problems
    return builder.root, builder.problems


def secret_problems(text: str, place: Place, *, is_whole: bool = False) -> list[Problem]:
    """Refuse text that holds what looks like a secret; the secret itself is not repeated.

    With `is_whole` the text is a file's, comments included, and each problem has its own line and column.
    """
    problems = []
    for start, kind in islice(secrets_in(text), MAX_PROBLEMS):
        here = replace(place, source_line="")
        if is_whole:
            before = _LINE_BREAK.split(text[:start])
            here = replace(place, line=len(before), column=len(before[-1]) + 1)
        problems.append(here.problem(f"this looks like {kind}, and no secret belongs in a recipe", _KEEP_SECRET))
    return problems


class _Open:
    """A mapping or list whose end has not been seen yet."""

    def __init__(self, is_mapping: bool, place: Place, key_place: Place | None):
        self.is_mapping, self.place, self.key_place = is_mapping, place, key_place
        self.entries: dict[str, Node] = {}
        self.items: list[Node] = []
        # The text is None for an alias or a merge key, whose value goes nowhere.
        self.key: tuple[str | None, Place] | None = None
        self.takes_value = False


class _Builder:
    """Builds the tree from parser events without recursion."""

    def __init__(self, lines: list[str], template: Place, resolve: Callable[[str], Scalar]):
        self.lines, self.template, self.resolve = lines, template, resolve
        self.root: Node | None = None
        self.problems: list[Problem] = []
        self.stack: list[_Open] = []
        self.documents = 0

    def place(self, line: int, column: int, length: int) -> Place:
        """The place at a 0-based line and column."""
        source_line = self.lines[line] if line < len(self.lines) else ""
        return replace(
            self.template,
            line=line + 1,
            column=column + 1,
            length=max(1, length),
            source_line=source_line,
            source=f"{self.template.file}:{line + 1}",
        )

    def span(self, event: yaml.Event) -> Place:
        """The place of an event, underlined to its end or its line's."""
        start, end = event.start_mark, event.end_mark
        assert start is not None and end is not None
        line_end = len(self.lines[start.line].rstrip()) if start.line < len(self.lines) else start.column
        last = end.column if end.line == start.line else line_end
        return self.place(start.line, start.column, last - start.column)

    def take(self, event: yaml.Event) -> bool:
        """Take one event; False when there is no point in going on."""
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                message = "a second document starts here; a recipe is one document"
                self.problems.append(self.span(event).problem(message, "remove the '---' line"))
                return False
        elif isinstance(event, yaml.AliasEvent):
            place = self.span(event)
            self.problems.append(
                place.problem(f"alias '*{str(event.anchor)[:60]}' cannot be used here", "write the value out")
            )
            self.put(None, place)
        elif isinstance(event, yaml.ScalarEvent):
            self.check_node(event)
            self.put_scalar(event)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self.check_node(event)
            return self.open(event)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            self.close()
        return True

    def check_node(self, event: Any) -> None:
        if event.anchor is not None:
            message = f"anchor '&{str(event.anchor)[:60]}' cannot be used here"
            self.problems.append(self.span(event).problem(message, "write the value out where it is needed"))
        if event.tag is not None:
            tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
            self.problems.append(self.span(event).problem(f"tag '{tag[:60]}' cannot be used here", "remove the tag"))

    def open(self, event: Any) -> bool:
        place = replace(self.span(event), length=1)
        if len(self.stack) >= MAX_DEPTH:
            self.problems.append(place.problem(f"nested more than {MAX_DEPTH} levels deep"))
            return False
        if self.stack and self.stack[-1].is_mapping and not self.stack[-1].takes_value:
            self.problems.append(place.problem("a key must be text, not a list or a mapping"))
            return False
        key_place = self.stack[-1].key[1] if self.stack and self.stack[-1].key else None
        self.stack.append(_Open(isinstance(event, yaml.MappingStartEvent), place, key_place))
        return True

    def close(self) -> None:
        done = self.stack.pop()
        self.put(done.entries if done.is_mapping else done.items, done.place)

    def put_scalar(self, event: yaml.ScalarEvent) -> None:
        place, is_plain = self.span(event), event.style is None
        text = event.value
        if any("\ud800" <= c <= "\udfff" for c in text):
            self.problems.append(place.problem("an escape that is half of a character pair", "write the character"))
            text = ""
        elif found := secret_problems(text, place):
            self.problems += found  # one that is spelled with escapes, and so was not seen in the file's text
            text = ""
        if self.stack and self.stack[-1].is_mapping and not self.stack[-1].takes_value:
            self.put_key(text, place, is_plain)
            return
        value: Scalar = text
        if is_plain:
            try:
                value = self.resolve(text)
            except ValueError as error:
                self.problems.append(place.problem(str(error)))
        self.put(value, place, text, not is_plain)

    def put_key(self, text: str, place: Place, is_plain: bool) -> None:
        mapping = self.stack[-1]
        key: str | None = text
        if text == "<<" and is_plain:
            key = None
            hint = "write the keys out, or use `extends`"
            self.problems.append(place.problem("merge key '<<' cannot be used here", hint))
        elif text in mapping.entries:
            first = mapping.entries[text].key_place.line
            self.problems.append(
                place.problem(f"duplicate key '{text[:60]}' (lines {first} and {place.line})", "keep one")
            )
        mapping.key, mapping.takes_value = (key, place), True

    def put(
        self, value: Scalar | list[Node] | dict[str, Node], place: Place, text: str = "", quoted: bool = False
    ) -> None:
        if not self.stack:
            self.root = Node(value, place, place, text, quoted)
            return
        parent = self.stack[-1]
        if not parent.is_mapping:
            parent.items.append(Node(value, place, place, text, quoted))
        elif not parent.takes_value:  # an alias where a key should be
            parent.key, parent.takes_value = (None, place), True
        else:
            assert parent.key is not None
            key, key_place = parent.key
            if key is not None and key not in parent.entries:
                # An empty value has no place of its own: the key's is where to look.
                shown = key_place if value is None and not text else place
                parent.entries[key] = Node(value, shown, key_place, text, quoted)
            parent.key, parent.takes_value = None, False


def _syntax_problem(error: yaml.MarkedYAMLError, builder: _Builder) -> Problem:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return builder.template.problem(f"not valid YAML: {error.problem}")
    line, column = mark.line, mark.column
    found, hint = next(_explain_syntax(error, builder), (f"not valid YAML: {error.problem}", ""))
    return builder.place(line, column, 1).problem(found, hint)


def _explain_syntax(error: yaml.MarkedYAMLError, builder: _Builder) -> Iterator[tuple[str, str]]:
    """Say what the common syntax errors mean, in words for the person with the file open."""
    said = f"{error.context or ''} {error.problem or ''}"
    since = f" (opened on line {error.context_mark.line + 1})" if error.context_mark else ""
    if "'\\t'" in said:
        yield "a tab cannot be used to indent or separate", "use spaces"
    if starter := re.search(r"found character '(.)' that cannot start any token", said):
        yield f"text cannot start with '{starter.group(1)}'", "put the text in quotes"
    if "mapping values are not allowed" in said:
        yield "a ':' that cannot be a key's", "check the indentation, or put the text in quotes"
    if "could not find expected ':'" in said:
        yield (
            "a key without ':'" + (f" (line {error.context_mark.line + 1})" if error.context_mark else ""),
            "write key: value",
        )
    if "quoted scalar" in said and "end of stream" in said:
        yield f"a quote that is never closed{since}", ""
    if "unknown escape character" in said:
        yield "an unknown escape in double quotes", "use single quotes, or write \\\\ for a backslash"
    if "expected <block end>" in said:
        yield "this line does not line up with those above", "check the indentation"
    if "flow sequence" in said:
        yield f"a list that is never closed, or a missing ','{since}", "expected ',' or ']'"
    if "flow mapping" in said:
        yield f"a mapping that is never closed, or a missing ','{since}", "expected ',' or '}'"
    if "undefined tag handle" in said or "while scanning a tag" in said or "while parsing a tag" in said:
        yield "a tag cannot be used here", "remove it, or put the text in quotes"
    if "scanning an anchor" in said or "scanning an alias" in said:
        yield "text cannot start with '&' or '*'", "put the text in quotes"
