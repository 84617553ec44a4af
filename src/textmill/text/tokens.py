"""Truncate token ids; count the bytes of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textmill.errors import UserError


def truncated(encoding: Any, max_length: int) -> list[int]:
    """Return at most `max_length` ids; special tokens at the end are kept.

    `Tokenizer.enable_truncation` is not used: it changes a tokenizer that other threads may use.
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


def encoded_texts(texts: Sequence[str], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    """Return `input_ids` of texts, at most `max_length` tokens each, and their `length`.

    Both are Arrow arrays where the tokenizer encodes chunks, else lists.
    """
    if (encode_lists := getattr(tokenizer, "encode_lists", None)) is not None:
        arrays = encode_lists(texts, max_length)
        return {"input_ids": arrays, "length": arrays.value_lengths()}
    input_ids = [truncated(encoding, max_length) for encoding in tokenizer.encode_batch_fast(list(texts))]
    return {"input_ids": input_ids, "length": [len(ids) for ids in input_ids]}


def token_bytes(tokenizer: Any) -> list[int]:
    """Return the bytes of text of each token id; special tokens have 0.

    They convert a loss per token to bits per byte, which is comparable between tokenizers.
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
            counts.append(len(token))  # each character of its alphabet stands for a byte
        else:
            counts.append(len(tokenizer.decode([token_id]).encode()))
    return counts


def special_id(tokenizer: Any, token: str, key: str) -> int:
    """Return the id of a special token.

    Raises:
        UserError: The tokenizer has no such token; the message names the configuration `key`.
    """
    token_id: int | None = tokenizer.token_to_id(token)
    if token_id is None:
        fix = "Name the special token that ends a text in this vocabulary"
        raise UserError(f"the tokenizer has no token {token!r}", where=key, fix=fix)
    return token_id
