"""Dequantise a GGUF file, the format of llama.cpp, to a folder that transformers loads."""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from textmill.errors import UserError, first_line
from textmill.files import sha256_file

log = logging.getLogger("textmill")

_PLAIN_SPLITS = ("gpt-2", "default")
"""llama.cpp's names of the split that transformers' byte-level tokenizer makes."""
_DIGIT_SPLITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
"""Names of splits that first make each digit a piece; transformers reads them as the plain one."""


def dequantise(path: Path, folder: Path, source: str) -> dict[str, Any]:
    """Write `config.json`, float32 safetensors, tokenizer and chat template of a GGUF file into a folder.

    Returns:
        What the file says of itself: `architecture`, `licence`, and under `quantised` its name, digest and
        `quantisation` (the type that most of its weights have).

    Raises:
        UserError: The file is damaged, or transformers cannot read its architecture or tokenizer.
    """
    described = _describe(path, source)
    try:
        with redirect_stderr(io.StringIO()):  # progress bars that no option turns off
            _convert(path, folder, digits_first=described["split"] in _DIGIT_SPLITS)
    except Exception as error:  # of the library, which raises any kind
        message = f"transformers cannot read GGUF of the architecture {described['architecture']!r}"
        fix = "Choose a model with safetensors weights"
        raise UserError(f"{message} ({first_line(error)})", where=source, fix=fix) from error
    del described["split"]
    return described


def _describe(path: Path, source: str) -> dict[str, Any]:
    """Read the file's own description."""
    from gguf import GGUFReader
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    try:
        reader = GGUFReader(path)
        types = [(tensor.n_elements, tensor.tensor_type.name) for tensor in reader.tensors]
        names = {
            key: reader.fields[key].contents() if key in reader.fields else None
            for key in ("general.architecture", "general.license", "tokenizer.ggml.model", "tokenizer.ggml.pre")
        }
    except Exception as error:  # a damaged file makes numpy and the reader raise any kind
        raise UserError(f"is not a readable GGUF file ({first_line(error)})", where=source) from error
    if names["general.architecture"] is None or not types:
        raise UserError("is a GGUF file without architecture or weights", where=source)
    split = names["tokenizer.ggml.pre"]
    if names["tokenizer.ggml.model"] == "gpt2" and split not in (
        *_PLAIN_SPLITS,
        *_DIGIT_SPLITS,
        *GGUF_PRE_TOKENIZER_SPLITS,
    ):
        log.warning("fetch: %s: transformers may not split text as the file's tokenizer %r does", source, split)
    weights: dict[str, int] = {}
    for elements, name in types:
        weights[name] = weights.get(name, 0) + int(elements)
    return {
        "architecture": names["general.architecture"],
        "licence": names["general.license"],
        "split": split,
        "quantised": {
            "file": path.name,
            "sha256": sha256_file(path),
            "quantisation": max(weights, key=weights.__getitem__),
        },
    }


def _convert(path: Path, folder: Path, *, digits_first: bool) -> None:
    """Write the dequantised model and its tokenizer with the files' names of transformers."""
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as logging_of_transformers

    library: Any = logging_of_transformers
    library.set_verbosity_error()
    library.disable_progress_bar()
    options: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    tokenizers: Any = AutoTokenizer
    models: Any = AutoModelForCausalLM
    tokenizer = tokenizers.from_pretrained(path.parent, **options)
    if digits_first:
        pieces = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    tokenizer.save_pretrained(folder)
    model = models.from_pretrained(path.parent, dtype="float32", **options)
    # The weights are dequantised; the library refuses to save a model that says otherwise
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder, max_shard_size="1000GB")
    for written in folder.glob("*.safetensors"):
        written.chmod(0o644)
