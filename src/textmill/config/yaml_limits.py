"""Limit what a YAML text of others may expand to: references can make a few lines a billion values."""

from __future__ import annotations

import yaml

from textmill.errors import UserError

_MAX_VALUES = 1_000_000


def require_bounded(text: str, where: str) -> None:
    """Count the values of a YAML text with every alias expanded, without expanding it.

    Raises:
        UserError: There are more than a million, or a value contains itself.
        yaml.YAMLError: The text is not YAML.
    """
    if "*" not in text:
        return
    sizes: dict[int, int | None] = {}

    def size(node: yaml.Node) -> int:
        if (known := sizes.get(id(node), 0)) != 0:
            if known is None:
                raise UserError("a value contains itself", where=where, fix="Remove the alias (*NAME)")
            return known
        sizes[id(node)] = None
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        total = 1 + sum(size(inner) for part in parts for inner in (part if isinstance(part, tuple) else (part,)))
        sizes[id(node)] = total
        return total

    root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if root is not None and size(root) > _MAX_VALUES:
        raise UserError("its aliases expand to over a million values", where=where, fix="Write the values out")
