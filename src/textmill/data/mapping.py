"""Map a file's columns to the task's: rename, bin, name labels."""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from textmill.config.sections.prepare import BinsConfig, ColumnConfig, ReadConfig
from textmill.errors import UserError

Convert = Callable[[Any], str | None]
"""Convert a file's value to the task's; raises `ValueError` with the reason to reject the row."""


class ColumnMap:
    """Map the columns of a file, as `config.columns` says, to those that the task requires, and further ones.

    Raises:
        UserError: A required column is not mapped.
    """

    def __init__(self, config: ReadConfig, required: Sequence[str]) -> None:
        self._columns = {
            name: column if isinstance(column, ColumnConfig) else ColumnConfig(source=column)
            for name, column in config.columns.items()
        }
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
        return list(dict.fromkeys(column.source for column in self._columns.values()))

    def apply(
        self, columns: Mapping[str, Sequence[Any]]
    ) -> tuple[dict[str, list[str | None]], dict[int, tuple[str, str]]]:
        """Return the task's columns, and the rows that cannot be converted: position -> (column, reason)."""
        mapped: dict[str, list[str | None]] = {}
        failed: dict[int, tuple[str, str]] = {}
        for name, column in self._columns.items():
            values = columns[column.source]
            convert = self._convert[name]
            if convert is as_text and all(value is None or type(value) is str for value in values):
                mapped[name] = list(values)
                continue
            mapped[name] = converted = []
            for position, value in enumerate(values):
                try:
                    converted.append(convert(value))
                except ValueError as error:
                    converted.append(None)
                    failed.setdefault(position, (name, str(error)))
        return mapped, failed


def as_text(value: Any) -> str | None:
    """Return a value as a string: integers without a fraction, lists and records as JSON, missing values as None."""
    if value is None or isinstance(value, str):
        return value or None
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
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"is not a number: {str(value)[:40]!r}") from None
        if math.isnan(number):
            return None
        return bin_name(number, bins) if bins.uncertainty is None else bin_shares(number, bins)

    return convert


def _name_converter(names: Mapping[str, str]) -> Convert:
    allowed = ", ".join(map(repr, list(names)[:20]))

    def convert(value: Any) -> str | None:
        key = as_text(value)
        if key is None:
            return None
        if key not in names:
            raise ValueError(f"is {key[:40]!r}, not one of {allowed}")
        return names[key]

    return convert
