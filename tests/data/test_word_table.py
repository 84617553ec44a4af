"""Encoding by a table of words gives the ids of the tokenizer itself."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from textmill.config.sections.prepare import TokenizerConfig
from textmill.data.encoding import as_array
from textmill.data.tokenizing import train_tokenizer
from textmill.data.word_table import ChunkTokenizer, EncodedText, WordTableTokenizer, with_word_table
from textmill.text.tokens import encoded_texts, truncated

CORPUS = [
    "the film was good, isn't it? don't",
    "they'll  see\n\n 42 films -- we've 1,000!",
    "I'm  \t here's (a) [b]",
] * 20


def word_piece() -> Tokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz0123456789'?,.-![]()", "film", "the"]
    pieces += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxy0123456789"]
    tokenizer = Tokenizer(
        models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]")  # type: ignore[arg-type]
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


def trained(kind: str) -> Tokenizer:
    config = TokenizerConfig.model_validate({"kind": kind, "vocabulary_size": 400})
    tokenizer: Tokenizer = train_tokenizer(config, CORPUS * 20)
    return tokenizer


TOKENIZERS = {"word_piece": word_piece(), "byte_bpe": trained("byte_bpe"), "unigram": trained("unigram")}
PIECES = ["the", " film", "Film", "isn't", "'", "'s", "'ll", " 's", "42", " ", "  ", "\n", "\t", "\r\n", "-", "!?", "é",
          "[CLS]", "[cls]", "[",
          "\x00", "\x7f", "\x1c", "<|endoftext|>", "中", "a_b", "z", "_", "\x0b", "İ"]  # fmt: skip


@pytest.mark.parametrize("name", list(TOKENIZERS))
@given(texts=st.lists(st.lists(st.sampled_from(PIECES) | st.characters(max_codepoint=0x250), max_size=12).map("".join)))
def test_word_table_gives_the_ids_and_masks_of_the_tokenizer(name: str, texts: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    fast = with_word_table(tokenizer)
    assert isinstance(fast, WordTableTokenizer)
    for special in (True, False):
        expected = tokenizer.encode_batch_fast(texts, add_special_tokens=special)
        encoded = fast.encode_batch_fast(texts, add_special_tokens=special)
        assert [one.ids for one in encoded] == [one.ids for one in expected]
        assert [truncated(one, 8) for one in encoded] == [truncated(one, 8) for one in expected]
    for length in (5, 8, 100):
        columns = encoded_texts(texts, pickle.loads(pickle.dumps(with_word_table(tokenizer, chunks=True))), length)
        expected_ids = [truncated(one, length) for one in tokenizer.encode_batch_fast(texts)]
        assert as_array("input_ids", columns["input_ids"]).equals(pa.array(expected_ids, pa.list_(pa.int32())))
        assert as_array("length", columns["length"]).equals(pa.array(map(len, expected_ids), pa.int32()))


def test_chunks_of_word_piece_are_encoded_without_lists() -> None:
    fast = with_word_table(word_piece(), chunks=True)
    assert isinstance(fast, ChunkTokenizer)
    assert isinstance(encoded_texts(["the film"], fast, 8)["input_ids"], pa.Array)


def test_word_table_encodes_simple_texts_itself() -> None:
    fast = with_word_table(word_piece())
    kinds = [isinstance(one, EncodedText) for one in fast.encode_batch_fast(["the film", "[b]", "é", "a\tb", "[CLS]"])]
    assert kinds == [True, True, False, False, False]


def test_word_table_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textmill.data.word_table._LARGEST", 10)
    tokenizer = word_piece()
    fast: Any = with_word_table(tokenizer)
    texts = [f"film{number} the" for number in range(100)]
    assert [one.ids for one in fast.encode_batch_fast(texts)] == [tokenizer.encode(text).ids for text in texts]
    assert len(fast._table) <= 10


def _prefix(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def _sequence(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()])


def _normalised(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("Film", normalized=True)])


def _folded(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Lowercase()


@pytest.mark.parametrize("change", [_prefix, _sequence, _normalised, _folded])
def test_tokenizers_without_a_table_are_left_alone(change: Callable[[Tokenizer], None]) -> None:
    tokenizer = trained("byte_bpe")
    change(tokenizer)
    assert with_word_table(tokenizer) is tokenizer
