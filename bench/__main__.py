"""Run every benchmark and write its page: `make bench` or `python -m bench [NAME ...]`.

Each benchmark is a program that prints its own section of Markdown. Naming some renews only their
sections; the others stay as they were measured.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from bench import end_by_exception

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
OTHER_PAGES = {
    "gate": ROOT / "docs" / "promotion.md",
    "scale": ROOT / "docs" / "scale.md",
    "assistant": ROOT / "docs" / "applications" / "assistant.md",
}
"""Pages on which a benchmark's section stands in the text, between marks of the same form."""
BENCHMARKS = {
    "pipeline": "The whole pipeline",
    "quality": "Quality of the default model over three seeds",
    "recipes": "Processor seconds of the default training, with and without R-Drop",
    "rare_labels": "Rare labels: class weights, logit adjustment and offsets",
    "wrong_labels": "Wrong labels: rows flipped on purpose, and training without those suspected",
    "label_next": "Labels for chosen rows compared with random ones",
    "question_answering": "Question answering and its baselines",
    "translation": "Translation and translation memory",
    "summarisation": "Summaries and the beginning of the text",
    "finetuning": "Fine-tuning compared with `transformers.Trainer`",
    "tasks": "Several labels a text, numbers, entities and re-ranking, and their baselines",
    "languages": "Files in other languages, through `textmill init` without a setting",
    "token_classification": "Entities of WNUT-17 compared with `transformers.Trainer`",
    "nanogpt": "Characters of tiny Shakespeare compared with nanoGPT",
    "generation": "Generation with and without a cache",
    "distillation": "Distillation: a student compared with its teacher and with itself untaught",
    "inference": "Inference: exported int8 compared with eager fp32 PyTorch",
    "serving": "Serving: `textmill serve` compared with `mlflow models serve`",
    "gguf": "GGUF files of a real model, checked by llama.cpp",
    "shadow": "Answers with and without a challenger in the shadow",
    "llm_serving": "Chat models served: two engines, llama.cpp's server, `transformers`",
    "dispatch": "Mixture of experts compared with dense at equal active FLOPs",
    "gpu": "Language models on one GPU",
    "likelihood": "Memory of the loss: in chunks, and all logits at once",
    "packing": "Rows packed and padded, for a model of transformers",
    "assistant": "One chat model compared with five specialists",
    "instruction_tuning": "Instruction tuning compared with `trl.SFTTrainer`",
    "preferences": "Steps of preference tuning compared with instruction tuning",
    "best_fit": "Documents packed by best fit, and attention within them",
    "semantic": "Similarity on STS-B, and search compared with BM25",
    "choose": "Choosing a model: the advice compared with training all",
    "tune": "Tuning compared with random search at equal time",
    "plan": "Plans of trainings compared with what they took",
    "startup": "Start-up and fixed costs",
    "prepare": "Speed of `prepare` compared with its tokenizer alone",
    "scale": "Limits of many GPUs",
    "filters": "Quality filters compared with datatrove",
    "memory": "Memory of `prepare` on 1 GB of text",
    "gate": "Simulated promotions",
    "drift": "Drift of captured requests: quiet days and planted changes",
}
NEEDS_A_GPU = "gpu"
INTRODUCTION = """# Benchmarks

All rows of a table were measured in one run on the machine named below its heading. `make bench` repeats all
measurements on a CPU, `make bench-gpu` those on a GPU, and `python -m bench NAME` one of them.
"""


def machine() -> str:
    """The machine and the versions that matter, in one line."""
    import torch

    processor = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{processor}, {os.cpu_count()} cores, {device}; {versions}; {today}"


def read_sections() -> dict[str, str]:
    """Sections already on the page, by benchmark."""
    if not PAGE.is_file():
        return {}
    found = re.findall(r"<!-- bench:(\w+) -->\n(.*?)<!-- /bench -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return dict(found)


def write_between_marks(page: Path, name: str, section: str) -> None:
    """Replace a benchmark's section of a page."""
    before, start, rest = page.read_text(encoding="utf-8").partition(f"<!-- bench:{name} -->\n")
    _, end, after = rest.partition("<!-- /bench -->")
    if not end:
        sys.exit(f"error: {page} has no section <!-- bench:{name} -->")
    page.write_text(before + start + section + end + after, encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Measure and write. Options (`--quick`) go to the benchmarks named."""
    end_by_exception()
    names = [argument for argument in arguments if not argument.startswith("-")]
    options = [argument for argument in arguments if argument.startswith("-")]
    unknown = set(names) - set(BENCHMARKS)
    if unknown or (options and not names):
        sys.exit(f"error: name benchmarks among {', '.join(BENCHMARKS)}, options after them; not {arguments}")
    sections = read_sections()
    for name in names or (name for name in BENCHMARKS if name != NEEDS_A_GPU):
        print(f"bench: {name} ...", file=sys.stderr)
        command = [sys.executable, "-m", f"bench.{name}", *options]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
            try:
                printed = running.communicate()[0]
            except BaseException:
                running.terminate()  # it ends its servers itself
                raise
        if running.returncode:
            sys.exit(f"error: {' '.join(command)} ended with {running.returncode}")
        said = " ".join(["python -m bench", name, *options])
        section = f"## {BENCHMARKS[name]}\n\n*{machine()}. Command: `{said}`.*\n\n{printed.strip()}\n"
        if name in OTHER_PAGES:
            write_between_marks(OTHER_PAGES[name], name, section)
            continue
        sections[name] = section
        text = INTRODUCTION
        for known in BENCHMARKS:
            if known in sections:
                text += f"\n<!-- bench:{known} -->\n{sections[known]}<!-- /bench -->\n"
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
