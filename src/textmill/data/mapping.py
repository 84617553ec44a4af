"""Map a file's columns to the task's: rename, bin, name labels."""

from __future__ import annotations

import ast
import bisect
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from string import Formatter
from typing import Any

from textmill.config.sections.prepare import BinsConfig, ColumnConfig, ReadConfig
from textmill.errors import UserError
from textmill.text.label_lists import listed
from textmill.text.numbers import plain_number

INVISIBLE = " \t\r\n\v\f\xa0\u200b\u200c\u200d\u2060\ufeff"
_BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "y"), "true"),
    **dict.fromkeys(("false", "no", "off", "n"), "false"),
}

_MESSAGES = "messages"
_WIDE = {
    code: code - 0xFEE0
    for first, last in ("\uff10\uff19", "\uff21\uff3a", "\uff41\uff5a")
    for code in range(ord(first), ord(last) + 1)
}

Convert = Callable[[Any], str | None]
"""Convert a file's value to the task's; raises `ValueError` with the reason to reject the row."""


class ColumnMap:
    """Map the columns of a file, as `config.columns` says, to those that the task requires, and further ones.

    Args:
        config: Options to read the file.
        required: Columns that must be mapped.
        texts: Those of them with texts: a list of words there becomes one text.
        labels: Those with labels, which get one spelling.
        numbers: Those of numbers, written as people do.

    Raises:
        UserError: A required column is not mapped.
    """

    def __init__(
        self,
        config: ReadConfig,
        required: Sequence[str],
        texts: Sequence[str] = (),
        labels: Sequence[str] = (),
        numbers: Sequence[str] = (),
    ) -> None:
        self._columns = {
            name: column if isinstance(column, ColumnConfig) else ColumnConfig(source=column)
            for name, column in config.columns.items()
        }
        self._texts = texts
        self._unify: dict[str, Callable[[str], str]] = dict.fromkeys(
            numbers, lambda value: plain_number(value, config.decimal) or value
        )
        self._unify |= {name: unified_labels if name == "labels" else unified_label for name in labels}
        for name in required:
            if name not in self._columns:
                fix = f"Set which column of the file is the {name}"
                raise UserError(f"the task's column {name!r} is not mapped", where="prepare.read.columns", fix=fix)
        self._convert: dict[str, Convert] = {name: _converter(column) for name, column in self._columns.items()}

    @property
    def names(self) -> list[str]:
        """Names of the mapped columns, in the order of the configuration."""
        return list(self._columns)

    @property
    def wanted(self) -> list[str]:
        """Names of the file's columns that are needed, each once."""
        return list(dict.fromkeys(source for column in self._columns.values() for source in column.sources))

    def apply(
        self, columns: Mapping[str, Sequence[Any]], unified: Counter[tuple[str, str, str]] | None = None
    ) -> tuple[dict[str, list[str | None]], dict[int, tuple[str, str]]]:
        """Return the task's columns, and the rows that cannot be converted: position -> (column, reason).

        Count in `unified` labels written otherwise than they are read: (column, as written, as read) -> rows.
        """
        mapped: dict[str, list[str | None]] = {}
        failed: dict[int, tuple[str, str]] = {}
        for name, column in self._columns.items():
            values = self._values(name, column, columns)
            convert = self._convert[name]
            if convert is as_text and all(value is None or type(value) is str for value in values):
                mapped[name] = list(values)
            else:
                mapped[name] = converted = []
                for position, value in enumerate(values):
                    try:
                        converted.append(convert(value))
                    except ValueError as error:
                        converted.append(None)
                        failed.setdefault(position, (name, str(error)))
            if name in self._unify:
                written, unify = mapped[name], self._unify[name]
                as_read = {value: unify(value) for value in set(written) if value is not None}  # labels are few
                changed = {was for was, now in as_read.items() if was and was != now}
                if unified is not None and changed:
                    unified.update((name, was, as_read[was]) for was in written if was is not None and was in changed)
                mapped[name] = [None if value is None else as_read[value] or None for value in written]
        return mapped, failed

    def _values(self, name: str, column: ColumnConfig, columns: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
        """Return the values of a column's source; texts of several sources, and lists of words, as one text."""
        values = columns[column.sources[0]]
        if name in self._texts:
            values = [_text_of(value) for value in values] if any(map(_is_packed, values)) else values
        elif self._unify.get(name) is unified_label:
            values = [_only(value) for value in values] if any(map(_is_packed, values)) else values
        if isinstance(column.source, str) and column.template is None:
            return values
        if name == _MESSAGES and column.template is None:
            return [_exchange(row) for row in zip(*(columns[source] for source in column.sources), strict=True)]
        rows = zip(*(columns[source] for source in column.sources), strict=True)
        texts = ({source: as_text(cell) for source, cell in zip(column.sources, row, strict=True)} for row in rows)
        return [_filled(column.template, row) for row in texts]


def _is_packed(value: Any) -> bool:
    """Return whether a value is a list, or a text that may be written as a list or as bytes of Python."""
    return type(value) is list or (type(value) is str and value.startswith(("[", "b'", 'b"')))


def _text_of(value: Any) -> Any:
    """Return a list of words, or the bytes that Python writes as `b'...'`, as a text; anything else as it is."""
    if isinstance(value, list):
        return " ".join(value) if _is_words(value) or not value else value
    if isinstance(value, str) and re.fullmatch(r"b'.*'|b\".*\"", value, re.DOTALL):
        with suppress(ValueError, SyntaxError):  # of a text that only looks so
            return ast.literal_eval(value).decode()
    return value


def _only(value: Any) -> Any:
    """Return the label of a list of one, None of an empty list."""
    found = listed(value)
    if found is None or len(found) > 1:
        return _text_of(value) if found is None else value
    return found[0] if found else None


def _exchange(cells: Sequence[Any]) -> str | None:
    """Return a conversation: the last cell answers the others, which the user says; None if one side is missing."""
    *asked, answer = map(as_text, cells)
    question = "\n".join(filter(None, asked))
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps(messages, ensure_ascii=False) if question and answer else None


def unified_labels(cell: str) -> str:
    """Return a cell of several labels as `unified_label` does, but with its commas, which may stand between them."""
    return unified_label(cell, decimal_comma=False)


def unified_label(label: str, *, decimal_comma: bool = True) -> str:
    """Return a label without surrounding white space and invisible signs, in Unicode's form NFC, a number in one form.

    `1.0` is `1`, `4,5` is `4.5`, and full-width letters and digits are usual ones. Each label of a JSON list is
    changed so.
    """
    if label.startswith("["):
        with suppress(ValueError, RecursionError):
            parts = json.loads(label)
            if _is_words(parts):
                return json.dumps([unified_label(part) for part in parts], ensure_ascii=False)
    if label.isascii() and label.isalpha():
        return label
    label = " ".join(unicodedata.normalize("NFC", label.translate(_WIDE)).strip(INVISIBLE).split())
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", with_point(label) if decimal_comma else label)


def with_point(number: str) -> str:
    """Return a number with a decimal point in place of a comma; `1,000` may be a thousand and stays."""
    return re.sub(r"^\s*([+-]?\d+),(\d{1,2}|\d{4,})\s*$", r"\1.\2", number)


def _filled(template: str | None, texts: Mapping[str, str | None]) -> str | None:
    """Return several texts as one: in a template, or each on its line; None if all are missing."""
    given = [text for text in texts.values() if text]
    if template is None or not given:
        return "\n".join(given) or None
    pieces = Formatter().parse(template)
    return "".join(before + (texts[name] or "" if name is not None else "") for before, name, _, _ in pieces)


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value)


def as_text(value: Any) -> str | None:
    """Return a value as a string: integers without a fraction, lists and records as JSON, missing values as None."""
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else str(value)


def bin_name(value: float, bins: BinsConfig) -> str:
    """Return the name of a number's bin; an edge belongs to the bin nearer to zero."""
    scaled = value / bins.divide_by
    index = bisect.bisect_left(bins.edges, scaled)
    if index < len(bins.edges) and bins.edges[index] == scaled and scaled < 0:
        index += 1
    return bins.names[index]


def bin_shares(value: float, bins: BinsConfig) -> str:
    """Return the share of each bin, as a JSON record, for a number with standard deviation `bins.uncertainty`."""
    assert bins.uncertainty is not None
    scaled, deviation = value / bins.divide_by, bins.uncertainty * math.sqrt(2)
    below = [0.0, *((1 + math.erf((edge - scaled) / deviation)) / 2 for edge in bins.edges), 1.0]
    shares = [round(right - left, 6) for left, right in pairwise(below)]
    return json.dumps(dict(zip(bins.names, shares, strict=True)))


def _converter(column: ColumnConfig) -> Convert:
    if column.bins is not None:
        return _bin_converter(column.bins)
    if column.names is not None:
        return _name_converter(column.names)
    return as_text


def _bin_converter(bins: BinsConfig) -> Convert:
    def convert(value: Any) -> str | None:
        if value is None:
            return None
        try:
            number = float(plain_number(value) or value if isinstance(value, str) else value)
        except (TypeError, ValueError):
            raise ValueError(f"is not a number: {str(value)[:40]!r}") from None
        if math.isnan(number):
            return None
        return bin_name(number, bins) if bins.uncertainty is None else bin_shares(number, bins)

    return convert


def _name_converter(names: Mapping[str, str]) -> Convert:
    allowed = ", ".join(map(repr, list(names)[:20]))
    unified = {unified_label(name): name for name in names}

    def convert(value: Any) -> str | None:
        key = as_text(value)
        if key is None:
            return None
        if key not in names:
            key = unified.get(unified_label(key), key)
        if key not in names and key.strip().lower() in _BOOLEANS:  # YAML reads a bare no as false, the file has no
            key = _BOOLEANS[key.strip().lower()]
        if key not in names:
            raise ValueError(f"is {key[:40]!r}, not one of {allowed}")
        return names[key]

    return convert
