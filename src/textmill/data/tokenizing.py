"""Make the tokenizer of the prepared data: copy the pretrained one, or train one on the training split."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from textmill.config.layout import START
from textmill.config.sections.prepare import TokenizerConfig
from textmill.errors import UserError
from textmill.files import DIGESTS, read_json, read_optional, write_json

log = logging.getLogger("textmill")

FILE = "tokenizer.json"
KEPT = "kept_tokens.json"
"""The ids of a reduced vocabulary before it was reduced, in the order of the new ones."""
UNKNOWN = "<|unknown|>"
"""Stands for characters that are not in the training split."""
_NOT_TOKENIZER_FILES = ("config.json", "provenance.json", DIGESTS)  # the generation's names the end tokens
_TEXTS_AT_ONCE = 1000
_SPACE = "\u2581"
"""Stands for a space in a unigram model."""
_BLOCK_BITS = 8
_CHARACTERS_AT_ONCE = 10_000
"""Long documents are passed to the trainers in pieces of about this size, cut at line ends."""


def make_tokenizer(config: TokenizerConfig, texts: Iterable[str], pretrained: Path, folder: Path) -> Any:
    """Write the tokenizer's files into `folder` and return the tokenizer, without padding or truncation.

    The texts are read only to train or reduce a tokenizer. transformers' `AutoTokenizer` can read the folder.
    `train.start` keeps the trained tokenizer of the version to start from.

    Raises:
        UserError: There is no pretrained tokenizer, or it cannot be reduced.
    """
    folder.mkdir()
    if config.kind == "pretrained":
        tokenizer = _copy_pretrained(pretrained, folder)
        return tokenizer if config.least_count is None else _reduce(tokenizer, texts, config.least_count, folder)
    if (started := pretrained / START / FILE).is_file():
        shutil.copyfile(started, folder / FILE)
        tokenizer = load_tokenizer(folder)
    else:
        tokenizer = train_tokenizer(config, texts)
        tokenizer.save(str(folder / FILE))
    # Settings that transformers expects beside the tokenizer
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), config.end_of_text)
    if tokenizer.token_to_id(UNKNOWN) is not None:
        special["unk_token"] = UNKNOWN
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", special | settings)
    log.info("prepare: a %s tokenizer of %d tokens", config.kind.replace("_", "-"), tokenizer.get_vocab_size())
    return tokenizer


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Any:
    """Train a `tokenizers.Tokenizer` of the configured kind; decoding its tokens restores the text.

    Its first id is `end_of_text`. BPE and unigram work on bytes, so that they can encode any text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if config.kind == "character":
        return _character_tokenizer(config.end_of_text, texts)
    options: dict[str, Any] = {
        "vocab_size": config.vocabulary_size,
        "special_tokens": [config.end_of_text],
        "initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet()),
        "show_progress": False,
    }
    if config.kind == "byte_bpe":
        tokenizer = Tokenizer(models.BPE())
        trainer: Any = trainers.BpeTrainer(min_frequency=config.min_frequency, **options)
    else:
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(**options)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(_pieces(texts), trainer)
    return tokenizer


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a folder, without padding or truncation."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / FILE))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _character_tokenizer(end_of_text: str, texts: Iterable[str]) -> Any:
    """Return a tokenizer with one token for each character, in code point order: a BPE without merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    vocabulary = {token: number for number, token in enumerate([end_of_text, UNKNOWN, *sorted(characters)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (end_of_text, UNKNOWN)])
    return tokenizer


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        piece: list[str] = []
        size = 0
        for line in text.splitlines(keepends=True):
            piece.append(line)
            size += len(line)
            if size >= _CHARACTERS_AT_ONCE:
                yield "".join(piece)
                piece, size = [], 0
        if piece:
            yield "".join(piece)


def _copy_pretrained(pretrained: Path, folder: Path) -> Any:
    """Copy the pretrained tokenizer's files and load it."""
    if not (pretrained / FILE).is_file():
        fix = "Choose a model with pretrained weights (model.pretrained), or train one (prepare.tokenizer.kind)"
        raise UserError("no tokenizer here", where=str(pretrained), fix=fix)
    for path in sorted(pretrained.iterdir()):
        if path.is_file() and path.name not in _NOT_TOKENIZER_FILES and ".safetensors" not in path.name:
            shutil.copyfile(path, folder / path.name)
    return load_tokenizer(folder)


def _reduce(tokenizer: Any, texts: Iterable[str], least: int, folder: Path) -> Any:
    """Keep the tokens with at least `least` occurrences in the texts, characters and special tokens.

    A word whose token is gone is split into the longest (WordPiece) or likeliest (unigram) ones that are left (Abdaoui
    et al. 2020, "Load What You Need"). The characters are those of ASCII, and of a unigram model also of each block of
    256 signs of Unicode of which the texts have one. `KEPT` beside the folder has the old id of each new one: training
    selects these rows of the embedding.
    """
    file = folder / FILE
    content = read_json(file)
    model = content["model"]
    if model.get("type") not in ("WordPiece", "Unigram"):
        fix = "Remove prepare.tokenizer.least_count"
        what = "only a WordPiece or unigram vocabulary can be reduced"
        raise UserError(what, where="prepare.tokenizer.least_count", fix=fix)
    counts: Counter[int] = Counter()
    remaining = iter(texts)
    blocks = {0}
    while some := list(islice(remaining, _TEXTS_AT_ONCE)):
        for encoding in tokenizer.encode_batch_fast(some):
            counts.update(encoding.ids)
        blocks |= {ord(sign) >> _BLOCK_BITS for sign in set("".join(some))}
    special = {token["content"] for token in content["added_tokens"]}
    if model["type"] == "WordPiece":
        vocabulary: dict[str, int] = model["vocab"]
        prefix = model["continuing_subword_prefix"]
        characters = {start + chr(code) for code in range(128) for start in ("", prefix)}
    else:
        vocabulary = {token: old for old, (token, _) in enumerate(model["vocab"])}
        characters = {token for token in vocabulary if len(token) == 1 and ord(token) >> _BLOCK_BITS in blocks}
        characters |= {_SPACE}
    kept = sorted(
        (old, token)
        for token, old in vocabulary.items()
        if counts[old] >= least or token in special or token in characters
    )
    new = {old: number for number, (old, _) in enumerate(kept)}
    if model["type"] == "WordPiece":
        model["vocab"] = {token: new[old] for old, token in kept}
    else:
        model |= {"vocab": [model["vocab"][old] for old, _ in kept], "unk_id": new[model["unk_id"]]}
    for token in content["added_tokens"]:
        token["id"] = new[token["id"]]
    after = content["post_processor"] or {}
    for token in after.get("special_tokens", {}).values():  # a template
        token["ids"] = [new[old] for old in token["ids"]]
    after |= {name: [after[name][0], new[after[name][1]]] for name in ("sep", "cls") if name in after}  # of BERT
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    if (listed := folder / "vocab.txt").is_file():
        listed.write_text("".join(f"{token}\n" for _, token in kept), encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    if added := read_optional(settings).get("added_tokens_decoder"):
        decoder = {str(new[int(old)]): token for old, token in added.items()}
        write_json(settings, read_json(settings) | {"added_tokens_decoder": decoder})
    write_json(folder.parent / KEPT, list(new))
    log.info("prepare: %d of %d tokens are kept", len(new), len(vocabulary))
    return load_tokenizer(folder)
