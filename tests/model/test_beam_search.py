"""Beam search with copied weights equals transformers' own, endings, penalties and early stopping included."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from support.faults import rounds
from tiny_decoder import VOCABULARY, architecture, language_model

from textmill.config.sections.generation import GenerationConfig
from textmill.models.encoder_decoder import EncoderDecoder
from textmill.models.generation import search
from textmill.models.language_model import LanguageModel
from textmill.models.to_transformers import to_transformers
from textmill.models.transformer import Encoder

MODELS = ({"qk_norm": False}, {"qk_norm": True, "n_key_value_heads": 2})


def drawn_options(draw: random.Random) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=draw.randint(1, 14),
        beams=draw.randint(2, 6),
        length_penalty=draw.choice([-1.0, 0.0, 0.5, 1.0, 1.0, 2.0]),
        early_stopping=draw.choice([True, False, "never"]),
    )


def reading_model(seed: int) -> LanguageModel:
    torch.manual_seed(seed)
    model = LanguageModel(architecture(max_length=32), VOCABULARY, reads_source=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(3 if "norm" not in name else 1)
    return model


def of_transformers(model: Any, prompt: list[int], options: GenerationConfig, end: int, **inputs: Any) -> list[int]:
    ids = torch.tensor([prompt])
    sequences = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=options.beams,
        do_sample=False,
        max_new_tokens=options.max_new_tokens,
        length_penalty=options.length_penalty,
        early_stopping=options.early_stopping,
        eos_token_id=end,
        pad_token_id=end,
        **inputs,
    )
    tokens = sequences[0, len(prompt) :].tolist()
    return tokens[: tokens.index(end)] if end in tokens else tokens


def test_search_random_prompts_equal_transformers() -> None:
    draw = random.Random(0)
    ended = 0
    for number in range(rounds(8, 63)):
        model = language_model(seed=number, max_length=32, **MODELS[number % len(MODELS)]).eval()
        other = to_transformers(model)
        options, end = drawn_options(draw), draw.randrange(VOCABULARY)
        prompts = [[draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 12))] for _ in range(8)]
        expected = [of_transformers(other, prompt, options, end) for prompt in prompts]
        assert search(model, prompts, options, end) == expected, (number, options, end)
        ended += sum(len(tokens) < options.max_new_tokens for tokens in expected)
    assert ended > 8  # the end is really drawn


def test_search_of_an_encoder_decoder_equals_transformers() -> None:
    from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

    class Reader(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
        """Our decoder and one source under transformers' own search, without a cache."""

        config_class = PretrainedConfig

        def __init__(self, model: EncoderDecoder) -> None:
            super().__init__(PretrainedConfig(vocab_size=VOCABULARY, is_encoder_decoder=False, num_hidden_layers=2))
            self.model = model
            self.source: Any = None

        def forward(self, input_ids: Any, **_: Any) -> CausalLMOutput:
            source = self.source.select(torch.zeros(len(input_ids), dtype=torch.long))
            hidden = self.model.decoder.hidden_states(input_ids, source=source)
            return CausalLMOutput(logits=hidden.states @ self.model.decoder.output_weight.T)

    draw = random.Random(1)
    for number in range(rounds(3, 40)):
        decoder = reading_model(number)
        end = draw.randrange(VOCABULARY)
        model = EncoderDecoder(decoder, Encoder(decoder.architecture), end).eval()
        reader = Reader(model).eval()
        options = drawn_options(draw)
        sources = torch.randint(VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(number))
        mask = torch.ones_like(sources)
        mask[1, 5:] = 0
        expected = []
        for row in range(len(sources)):
            with torch.inference_mode():
                reader.source = model.read_source(sources[row : row + 1], mask[row : row + 1])
                expected.append(of_transformers(reader, [end], options, end, use_cache=False))
        assert model.generate(sources, mask, options) == expected, (number, options, end)


def test_search_with_a_vocabulary_smaller_than_its_beams_equals_transformers() -> None:
    model = language_model(seed=3, max_length=32, qk_norm=False).eval()
    model.vocabulary_size = 5
    model.embedding.weight = torch.nn.Parameter(model.embedding.weight[:5].detach().clone())
    if model.output is not None:
        model.output.weight = torch.nn.Parameter(model.output.weight[:5].detach().clone())
    other = to_transformers(model)
    for stopping in (True, False, "never"):
        options = GenerationConfig(max_new_tokens=7, beams=4, early_stopping=stopping)
        for prompt in ([1], [2, 3, 4], [0, 1, 2, 3]):
            assert search(model, [prompt], options, 2) == [of_transformers(other, prompt, options, 2)]


@pytest.mark.parametrize("beams", [1, 3])
def test_rows_beyond_the_context_are_the_same_alone_and_together(beams: int) -> None:
    from textmill.models.generation import generate_tokens

    draw = random.Random(5)
    model = language_model(seed=7).eval()  # a context of 24 tokens
    prompts = [[draw.randrange(VOCABULARY) for _ in range(length)] for length in (1, 7, 23, 24, 25, 60)]
    options = GenerationConfig(max_new_tokens=40, temperature=0, beams=beams)
    together = generate_tokens(model, prompts, options, VOCABULARY)
    assert together == [generate_tokens(model, [prompt], options, VOCABULARY)[0] for prompt in prompts]
    assert {len(tokens) for tokens in together} == {40}


def test_rows_that_end_leave_the_others_unchanged_beyond_the_context() -> None:
    from textmill.models.generation import generate_tokens

    draw = random.Random(6)
    model = language_model(seed=8).eval()
    prompts = [[draw.randrange(VOCABULARY) for _ in range(length)] for length in (3, 20, 30)]
    options = GenerationConfig(max_new_tokens=50, temperature=1.0, seed=3)
    whole = generate_tokens(model, prompts, options, VOCABULARY)
    for end in {whole[0][5], whole[1][9], whole[2][30]}:
        expected = [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in whole]
        assert generate_tokens(model, prompts, options, end) == expected
