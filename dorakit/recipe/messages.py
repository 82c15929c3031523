"""What is wrong, in words for the person with the recipe open: expected and seen, did-you-mean, foreign names.

Pydantic finds out that a value is wrong; what is said about it is worked out here from the schema's types.
"""

from __future__ import annotations

import re
import types
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types

from dorakit.recipe.fields import arms, dotted, field_name, homes, section_at, type_at, unwrap
from dorakit.recipe.foreign import KEYS, VALUES
from dorakit.recipe.scalars import scalar
from dorakit.recipe.schema import Section
from dorakit.recipe.tree import Node, PathKey
from dorakit.words import near

# Where others write one word for the whole section.
_MAIN_KEY = {"model": "base", "adapter": "mode", "quantization": "format", "optimizer": "name"}
_SINGULAR = {"whole number": "whole numbers", "number": "numbers", "text": "texts", "section": "sections"}


def unknown_key_hint(path: PathKey) -> tuple[str, str]:
    """Explain an unknown key.

    Returns:
        The hint ('' when there is nothing to say), and the dotted field it points to ('' for none).
    """
    key, parent = str(path[-1]), field_name(path[:-1])
    section = section_at(path[:-1])
    own = list(section.model_fields) if section else []
    known = homes()
    if key in known:
        return _belongs(key, known[key]), _join(known[key][0], key)
    normal = key.lower().replace("-", "_")
    if normal in own:
        return f"did you mean '{normal}'?", _join(parent, normal)
    if foreign := KEYS.get(normal):
        if foreign.rpartition(".")[2] not in known or " " in foreign:
            return foreign, ""
        home, _, name = foreign.rpartition(".")
        return (f"`{key}` is `{name if home == parent else foreign}` here"), foreign
    if meant := near(key, own):
        return f"did you mean '{meant[0]}'?", _join(parent, meant[0])
    if meant := near(key, known):
        name = _join(known[meant[0]][0], meant[0])
        return f"did you mean '{name}'?", name
    return (f"known here: {', '.join(own)}" if own else ""), ""


def value_message(path: PathKey, node: Node) -> tuple[str, str]:
    """Explain a value of the wrong type, out of range or not among those allowed.

    Returns:
        The message and the hint.
    """
    name = dotted(path)
    annotation, metadata = type_at(path) or (Any, ())
    expected = expects(annotation, metadata)
    if name == "version" and not isinstance(node.value, (list, dict, bool)) and not node.quoted:
        return f"version {node.text or 'nothing'} is not known", "this dorakit reads version 1"
    if isinstance(node.value, str) and (allowed := _allowed(annotation)):
        meant = VALUES.get(field_name(path), {}).get(node.value) or next(iter(near(node.value, allowed)), "")
        hint = f"did you mean '{meant}'?" if meant else ""
        return f"{name}: {_quote(node.value)} is not {expected}", hint
    if isinstance(node.value, str) and node.quoted and _would_fit(node.value, annotation):
        return f"{name}: quoted text {_quote(node.value)}, expected {expected}", "remove the quotes"
    hint = _value_hint(node, annotation)
    if name in _MAIN_KEY and isinstance(node.value, str):
        key = _MAIN_KEY[name]
        meant = VALUES.get(f"{name}.{key}", {}).get(node.value, node.text)
        hint = f"write {name}: {{{key}: {meant}}}"
    return f"{name}: expected {expected}, got {seen(node)}", hint


def expects(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """Describe a type of the schema: 'a whole number of at least 1'."""
    annotation, metadata = unwrap(annotation, metadata)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        said = [expects(argument, metadata) for argument in arguments]
        # `Literal | str` is text: the literals are only among it.
        if str in arguments:
            said = [s for s, a in zip(said, arguments, strict=True) if get_origin(a) is not Literal]
        return " or ".join(said)
    if origin is Literal:
        values = [str(argument) for argument in arguments]
        return values[0] if len(values) == 1 else "one of " + ", ".join(values)
    if origin is list:
        some = "a list of one or more" if any(isinstance(m, annotated_types.MinLen) for m in metadata) else "a list of"
        return f"{some} {_plural(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)} entries, each {expects(arguments[0])}"
    if origin is dict:
        return f"a mapping from names to {_plural(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "a section (lines of key: value)"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    return names.get(annotation, "another value") + _range(metadata)


def seen(node: Node) -> str:
    """Describe the value that stands in the recipe."""
    value = node.value
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if value is None:
        return "null" if node.text else "nothing"
    if isinstance(value, str):
        return f"{'quoted ' if node.quoted else ''}text {_quote(value)}"
    return node.text if len(node.text) <= 40 else f"{node.text[:37]}..."


def _belongs(key: str, sections: list[str]) -> str:
    if sections[0] == "":
        return f"`{key}` belongs at the top level"
    unique = list(dict.fromkeys(sections))
    *first, last = [f"`{section}`" for section in unique]
    return f"`{key}` belongs under {', '.join(first) + ' or ' if first else ''}{last}"


def _join(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key


def _quote(text: str) -> str:
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return repr(shown)


def _value_hint(node: Node, annotation: Any) -> str:
    types_ = arms(annotation)
    value = node.value
    if bool in types_ and (str(value).lower() in ("yes", "no", "on", "off", "y", "n") or value in (0, 1)):
        return "write true or false"
    if value is None:
        return "write a value or remove the line"
    if int in types_ and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"write {int(value)}"
    if isinstance(value, str) and (int in types_ or float in types_):
        bare = _without_separators(value)
        if bare != value and _would_fit(bare, annotation):
            return f"write {bare}"
        if value.endswith("%") and float in types_ and _would_fit(value[:-1], float):
            return f"write {float(value[:-1]) / 100:g}"
    if str in types_ and isinstance(value, (bool, int, float)):
        return f'put it in quotes: "{node.text}"'
    if any(get_origin(t) is list for t in types_) and isinstance(value, (str, int, float)):
        return f"write [{node.text}]"
    if any(get_origin(t) is list for t in types_) and isinstance(value, dict):
        return "start the first line with '- '"
    if any(isinstance(t, type) and issubclass(t, Section) for t in types_) and isinstance(value, list):
        return "remove the '- '"
    return ""


def _without_separators(text: str) -> str:
    """A number as people write it, as YAML does: 1_000 and 1,000 are a thousand, 1,5 is one and a half."""
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?", text):
        return text.replace(",", "")
    return text.replace("_", "").replace(",", ".", 1) if text.count(",") == 1 else text.replace("_", "")


def _would_fit(text: str, annotation: Any) -> bool:
    try:
        value = scalar(text.strip())
    except ValueError:
        return False
    types_ = arms(annotation)
    if isinstance(value, bool):
        return bool in types_
    if isinstance(value, int):
        return int in types_ or float in types_
    return isinstance(value, float) and float in types_


def _allowed(annotation: Any) -> list[str]:
    """The allowed texts of a field that takes nothing but them."""
    annotation, _ = unwrap(annotation, ())
    return [str(a) for a in get_args(annotation)] if get_origin(annotation) is Literal else []


def _plural(annotation: Any) -> str:
    said = expects(annotation).removeprefix("a ")
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "sections"
    for singular, plural in _SINGULAR.items():
        if said.startswith(singular):
            return plural + said[len(singular) :]
    return said if said.startswith("one or more") else f"entries, each {expects(annotation)}"


def _range(metadata: tuple[Any, ...]) -> str:
    said = []
    for bound in metadata:
        if isinstance(bound, annotated_types.Ge):
            said.append(f"of at least {bound.ge:g}")
        elif isinstance(bound, annotated_types.Gt):
            said.append(f"above {bound.gt:g}")
        elif isinstance(bound, annotated_types.Le):
            said.append(f"of at most {bound.le:g}")
        elif isinstance(bound, annotated_types.Lt):
            said.append(f"below {bound.lt if isinstance(bound.lt, int) else format(bound.lt, 'g')}")
        elif isinstance(bound, annotated_types.MinLen):
            said.append(f"of {bound.min_length} or more characters")
    return f" {' and '.join(said)}" if said else ""
