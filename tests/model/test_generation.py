"""Writing with and without a cache, side by side, beyond the context, by draws and by beams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_decoder import VOCABULARY, language_model, router

from textmill.config.sections.generation import GenerationConfig
from textmill.errors import UserError
from textmill.models.generation import generate, search
from textmill.models.language_model import LanguageModel

END = VOCABULARY  # never drawn, so that texts have their full length
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]


def write(model: LanguageModel, prompts: list[list[int]], end: int = END, **options: Any) -> list[list[int]]:
    extra = {name: options.pop(name) for name in ("cached", "is_done") if name in options}
    rows: list[list[int]] = [[] for _ in prompts]
    settings = GenerationConfig(**{"max_new_tokens": 12, "temperature": 0} | options)
    for step in generate(model, prompts, settings, end, **extra):
        for row, token in zip(rows, step, strict=True):
            row += [] if token is None else [token]
    return rows


def log_likelihood(model: LanguageModel, prompt: list[int], tokens: list[int]) -> float:
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens]))["logits"][0].log_softmax(dim=-1)
    positions = range(len(prompt) - 1, len(prompt) + len(tokens) - 1)
    return float(sum(logits[position, token] for position, token in zip(positions, tokens, strict=True)))


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return language_model().eval()


@pytest.mark.parametrize("options", [{}, {"router": router("top_k")}, {"n_key_value_heads": 2}])
def test_a_cache_and_neighbours_change_nothing(options: dict[str, Any]) -> None:
    model = language_model(**options).eval()
    together = write(model, PROMPTS)
    assert together == write(model, PROMPTS, cached=False)
    assert together == [write(model, [prompt])[0] for prompt in PROMPTS]
    drawn = write(model, PROMPTS, temperature=1.0, seed=5)
    assert drawn == write(model, PROMPTS, temperature=1.0, seed=5, cached=False)


def test_text_may_be_longer_than_the_context(model: LanguageModel) -> None:
    long = write(model, [[1, 2, 3]], max_new_tokens=70)[0]
    assert len(long) == 70
    assert long == write(model, [[1, 2, 3]], max_new_tokens=70, cached=False)[0]


def test_prompts_beyond_the_context_and_empty_ones_are_taken(model: LanguageModel) -> None:
    assert len(write(model, [list(range(20)) * 3])[0]) == 12
    assert write(model, [[]], end=0) == write(model, [[0]], end=0)


def test_seeds_decide_the_draws(model: LanguageModel) -> None:
    first, again, other = (write(model, PROMPTS, temperature=1.5, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_narrowing_to_one_token_is_greedy(model: LanguageModel) -> None:
    greedy = write(model, PROMPTS)
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert write(model, PROMPTS, temperature=1.0, **options) == greedy


def test_a_repetition_penalty_leads_elsewhere(model: LanguageModel) -> None:
    plain, punished = (write(model, [[1, 1]], repetition_penalty=value)[0] for value in (1.0, 50.0))
    assert len(set(punished)) > len(set(plain))


def test_rows_end_apart_at_the_end_of_text_and_when_done(model: LanguageModel) -> None:
    whole = write(model, PROMPTS)
    end = whole[0][3]
    for row, tokens in zip(write(model, PROMPTS, end=end), whole, strict=True):
        assert row == (tokens[: tokens.index(end)] if end in tokens else tokens)
    assert [len(row) for row in write(model, PROMPTS, is_done=lambda row, tokens: len(tokens) > row)] == [1, 2, 3]


def test_a_beam_search_finds_likelier_text_than_greedy_choice(model: LanguageModel) -> None:
    options = GenerationConfig(max_new_tokens=6, beams=8)
    together = search(model, PROMPTS, options, END)
    for prompt, found in zip(PROMPTS, together, strict=True):
        assert found == search(model, [prompt], options, END)[0]
        assert len(found) == 6
        greedy = write(model, [prompt], max_new_tokens=6)[0]
        assert log_likelihood(model, prompt, found) >= log_likelihood(model, prompt, greedy) - 1e-4
    one = GenerationConfig(max_new_tokens=6, beams=1)
    assert search(model, PROMPTS, one, END) == write(model, PROMPTS, max_new_tokens=6)


def test_a_router_that_needs_the_future_cannot_write() -> None:
    with pytest.raises(UserError, match="no text can be generated"):
        write(language_model(router=router("soft")).eval(), PROMPTS)
