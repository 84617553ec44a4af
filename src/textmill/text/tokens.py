"""Token ids of a text."""

from __future__ import annotations

from typing import Any

from textmill.errors import UserError


def truncated(encoding: Any, max_length: int) -> list[int]:
    """At most `max_length` ids, with the special tokens at the end kept.

    Done here and not by `Tokenizer.enable_truncation`, which changes a tokenizer that other
    threads may be using.
    """
    ids: list[int] = encoding.ids
    if len(ids) <= max_length:
        return ids
    kept = 0
    for special in reversed(encoding.special_tokens_mask):
        if not special:
            break
        kept += 1
    return ids[: max_length - kept] + ids[len(ids) - kept :]


def token_bytes(tokenizer: Any) -> list[int]:
    """How many bytes of text each token stands for, by its id; special tokens stand for none.

    By this a loss per token becomes bits per byte, which can be compared over tokenizers.
    """
    import json

    from tokenizers import pre_tokenizers

    size = tokenizer.get_vocab_size()
    special = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    kind = (json.loads(tokenizer.to_str())["decoder"] or {}).get("type")
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    counts = []
    for token_id in range(size):
        token = tokenizer.id_to_token(token_id) or ""
        if token_id in special:
            counts.append(0)
        elif kind == "ByteLevel" and set(token) <= alphabet:
            counts.append(len(token))  # each sign of its alphabet stands for a byte
        else:
            counts.append(len(tokenizer.decode([token_id]).encode()))
    return counts


def special_id(tokenizer: Any, token: str, key: str) -> int:
    """Return the id of a special token.

    Raises:
        UserError: The tokenizer has no such token; the message names the configuration `key`.
    """
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        fix = "Name the special token that ends a text in this vocabulary"
        raise UserError(f"the tokenizer has no token {token!r}", where=key, fix=fix)
    return found
