"""Read numbers as people write them: decimal commas, thousands, per cent, currencies."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Decimal = Literal[".", ","]

_AROUND = re.compile(r"^[\s$€£¥₹]+|[\s$€£¥₹%]+$")
_PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_SPACES = re.compile(r"(?<=\d)['\u2019\s](?=\d{3})")


def plain_number(text: str, decimal: Decimal | None = None) -> str | None:
    """Return a number as Python reads it; None for anything else.

    `4,5` is 4.5, `1.234,5` is 1234.5, `85 %` is 85. `1,234` may be a thousand or a decimal: `decimal` tells it.
    """
    number = _SPACES.sub("", _AROUND.sub("", text.replace("\u2212", "-")))
    if decimal is not None:
        number = number.replace("," if decimal == "." else ".", "").replace(",", ".")
    elif re.fullmatch(r"[+-]?[1-9]\d{0,2}(,\d{3}){2,}(\.\d+)?|[+-]?[1-9]\d{0,2}(,\d{3})+\.\d+", number):
        number = number.replace(",", "")
    elif re.fullmatch(r"[+-]?[1-9]\d{0,2}(\.\d{3})+,\d+|[+-]?[1-9]\d{0,2}(\.\d{3}){2,}", number):
        number = number.replace(".", "").replace(",", ".")
    elif re.fullmatch(r"[+-]?\d+,\d+", number) and not re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", number):
        number = number.replace(",", ".")
    return number if _PLAIN.fullmatch(number) else None


def decimal_of(texts: Iterable[str]) -> Decimal | None:
    """Return the decimal sign of a column where single numbers leave it open; None where none does.

    Groups of three digits behind a sign are thousands if whole numbers below 1000 stand beside them without one, or
    if all numbers have a comma and such groups.
    """
    numbers = [_SPACES.sub("", _AROUND.sub("", text)) for text in texts]
    grouped = [number for number in numbers if re.fullmatch(r"[+-]?[1-9]\d{0,2}[.,]\d{3}", number)]
    small = any(re.fullmatch(r"[+-]?\d{1,3}", number) for number in numbers)
    for sign, other in ((",", "."), (".", ",")):
        mine = [number for number in numbers if sign in number]
        if any(sign in number for number in grouped):
            whole = all(re.fullmatch(rf"[+-]?[1-9]\d{{0,2}}(\{sign}\d{{3}})+(\{other}\d+)?", number) for number in mine)
            sure = any(number.count(sign) > 1 or other in number for number in mine)
            if whole and (sure or small or (sign == "," and len(mine) == len(numbers))):
                return other  # type: ignore[return-value]
            if sign == "," and not whole:
                return ","
    return None
