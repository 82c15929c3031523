"""Text that looks like a secret: refused in recipes, hidden in whatever is shown.

A recipe is copied into its run, and runs are handed on; a token in one would go with them. Only the shape of a text is
judged, so this knows the tokens of well-known services and passwords in URLs, not every secret there is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

HIDDEN = "[hidden]"
# Every repetition is bounded or of one character class, so that no text takes more than time linear in its length.
_SHAPES = {
    "a Hugging Face token": r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{16,}",
    "an API key": r"(?<![A-Za-z0-9])sk-(?=[A-Za-z_-]{0,80}[0-9])[A-Za-z0-9_-]{20,}",
    "a GitHub token": r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})",
    "an AWS access key": r"(?<![A-Za-z0-9])A(?:KIA|SIA)[0-9A-Z]{16}",
    "a password in a URL": r"(?<=://)[^\s/@:\"']{0,200}:[^\s/@\"']{1,500}(?=@)",
}
_SHAPE = re.compile("|".join(f"({shape})" for shape in _SHAPES.values()))
_NAME = (
    r"(?:[a-z0-9]{1,20}[_-]){0,4}(?:token|passwd|password|secret|credentials?|"
    r"api[_-]?key|access[_-]?key|secret[_-]key)"
)
# A key and its value, as in YAML or in `--set`. In prose "token:" begins many a sentence, so that names of one word
# count in recipes only.
_SETTING = re.compile(rf"((?<![A-Za-z0-9_-]){_NAME}[\"']?[ \t]{{0,20}}[:=][ \t]{{0,20}})([^\s,}}\]]+)", re.IGNORECASE)
_NAMED = re.compile(
    r"((?<![A-Za-z0-9])(?:hf|hub|auth|access|api|bearer|wandb)[_-](?:token|key)[\"']?[ \t]{0,20}[:=][ \t]{0,20})"
    r"([^\s,}\]]+)",
    re.IGNORECASE,
)


def secrets_in(text: str) -> Iterator[tuple[int, str]]:
    """Where a text holds what looks like a secret, and what each one looks like."""
    kinds = list(_SHAPES)
    for found in _SHAPE.finditer(text):
        yield found.start(), kinds[(found.lastindex or 1) - 1]


def redacted(text: str) -> str:
    """The text with `[hidden]` in the place of what looks like a secret, or is named as one."""
    return _NAMED.sub(rf"\1{HIDDEN}", _SHAPE.sub(HIDDEN, text))


@lru_cache(maxsize=1)  # one line may be a whole recipe and have many mistakes, each of which shows it
def without_values(line: str) -> str:
    """A line of a recipe, or a `--set`, with the values hidden of keys that are called token, password and the like."""
    return _SETTING.sub(rf"\1{HIDDEN}", redacted(line))
