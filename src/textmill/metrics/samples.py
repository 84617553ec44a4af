"""Text that a language model generates from fixed prompts, and its repetition."""

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
    """A prompt and its continuation, as text and as tokens."""

    temperature: float
    prompt: str
    text: str
    tokens: list[int]


def draw(
    model: LanguageModel,
    tokenizer: Any,
    prompts: Sequence[str],
    end: int,
    tokens: int,
    other_ends: Sequence[int] = (),
) -> list[Sample]:
    """Generate greedy and sampled continuations of each prompt; the same for the same weights.

    The model is in evaluation mode, and the tokenizer a `tokenizers.Tokenizer`. A continuation stops before the
    token with the id `end`, which ends a document, one of `other_ends`, or after `tokens` tokens.
    """
    from textmill.config.sections.generation import GenerationConfig
    from textmill.models.generation import generate

    encoded = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    samples = []
    for temperature in TEMPERATURES:
        options = GenerationConfig(max_new_tokens=tokens, temperature=temperature, seed=SEED)
        steps = list(generate(model, encoded, options, end, other_ends=other_ends))
        for number, prompt in enumerate(prompts):
            row = [token for step in steps if (token := step[number]) is not None]
            samples.append(Sample(temperature, prompt, tokenizer.decode(row), row))
    return samples


def distinct(tokens: Sequence[int], n: int) -> float:
    """Return the share of different n-grams among all (distinct-n; Li et al. 2016); 1 without n-grams."""
    grams = list(zip(*(tokens[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """Return the share of n-grams that repeat an earlier one (seq-rep-n; Welleck et al. 2020)."""
    return 1 - distinct(tokens, n)


def sample_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Return means over the samples of a temperature: `samples/METRIC_greedy` and `samples/METRIC_drawn`."""
    metrics = {}
    for name, chosen in (
        ("greedy", [sample.tokens for sample in samples if sample.temperature == 0]),
        ("drawn", [sample.tokens for sample in samples if sample.temperature > 0]),
    ):
        for metric, values in (
            ("repetition", [repetition(tokens) for tokens in chosen]),
            ("distinct_1", [distinct(tokens, 1) for tokens in chosen]),
            ("distinct_2", [distinct(tokens, 2) for tokens in chosen]),
        ):
            metrics[f"{_PREFIX}{metric}_{name}"] = sum(values) / max(1, len(values))
    return metrics


def section(samples: Sequence[Sample]) -> Section:
    """Return the section with all samples."""
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
        "Continuations of fixed prompts. Repetition is the share of 4-grams of tokens that repeat an earlier one; "
        "distinct-2 is the share of different 2-grams."
    )
    return Section("Samples", text, table)
