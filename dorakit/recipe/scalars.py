"""Plain scalars: which text is a number, a boolean, nothing, or just text. Recipes are YAML 1.2."""

from __future__ import annotations

import re

from dorakit.recipe.tree import Scalar

_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_WORDS_1_1 = {
    **{form(word): True for word in ("yes", "on") for form in (str.lower, str.capitalize, str.upper)},
    **{form(word): False for word in ("no", "off") for form in (str.lower, str.capitalize, str.upper)},
}
_WITH_UNDERSCORES = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")
# More digits than this are no setting, and Python refuses to convert some thousands of them.
_MAX_DIGITS = 400


def scalar(text: str) -> Scalar:
    """Resolve a plain scalar by the YAML 1.2 core schema.

    Raises:
        ValueError: A number too long to be one.
    """
    if text in _WORDS:
        return _WORDS[text]
    is_int, is_float = _INT.fullmatch(text), _FLOAT.fullmatch(text)
    if not (is_int or is_float or _OCTAL.fullmatch(text) or _HEX.fullmatch(text)):
        return text
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    if is_int:
        return int(text)
    return float(text) if is_float else int(text, 0)


def scalar_1_1(text: str) -> Scalar:
    """Resolve a plain scalar as the toolkits that read with PyYAML do: `yes`, `no`, `on`, `off` and `1_000` of YAML 1.1.

    `2e-4`, which PyYAML takes for text, stays a number: each of them makes one of it.
    """
    if text in _WORDS_1_1:
        return _WORDS_1_1[text]
    return scalar(text.replace("_", "") if _WITH_UNDERSCORES.fullmatch(text) else text)
