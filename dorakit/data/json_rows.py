"""JSON as rows come in it: an array of objects, or one object a line. Strict, bounded, and with places for messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from dorakit.data.quoting import quoted
from dorakit.errors import DataError

MAX_LINE = 4 * 1024 * 1024  # characters
MAX_DEPTH = 64
_LONGEST_WORD = 16  # characters: more than in a number's sign, a literal or an escape that a cut may leave in part
_BETWEEN = re.compile(r"\s*,?\s*")
_SHORT, _BEFORE = 70, 40  # columns up to which a line is quoted from its beginning; else what stands before the fault

Fields = dict[str, Any]


def json_rows(text: str, name: str, *, is_whole: bool = True) -> Iterator[tuple[Fields, str]]:
    """The objects of a file and their places: NAME:812 (a line) or NAME[17] (an index from 0).

    Args:
        text: The file's.
        name: What messages call it.
        is_whole: Otherwise the text was cut: lines are whole, and the last element of an array may be there in part.

    Raises:
        DataError: Something is not JSON, not an object, or beyond the limits.
    """
    if not is_array(text):
        return _lines(text, name)
    return _array(text, name) if is_whole else _first_of_array(text, name)


def is_array(text: str) -> bool:
    """Whether a file's text is one array, not an object a line."""
    return text.lstrip().startswith("[")


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _lines(text: str, name: str) -> Iterator[tuple[Fields, str]]:
    is_first = True
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{name}:{number}"
        if len(line) > MAX_LINE:
            raise DataError(
                f"{place}: a line of {len(line):,} characters, at most {MAX_LINE:,} are read\n"
                "  a row is one line; data.max_seq_len would cut far less text than that"
            )
        try:
            fields = _DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            if is_first and isinstance(error, json.JSONDecodeError) and _is_one_object(text):
                raise DataError(
                    f"{name} holds one JSON object; expected an array of objects, or one object a line"
                ) from None
            raise DataError(f"{place}: not JSON: {_reason(error, line)}") from None
        # Only a line with that many brackets can be that deep.
        if line.count("{") + line.count("[") > MAX_DEPTH:
            _check_depth(fields, place)
        yield _object(fields, place), place
        is_first = False


def _array(text: str, name: str) -> Iterator[tuple[Fields, str]]:
    try:
        values = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1]
        raise DataError(f"{name}:{error.lineno}: not JSON: {_reason(error, line)}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not JSON: {_reason(error, text)}") from None
    for index, value in enumerate(values):
        place = f"{name}[{index}]"
        _check_depth(value, place)
        yield _object(value, place), place


def _first_of_array(text: str, name: str) -> Iterator[tuple[Fields, str]]:
    """The elements of an array whose text was cut; what is wrong at the cut itself is not known, and left out."""
    at, index = text.index("[") + 1, 0
    while (start := _next_element(text, at)) < len(text):
        try:
            value, at = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            if len(text) - error.pos < _LONGEST_WORD or error.msg.startswith("Unterminated string"):
                return
            line = text.split("\n")[error.lineno - 1]
            raise DataError(f"{name}:{error.lineno}: not JSON: {_reason(error, line)}") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}[{index}]: not JSON: {_reason(error, text[start:])}") from None
        if at == len(text):
            return  # a number may go on
        place = f"{name}[{index}]"
        _check_depth(value, place)
        yield _object(value, place), place
        index += 1


def _next_element(text: str, at: int) -> int:
    """Where the next element of an array begins; the text's end where there is none."""
    between = _BETWEEN.match(text, at)
    assert between is not None
    return len(text) if text.startswith("]", between.end()) else between.end()


def _object(value: Any, place: str) -> Fields:
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected a JSON object, found {type(value).__name__}: {quoted(json.dumps(value))}")
    return value


def _check_depth(value: Any, place: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise DataError(f"{place}: not JSON that is read: nested more than {MAX_DEPTH} levels deep")


def _is_one_object(text: str) -> bool:
    try:
        return isinstance(_DECODER.decode(text), dict)
    except (ValueError, RecursionError):
        return False


def _reason(error: Exception, line: str) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return f"{'nested too deeply' if isinstance(error, RecursionError) else error}: {quoted(line)}"
    start = error.colno - _BEFORE if error.colno > _SHORT else 0
    return f"{error.msg} at column {error.colno}: {'...' if start else ''}{quoted(line[start:])}"
