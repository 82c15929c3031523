"""CSV as rows come in it: a header, then one record a row; separated by commas, or by another character of the header."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator

from dorakit.data.json_rows import Fields
from dorakit.data.quoting import seen
from dorakit.errors import DataError

_OTHERS = {";": "';'", "\t": "a tab", "|": "'|'"}  # how spreadsheets and databases separate columns instead


def csv_rows(text: str, name: str, *, is_whole: bool = True) -> Iterator[tuple[Fields, str]]:
    """The records of a file and their places: NAME:812, the line that a record starts on.

    Args:
        text: The file's.
        name: What messages call it.
        is_whole: Otherwise the text was cut behind a line, which may be inside a quoted value: that record is left out.

    Raises:
        DataError: It is not CSV, or a record has more or fewer values than the header.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    delimiter = delimiter_of(text, name)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        header = next((row for row in reader if len(row) > 1 or "".join(row).strip()), [])
        if len(set(header)) < len(header):
            twice = next(column for column in header if header.count(column) > 1)
            raise DataError(f"{name}:{reader.line_num}: column {seen(twice)} is there twice")
        line = reader.line_num + 1
        for values in reader:
            if values:
                if len(values) != len(header):
                    raise DataError(f"{name}:{line}: {_miscounted(values, header, delimiter)}")
                yield dict(zip(header, values, strict=True)), f"{name}:{line}"
            line = reader.line_num + 1
    except csv.Error as error:
        if is_whole or str(error) != "unexpected end of data":
            raise DataError(f"{name}:{reader.line_num}: not CSV: {error}") from None


def delimiter_of(text: str, name: str) -> str:
    """The character between the columns, by the header alone: a comma where it has one, else the other that it has.

    Raises:
        DataError: The header has several others.
    """
    header, is_quoted = "", False
    for character in text.lstrip("\r\n "):
        is_quoted ^= character == '"'
        if not is_quoted and character in "\r\n":
            break
        header += "" if is_quoted else character
    others = [character for character in _OTHERS if character in header]
    if "," in header or not others:
        return ","
    if len(others) > 1:
        both = " and ".join(_OTHERS[character] for character in others)
        raise DataError(
            f"{name}: the header holds {both} and no comma, so that the columns cannot be told apart\n"
            "  separate them by one of these alone, or save the file with commas"
        )
    return others[0]


def delimiter_note(text: str, name: str) -> list[str]:
    """A line that says how the columns are separated, where that is not by commas."""
    delimiter = delimiter_of(text, name)
    return [] if delimiter == "," else [f"{name}: columns are separated by {_OTHERS[delimiter]}"]


def _miscounted(values: list[str], header: list[str], delimiter: str) -> str:
    by = "" if delimiter == "," else f", separated by {_OTHERS[delimiter]}"
    found = f"{len(values)} values for {len(header)} columns{by}"
    others = [written for character, written in _OTHERS.items() if delimiter == "," and character in "".join(header)]
    if others:
        return (
            f"{found}\n  the header is taken as separated by commas since it holds one; it also holds {others[0]}: "
            "put a name that holds a comma in quotes"
        )
    if len(values) > len(header):
        return f"{found}\n  put a value that holds {_OTHERS.get(delimiter, 'a comma')} in quotes"
    return found
