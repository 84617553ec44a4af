"""Mask personal data in texts: e-mail addresses, public IP addresses, phone numbers, card numbers."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import get_args

from textmill.config.sections.prepare import Mask

KINDS: tuple[Mask, ...] = get_args(Mask)

# Lengths are bounded, so that the time is linear in the text
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9][A-Za-z0-9-]{0,62}(?:\.[A-Za-z0-9-]{1,63}){1,8}")
_IP = re.compile(
    r"(?<![\w.:])(?:(?:\d{1,3}\.){3}\d{1,3}(?![\w:]|\.\d)|(?=[0-9A-Fa-f:]{0,38}:[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:]{3,39}(?![\w:]))"
)
_PHONE = re.compile(
    r"(?<![\w.+/-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,4}){2,4}"
    r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4})(?![\w/-]|\.\d)"
)
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-]|\.\d)")


def masker(kinds: Sequence[Mask]) -> Callable[[str, Counter[str]], str] | None:
    """Return a function that replaces personal data by `[email]`, `[ip]`, `[phone]` and `[card]` and counts it by kind.

    Of IP addresses only public ones are masked, versions 4 and 6; of numbers of 13 to 19 digits those whose last digit
    is that of a payment card (Luhn, ISO/IEC 7812).
    """
    if not kinds:
        return None

    def replaced(kind: Mask, text: str, counts: Counter[str]) -> str:
        def replace(match: re.Match[str]) -> str:
            if (kind == "ip" and not _is_public(match[0])) or (kind == "card" and not _is_card(match[0])):
                return match[0]
            counts[kind] += 1
            return f"[{kind}]"

        return {"email": _EMAIL, "ip": _IP, "phone": _PHONE, "card": _CARD}[kind].sub(replace, text)

    def mask(text: str, counts: Counter[str]) -> str:
        if "email" in kinds and "@" in text:
            text = replaced("email", text, counts)
        if "ip" in kinds and (text.count(".") > 2 or text.count(":") > 1):
            text = replaced("ip", text, counts)
        if "card" in kinds and sum(map(str.isdigit, text)) > 12:  # before phone numbers, which are shorter
            text = replaced("card", text, counts)
        if "phone" in kinds and re.search(r"\d\d", text):
            text = replaced("phone", text, counts)
        return text

    return mask


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _is_card(number: str) -> bool:
    digits = [int(sign) for sign in number if sign.isdigit()][::-1]
    return sum(digits[::2]) % 10 == -sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2]) % 10
