"""Names of labels as people write them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def label_names(column: pd.Series[Any]) -> pd.Series[str]:
    """Return labels as stripped strings; a whole number is written without a fraction.

    A CSV column of whole numbers with one null is read as floats, so 1.0 must be the label "1".
    """

    def name(value: Any) -> str:
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()

    if str(column.dtype) == "str":  # few different labels: each is converted once
        return column.map({value: name(value) for value in column.dropna().unique()})
    return column.map(name, na_action="ignore")
