"""Write a language model of the Llama architecture as GGUF, the format of llama.cpp and ollama."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.errors import UserError
from textmill.files import read_optional

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TYPES = {"f16": "F16", "q8_0": "Q8_0", "q4_1": "Q4_1", "q4_0": "Q4_0"}
"""Names of the library for the types of weights."""
_BLOCK = 32
"""Weights that share a scale; a row of another length stays in float16."""
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {_LLAMA_3: "llama-bpe", _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2"}
"""llama.cpp's names of expressions that split a text before its pieces are merged."""


def write_gguf(checkpoint: Path, kind: str, path: Path, name: str) -> None:
    """Write a checkpoint of transformers as one GGUF file.

    Args:
        checkpoint: Folder with `config.json`, `model.safetensors` and the tokenizer.
        kind: A key of `TYPES`. Embeddings of a type of 4 bits have 8.
        path: The file to write.
        name: Name of the model, which llama.cpp shows.

    Raises:
        UserError: The architecture or the tokenizer has no form in llama.cpp that this function knows.
    """
    import gguf
    from safetensors import safe_open

    configuration = read_optional(checkpoint / "config.json")
    _require_llama(configuration)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    quantised = gguf.GGMLQuantizationType[TYPES[kind]]
    writer.add_file_type(int(gguf.LlamaFileType["MOSTLY_" + TYPES[kind]]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    heads, layers = configuration["num_attention_heads"], configuration["num_hidden_layers"]
    key_heads = configuration.get("num_key_value_heads") or heads
    writer.add_vocab_size(configuration["vocab_size"])
    writer.add_context_length(configuration["max_position_embeddings"])
    writer.add_embedding_length(configuration["hidden_size"])
    writer.add_feed_forward_length(configuration["intermediate_size"])
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_rope_dimension_count(_head_width(configuration))
    writer.add_key_length(_head_width(configuration))
    writer.add_value_length(_head_width(configuration))
    writer.add_rope_freq_base(_rope(configuration)["rope_theta"])
    writer.add_layer_norm_rms_eps(configuration["rms_norm_eps"])
    _add_tokenizer(writer, checkpoint, configuration)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    with safe_open(checkpoint / "model.safetensors", framework="np") as weights:
        for source in weights.keys():  # noqa: SIM118 - the library's object is not a mapping
            if source == "lm_head.weight" and configuration.get("tie_word_embeddings"):
                continue
            target = names.get_name(source, try_suffixes=(".weight",))
            if target is None:
                raise UserError(f"GGUF has no place for the weights {source}", where="export.gguf", fix=_FIX)
            values: Any = weights.get_tensor(source).astype("float32")
            for part, count in (("q_proj", heads), ("k_proj", key_heads)):
                if f".{part}." in source:
                    values = _rotated_in_pairs(values, count)
            kept = gguf.GGMLQuantizationType.Q8_0 if target == "token_embd.weight" and kind != "f16" else quantised
            if values.ndim == 1:
                kept = gguf.GGMLQuantizationType.F32
            elif values.shape[-1] % _BLOCK:
                kept = gguf.GGMLQuantizationType.F16
            writer.add_tensor(target, gguf.quants.quantize(values, kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_FIX = "Leave export.gguf empty"


def _require_llama(configuration: dict[str, Any]) -> None:
    kind = configuration.get("model_type", "none that transformers has")
    problem = ""
    if kind != "llama":
        problem = f"GGUF is written for the architecture llama only, this model's is {kind}"
    elif _rope(configuration).get("rope_type", "default") != "default":
        problem = f"GGUF is not written for positions of the type {_rope(configuration)['rope_type']}"
    elif configuration.get("attention_bias") or configuration.get("mlp_bias"):
        problem = "GGUF is not written for a model with biases"
    if problem:
        raise UserError(problem, where="export.gguf", fix=_FIX)


def _rope(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of the rotary positions, of which older configurations have the base elsewhere."""
    parameters = configuration.get("rope_parameters") or configuration.get("rope_scaling") or {}
    return {"rope_theta": configuration.get("rope_theta", 10000.0), **parameters}


def _head_width(configuration: dict[str, Any]) -> int:
    return int(configuration.get("head_dim") or configuration["hidden_size"] // configuration["num_attention_heads"])


def _rotated_in_pairs(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder the rows of each head: llama.cpp rotates neighbours, transformers the two halves."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _add_tokenizer(writer: Any, checkpoint: Path, configuration: dict[str, Any]) -> None:
    import gguf

    from textmill.text.chat import read_template

    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    model, added = tokenizer["model"], {entry["id"]: entry for entry in tokenizer.get("added_tokens", [])}
    texts = {number: text for text, number in model.get("vocab", {}).items()}
    texts |= {number: entry["content"] for number, entry in added.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split(tokenizer))
    kinds = []
    for number in range(configuration["vocab_size"]):
        if number not in texts:
            kinds.append(gguf.TokenType.UNUSED)
        elif number in added:
            kinds.append(gguf.TokenType.CONTROL if added[number]["special"] else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(len(kinds))])
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    generation = read_optional(checkpoint / "generation_config.json")
    ends = generation.get("eos_token_id") or configuration.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    own_end = configuration.get("eos_token_id")
    writer.add_eos_token_id(own_end if isinstance(own_end, int) else ends[0])
    if len(ends) > 1:
        writer.add_eot_token_id(next(end for end in ends if end != own_end))
    begin = configuration.get("bos_token_id")
    writer.add_bos_token_id(own_end if begin is None else begin)
    writer.add_add_bos_token(False)  # the template writes it, if there is one
    template, _ = read_template(checkpoint)
    if template is not None:
        writer.add_chat_template(template)


def _split(tokenizer: dict[str, Any]) -> str:
    """Return llama.cpp's name of the way in which a byte-level tokenizer splits a text."""
    first = tokenizer.get("pre_tokenizer") or {}
    parts = first.get("pretokenizers", [first])
    kinds = [part.get("type") for part in parts]
    known = tokenizer["model"].get("type") == "BPE" and kinds[-1] == "ByteLevel" and not parts[-1]["add_prefix_space"]
    if known and kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if known and kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"] and parts[1].get("use_regex", True):
        return "smollm"
    if known and kinds == ["Split", "ByteLevel"] and parts[0]["pattern"].get("Regex") in _SPLITS:
        return _SPLITS[parts[0]["pattern"]["Regex"]]
    raise UserError("llama.cpp has no tokenizer that splits texts as this model's", where="export.gguf", fix=_FIX)
