"""Text that a language model writes at fixed prompts, and how much it repeats itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textmill.metrics.base import Section

if TYPE_CHECKING:
    from textmill.models.language_model import LanguageModel

TEMPERATURES = (0.0, 0.8)
SEED = 0
_PREFIX = "samples/"


@dataclass(frozen=True)
class Sample:
    """A prompt and what the model went on with, as text and as tokens."""

    temperature: float
    prompt: str
    text: str
    tokens: list[int]


def draw(model: LanguageModel, tokenizer: Any, prompts: Sequence[str], end: int, tokens: int) -> list[Sample]:
    """Greedy and drawn continuations of each prompt; the same ones for the same weights.

    Args:
        model: In evaluation mode.
        tokenizer: A `tokenizers.Tokenizer`.
        prompts: Beginnings.
        end: Id of the token that ends a document.
        tokens: Of each continuation, at most.
    """
    from textmill.config.sections.generation import GenerationConfig
    from textmill.models.generation import generate

    encoded = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    found = []
    for temperature in TEMPERATURES:
        options = GenerationConfig(max_new_tokens=tokens, temperature=temperature, seed=SEED)
        written: list[list[int]] = [[] for _ in prompts]
        for step in generate(model, encoded, options, end):
            for row, token in zip(written, step, strict=True):
                row += [] if token is None else [token]
        found += [
            Sample(temperature, prompt, tokenizer.decode(row), row)
            for prompt, row in zip(prompts, written, strict=True)
        ]
    return found


def distinct(tokens: Sequence[int], n: int) -> float:
    """Different n-grams over all n-grams (distinct-n; Li et al. 2016); 1 where there is none."""
    grams = list(zip(*(tokens[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """Share of n-grams that stood in the text before (seq-rep-n; Welleck et al. 2020)."""
    return 1 - distinct(tokens, n)


def sample_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Means over the samples of a temperature: `samples/FIGURE_greedy` and `samples/FIGURE_drawn`."""
    found = {}
    for name, chosen in (
        ("greedy", [sample.tokens for sample in samples if sample.temperature == 0]),
        ("drawn", [sample.tokens for sample in samples if sample.temperature > 0]),
    ):
        for figure, values in (
            ("repetition", [repetition(tokens) for tokens in chosen]),
            ("distinct_1", [distinct(tokens, 1) for tokens in chosen]),
            ("distinct_2", [distinct(tokens, 2) for tokens in chosen]),
        ):
            found[f"{_PREFIX}{figure}_{name}"] = sum(values) / max(1, len(values))
    return found


def section(samples: Sequence[Sample]) -> Section:
    """A part of the report."""
    import pandas as pd

    table = pd.DataFrame(
        [
            {
                "temperature": sample.temperature,
                "prompt": sample.prompt,
                "continuation": sample.text,
                "repetition": repetition(sample.tokens),
                "distinct_2": distinct(sample.tokens, 2),
            }
            for sample in samples
        ]
    )
    text = (
        "What the model writes after fixed prompts. Repetition is the share of 4-grams of tokens that stood in "
        "the text before, distinct-2 that of different 2-grams."
    )
    return Section("Samples", text, table)
