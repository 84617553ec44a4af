"""Text of 256 tokens with keys and values kept, and with everything computed again for every token.

The model is a decoder of 2.6 million weights (`model=shakespeare`) with fresh weights and a context of
512, one prompt of 16 tokens, greedy; both sides take turns and write the same tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMPT, NEW, REPEATS = 16, 256, 5


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repetition")
    repeats = 1 if parser.parse_args().quick else REPEATS

    import torch

    from textmill.config.compose import compose
    from textmill.config.layout import Layout
    from textmill.config.sections.generation import GenerationConfig
    from textmill.models.base import Model
    from textmill.models.generation import generate

    torch.manual_seed(0)
    config = compose(Layout(ROOT), ["experiment=shakespeare", "model.max_length=512"])
    model = Model.build(config.train.model).build_decoder(2048, None).eval()
    prompt = torch.randint(1, 2048, (PROMPT,)).tolist()
    options = GenerationConfig(max_new_tokens=NEW, temperature=0)
    speeds: dict[bool, list[float]] = {True: [], False: []}
    written = {}
    for _ in range(repeats):
        for cached in speeds:
            started = time.perf_counter()
            written[cached] = [step[0] for step in generate(model, [prompt], options, end=-1, cached=cached)]
            speeds[cached].append(NEW / (time.perf_counter() - started))
    assert written[True] == written[False], "the cache changes what is written"
    medians = {cached: statistics.median(values) for cached, values in speeds.items()}
    print(f"| side | tokens/s, median of {repeats} |\n|---|---:|")
    print(f"| without a cache | {medians[False]:.0f} |\n| with a cache | {medians[True]:.0f} |")
    print(f"| **ratio** | **{medians[True] / medians[False]:.1f}x** |\n| goal | ≥ 5x |")


if __name__ == "__main__":
    main()
