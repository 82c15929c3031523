"""Chat templates from strangers: each is tried with limits before it is used, and what is wrong is said in a line."""

# ruff: noqa: E501 (a template is a line)

import os
import re
import time
from pathlib import Path

import pytest
from made_tokenizers import CHATML, byte_bpe

from dorakit.data.trial import try_template
from dorakit.errors import DataError, ResourceError

LOOP = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
# What the sandbox of transformers forbids, each of which is an error and not an empty text.
FORBIDDEN = {
    "subclasses": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "access to attribute '__class__' of a str is unsafe"),
    "format": ("{{ ('{0.__class__}'|attr('format'))(messages) }}", "access to attribute '__class__' of a list is unsafe"),
    "format of nothing": ("{{ ('{0.__class__}'|attr('format'))(x) }}", "access to attribute '__class__' of a"),
    "globals of a function": ("{{ raise_exception.__globals__ }}", "access to attribute '__globals__' of a function is unsafe"),
    "through a filter": ("{{ ['']|map(attribute='__class__')|list }}", "access to attribute '__class__' of a str is unsafe"),
    "what is given cannot be changed": ("{{ messages.append(messages) }}", "is not safely callable|access to attribute 'append'"),
    "nor its turns": ("{{ messages[0].update(role='x') }}", "is not safely callable|access to attribute 'update'"),
}  # fmt: skip
COSTLY = {
    "a long range": ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    "long ranges": ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "more than 2 seconds"),
    "a large power": ("{{ 9**(9**9) }}", "more than 2 seconds|MiB of memory"),
    "a long text": ("{{ 'x' * 10**9 }}", "more than 256 MiB of memory"),
    "a long list": ("{{ ([0] * 10**9)|length }}", "more than 256 MiB of memory"),
    "doubling": ("{% set n = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "MiB of memory"),
    "a padded text": ("{{ '%0999999999d' % 1 }}", "more than 256 MiB of memory"),
    "much text": ("{{ 'x' * 2000000 }}", "it writes 2,000,000 characters for 4 short turns"),
    "a macro that calls itself": ("{% macro f(x) %}{{ f(x) }}{% endmacro %}\n{{ f(1) }}", "it calls itself without end"),
    "division by zero": ("{{ 1 // 0 }}", "division|modulo"),
}  # fmt: skip


def said(template: str) -> str:
    with pytest.raises(DataError) as caught:
        try_template(byte_bpe(template=template), "data.chat_template t.jinja")
    return str(caught.value)


@pytest.mark.parametrize(("template", "message"), (FORBIDDEN | COSTLY).values(), ids=FORBIDDEN | COSTLY)
def test_a_template_that_cannot_be_used(template, message, monkeypatch):
    """Planted bugs caught: the sandbox is left out; a limit is left out; an unsafe attribute counts as undefined."""
    started, fork = [], os.fork
    monkeypatch.setattr(os, "fork", lambda: started.append(fork()) or started[-1])
    began = time.monotonic()
    found = said(template)
    assert found.startswith("data.chat_template t.jinja cannot be used: ")
    assert re.search(message, found), found
    assert "\n  mend it, set data.chat_template to another one" in found
    assert time.monotonic() - began < 15
    assert len(started) == 1 and not Path(f"/proc/{started[0]}").exists()  # nothing runs on, nothing waits to be reaped


def test_the_line_is_named():
    assert "unexpected '}' (line 3 of the template)" in said("{# one #}\n\n{{ messages }\n")
    assert "is unsafe (line 2 of the template)" in said("x\n{{ ''.__class__ }}")
    assert "Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000). (line 2" in said(
        "x\n{% for i in range(10**6) %}x{% endfor %}"
    )


def test_a_template_that_writes_nothing_of_the_turns():
    """Such a template wants parts where dorakit gives texts; its answers would be trained as empty ones."""
    parts = "{% for m in messages %}{{ m.role }}{% for part in m.content %}{{ part['text'] }}{% endfor %}{% endfor %}"
    assert "it writes nothing of what the user and the assistant say" in said(parts)


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        "{% generation %}{{ messages[0]['content'] }}{% endgeneration %}",
        "{{ messages[0]['content'] }}{{ strftime_now('%Y') }}{% for m in messages %}{% break %}{% endfor %}",
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('a system turn first') }}{% endif %}",
        "{{ tools[0]['name'] + 'x' }}",
        None,
    ],
)
def test_what_a_template_may_do(template):
    """What only some rows need is judged by the rows."""
    try_template(byte_bpe(template=template), "t")


def test_each_template_of_several_is_tried():
    tokenizer = byte_bpe()
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ 'x' * 10**9 }}"}
    with pytest.raises(DataError, match="MiB of memory"):
        try_template(tokenizer, "t")


def test_a_template_is_tried_once(monkeypatch):
    tokenizer = byte_bpe(template=CHATML + "{# once #}")
    try_template(tokenizer, "t")
    monkeypatch.setattr(os, "fork", None)
    try_template(tokenizer, "t")


def test_where_no_process_can_be_started(monkeypatch):
    def full():
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "fork", full)
    with pytest.raises(ResourceError, match="t cannot be tried, for no process can be started: Cannot allocate memory"):
        try_template(byte_bpe(template=CHATML + "{# unforked #}"), "t")
