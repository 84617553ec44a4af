"""Take the picture of the server's page: SmolLM2-135M in float32 by PyTorch, beside its 4-bit file by llama.cpp.

Usage: `python -m bench.page_picture [FOLDER]`. Writes `docs/chat.png`. Without an exported folder that has a q4_1 file,
it exports one. It needs Debian's Chromium, which it installs as root.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from bench.llm_serving import ROOT, export_model

QUESTIONS = ("What is the capital of France?", "Name three rivers of Europe.")
SIZE = {"width": 1000, "height": 960}


def main() -> None:
    """Export the model twice, serve both, ask them, and take the picture."""
    from support.browser import browser
    from support.serving import served

    from textmill.predicting.exported import read_specification, write_manifest, write_specification

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="exported folder with a q4_1 file")
    given = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        exported = given or export_model(root / "project", ("q4_1",))
        files = read_specification(exported).gguf
        variants: dict[str, dict[str, str]] = {"smollm2-float32": {}, "smollm2-q4_1": {"q4_1": files["q4_1"]}}
        for name, kept in variants.items():
            others = shutil.ignore_patterns(*({*files.values()} - {*kept.values()}))
            folder = shutil.copytree(exported, root / name, ignore=others)
            write_specification(folder, read_specification(folder).model_copy(update={"gguf": kept}))
            write_manifest(folder)
        names = ("smollm2-float32", "--beside", "smollm2-q4_1")
        with served(root, root / "log", *names) as server, browser("http://127.0.0.1:", root / "profile") as context:
            page = context.new_page()
            page.set_viewport_size(SIZE)
            page.goto(f"http://127.0.0.1:{server.port}/")
            page.get_by_text("Parameters", exact=True).click()
            page.locator("#temperature").fill("0")
            page.locator("#max_tokens").fill("64")
            for question in QUESTIONS:
                page.get_by_label("Message", exact=True).fill(question)
                page.keyboard.press("Enter")
                page.locator("#send:enabled").wait_for(timeout=300_000)
            page.screenshot(path=ROOT / "docs" / "chat.png")
    print(f"docs/chat.png: {(ROOT / 'docs' / 'chat.png').stat().st_size:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
