"""Addresses of versions as people write them."""

from __future__ import annotations

import pytest

from textmill.errors import UserError
from textmill.registry.addresses import Address, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models:/film/3", Address("film", "3", "")),
        ("film/3", Address("film", "3", "")),
        ("models:/film@champion", Address("film", "", "champion")),
        ("film@champion", Address("film", "", "champion")),
        ("models:/a/b/3", Address("a/b", "3", "")),
        ("@champion", Address("", "", "champion")),
        ("champion", Address("", "", "champion")),
        ("3", Address("", "3", "")),
    ],
)
def test_every_form(text: str, expected: Address) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["", "models:/", "models:/film", "film/", "film/three", "film@", "film@a/b", "/3"])
def test_what_is_no_address_is_told(text: str) -> None:
    with pytest.raises(UserError, match="not the address of a version"):
        parse(text)
