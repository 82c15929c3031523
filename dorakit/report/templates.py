"""From a template of a package to the text of a page, in which nothing that is put in can be anything but text."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from jinja2 import FunctionLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

import dorakit
from dorakit.report.text import clipped


def fill(package: str, *, text: int, title: str, **content: Any) -> str:
    """The page that page.html.jinja of a package makes; frame, parts and style are those of dorakit.report.

    Args:
        package: Where its template is.
        text: Characters that each text is cut to.
        title: Of the page.
        content: What the template names.
    """
    template = _environment(package, text).get_template("page.html.jinja")
    return template.render(title=title, version=dorakit.__version__, **content)


def _environment(package: str, text: int) -> ImmutableSandboxedEnvironment:
    """Jinja's, in which every text that is put in is cut to so many characters, made harmless, and escaped."""

    def fit(value: Any) -> Any:
        return clipped(value, text) if isinstance(value, str) and not isinstance(value, Markup) else value

    return ImmutableSandboxedEnvironment(
        autoescape=True,
        finalize=fit,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda name: _source(package, name)),
    )


@cache
def _source(package: str, name: str) -> str:
    home = package if name == "page.html.jinja" else "dorakit.report"
    return (resources.files(home) / name).read_text(encoding="utf-8")
