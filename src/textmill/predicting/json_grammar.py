"""Texts that fulfil a JSON schema: the grammar that both engines follow, by the library llguidance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textmill.errors import UserError, first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor


def json_grammar(schema: Any) -> str:
    """Return the grammar of the JSON texts that fulfil a schema, without white space between tokens.

    Raises:
        UserError: The schema is not valid, or no text fulfils it, or `llguidance` is missing.
    """
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        fix = "Run `pip install textmill[llama]` on the server"
        raise UserError("JSON schemas need the package llguidance", where="response_format", fix=fix) from error
    if not isinstance(schema, dict):
        raise UserError("the schema is not an object", where="response_format")
    compact = {**schema, "x-guidance": {"whitespace_flexible": False}}
    try:
        grammar = "%llguidance {}\nstart: %json " + json.dumps(compact, allow_nan=False)
        problem = LLMatcher.validate_grammar(grammar)
    except (TypeError, ValueError, RecursionError) as error:
        problem = first_line(error)
    if problem:
        raise UserError(f"the schema cannot be followed: {problem.splitlines()[0][:200]}", where="response_format")
    return grammar


class Guide:
    """Keeps a generation by PyTorch to a grammar; one object for each generation.

    Args:
        tokenizer: The result of `guide_tokenizer`.
        grammar: The result of `json_grammar`.
        end: The token that ends the text; only this one can.
    """

    def __init__(self, tokenizer: Any, grammar: str, end: int) -> None:
        from llguidance import LLMatcher

        self._matcher = LLMatcher(tokenizer, grammar)
        self._end = end
        self._consumed = 0

    def __call__(self, logits: Tensor, tokens: list[list[int]]) -> None:
        """Set the logits (1, V) of tokens that may not follow the row's tokens to minus infinity."""
        import numpy as np
        import torch

        [row] = tokens
        self._matcher.consume_tokens(row[self._consumed :])
        self._consumed = len(row)
        allowed = np.zeros(logits.size(-1), bool)
        if self._matcher.is_stopped():
            allowed[self._end] = True
        else:
            bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
            allowed[: len(bits)] = bits[: len(allowed)]
        if self._matcher.is_error() or not allowed.any():
            raise UserError(f"the schema cannot be followed: {self._matcher.get_error() or 'no token may follow'}")
        logits.masked_fill_(torch.from_numpy(~allowed).to(logits.device), float("-inf"))


def guide_tokenizer(tokenizer: Tokenizer, vocabulary: int, ends: Sequence[int]) -> Any:
    """Return the library's form of a tokenizer, which takes about a second to make.

    Raises:
        UserError: The library knows byte-level and byte-fallback tokenizers only.
    """
    from llguidance import LLTokenizer

    try:
        return LLTokenizer(tokenizer.to_str(), n_vocab=vocabulary, eos_token=list(ends))
    except Exception as error:  # of the library, which raises any kind
        message = f"this model's tokenizer cannot follow a schema ({first_line(error)})"
        raise UserError(message, where="response_format") from error
