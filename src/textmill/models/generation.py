"""Generate text token by token: greedy, by sampling or by beam search, with a cache.

Temperature, top-k, top-p, min-p and repetition penalty are processors of the transformers library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor

from textmill.config.sections.generation import GenerationConfig

if TYPE_CHECKING:
    from textmill.models.cache import KeyValueCache
    from textmill.models.language_model import LanguageModel
    from textmill.models.transformer import Source

Done = Callable[[int, list[int]], bool]
"""Return whether a row, given its number and its new tokens, is finished."""


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    options: GenerationConfig,
    end: int,
    *,
    is_done: Done | None = None,
    cached: bool = True,
    source: Source | None = None,
) -> Iterator[list[int | None]]:
    """Continue prompts in parallel; yield the next token of each, None for finished rows.

    A row ends with the token `end` (not yielded), when `is_done` returns True, or after
    `max_new_tokens`. A row's samples depend on the seed and its number, not on other rows. An empty
    prompt starts a new document. Without `cached`, keys and values are recomputed for each token.
    `source` has the sources of the rows, for a model that reads them.
    """
    device = model.output_weight.device
    process = _processors(options)
    generators = [torch.Generator(device).manual_seed(options.seed + row) for row in range(len(prompts))]
    rows = [list(prompt) or [end] for prompt in prompts]
    window = _Window(model, rows, options.max_new_tokens, cached=cached, source=source)
    new_tokens: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    for _ in range(options.max_new_tokens):
        logits = process(window.ids, window.next_logits())
        chosen = _choose(logits, generators, greedy=options.temperature == 0)
        step: list[int | None] = [None] * len(prompts)
        for row in sorted(open_rows):
            if chosen[row] == end:
                open_rows.discard(row)
                continue
            step[row] = chosen[row]
            new_tokens[row].append(chosen[row])
            if is_done is not None and is_done(row, new_tokens[row]):
                open_rows.discard(row)
        yield step
        if not open_rows:
            return
        window.append(chosen)


@torch.inference_mode()
def search(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    options: GenerationConfig,
    end: int,
    *,
    source: Source | None = None,
) -> list[list[int]]:
    """Return the best continuation of each prompt by beam search, scored by log-likelihood / length^penalty.

    A prompt's search ends when `beams` continuations have ended, or at the maximum length. The
    arguments are those of `generate`.
    """
    beams, device = options.beams, model.output_weight.device
    searches = [_Beams(options) for _ in prompts]
    open_searches = list(searches)
    rows = [list(prompt) or [end] for prompt in prompts for _ in range(beams)]
    window = _Window(model, rows, options.max_new_tokens, cached=True, source=source, rows_per_source=beams)
    for _ in range(options.max_new_tokens):
        scores = torch.tensor([search.scores for search in open_searches], device=device)
        candidates = scores[:, :, None] + window.next_logits().log_softmax(dim=-1).view(*scores.shape, -1)
        best, where = candidates.flatten(1).topk(2 * beams)
        kept: list[int] = []
        tokens: list[int] = []
        still_open = []
        for number, (search, scored, places) in enumerate(
            zip(open_searches, best.tolist(), where.tolist(), strict=True)
        ):
            chosen = [divmod(place, candidates.size(2)) for place in places]
            if search.step(scored, chosen, end):
                still_open.append(search)
                kept += [number * beams + beam for beam in search.origins]
                tokens += [tokens_of_beam[-1] for tokens_of_beam in search.tokens]
        open_searches = still_open
        if not open_searches:
            break
        window.reorder(kept)
        window.append(tokens)
    return [search.best() for search in searches]


def generate_tokens(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    options: GenerationConfig,
    end: int,
    *,
    source: Source | None = None,
) -> list[list[int]]:
    """Return the result of `search`, or for one beam all tokens of `generate`; the arguments are theirs."""
    if options.beams > 1:
        return search(model, prompts, options, end, source=source)
    rows: list[list[int]] = [[] for _ in prompts]
    for step in generate(model, prompts, options, end, source=source):
        for row, token in zip(rows, step, strict=True):
            row += [] if token is None else [token]
    return rows


class _Beams:
    """The beam search of one prompt: log-likelihood, new tokens and previous beam of each beam."""

    def __init__(self, options: GenerationConfig) -> None:
        self._options = options
        self._finished: list[tuple[float, list[int]]] = []
        # All beams are equal at first; only the first one branches
        self.scores = [0.0] + [-math.inf] * (options.beams - 1)
        self.tokens: list[list[int]] = [[] for _ in range(options.beams)]
        self.origins = list(range(options.beams))

    def step(self, scores: Sequence[float], chosen: Sequence[tuple[int, int]], end: int) -> bool:
        """Take the best candidates, (beam, token), in order of falling score; return whether to go on."""
        beams = self._options.beams
        kept: list[tuple[float, int, int]] = []
        for rank, (score, (beam, token)) in enumerate(zip(scores, chosen, strict=True)):
            if token == end:
                if rank < beams:
                    self._finished.append((self._value(score, len(self.tokens[beam]) + 1), self.tokens[beam]))
            elif len(kept) < beams:
                kept.append((score, beam, token))
        self.scores = [score for score, _, _ in kept]
        self.origins = [beam for _, beam, _ in kept]
        self.tokens = [[*self.tokens[beam], token] for _, beam, token in kept]
        return len(self._finished) < beams

    def best(self) -> list[int]:
        """Return the best continuation, including those cut off at the maximum length."""
        cut = [
            (self._value(score, len(tokens)), tokens)
            for score, tokens in zip(self.scores, self.tokens, strict=True)
            if tokens and score > -math.inf
        ]
        return max([*self._finished, *cut], key=lambda pair: pair[0])[1]

    def _value(self, score: float, length: int) -> float:
        value: float = score / length**self._options.length_penalty
        return value


class _Window:
    """The model's current context and its cache; when it is full, the newer half is kept.

    `ids` (B, T) are padded on the left with each row's first token.
    """

    def __init__(
        self,
        model: LanguageModel,
        rows: list[list[int]],
        new: int,
        *,
        cached: bool,
        source: Source | None,
        rows_per_source: int = 1,
    ) -> None:
        self._model = model
        self._rows = rows
        self._cached = cached
        self._source_of_row = [number // rows_per_source for number in range(len(rows))]
        self._all_sources = source
        self._source = self._select_sources()
        self._context = model.architecture.max_length
        self._room = min(self._context, max(map(len, rows)) + new)
        self.ids: Tensor
        self._mask: Tensor | None
        self._cache: KeyValueCache | None
        self._fill()

    def next_logits(self) -> Tensor:
        """Compute the logits (B, V) of the next token, in float32."""
        fresh = self.ids if self._cache is None else self.ids[:, self._cache.length :]
        mask = None
        if self._mask is not None:
            # A cache stores the mask of earlier tokens
            mask = self._mask if self._cache is None else self._mask[:, self._cache.length :]
        source: dict[str, Any] = {} if self._source is None else {"source": self._source}
        hidden = self._model.hidden_states(fresh, attention_mask=mask, cache=self._cache, **source)
        states = hidden.states[:, -1]
        return F.linear(states, self._model.output_weight).float()

    def append(self, tokens: Sequence[int]) -> None:
        """Append a token to each row."""
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)
        if self.ids.size(1) >= self._context:
            self._fill()
            return
        new = torch.tensor(tokens, device=self.ids.device)[:, None]
        self.ids = torch.cat([self.ids, new], dim=1)
        if self._mask is not None:
            self._mask = torch.cat([self._mask, torch.ones_like(new)], dim=1)

    def reorder(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        index = torch.tensor(rows, device=self.ids.device)
        self._rows = [list(self._rows[row]) for row in rows]
        self.ids = self.ids[index]
        self._mask = None if self._mask is None else self._mask[index]
        if self._cache is not None:
            self._cache.reorder(index)
        source_of_row = [self._source_of_row[row] for row in rows]
        if source_of_row != self._source_of_row:  # mostly only beams of the same source are reordered
            self._source_of_row = source_of_row
            self._source = self._select_sources()

    def _select_sources(self) -> Source | None:
        if self._all_sources is None:
            return None
        return self._all_sources.select(torch.tensor(self._source_of_row, device=self._model.output_weight.device))

    def _fill(self) -> None:
        """Start the context from the rows: all of them if more tokens fit, else their newer half."""
        longest = max(map(len, self._rows))
        kept = self._context // 2 if longest >= self._context else longest
        rows = [row[-kept:] for row in self._rows]
        width = max(map(len, rows))
        device = self._model.output_weight.device
        self.ids = torch.tensor([row[:1] * (width - len(row)) + row for row in rows], device=device)
        self._mask = None
        if any(len(row) < width for row in rows):
            self._mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        self._cache = self._model.new_cache(len(rows), self._room) if self._cached else None


def _processors(options: GenerationConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that applies the options to the logits, in transformers' order."""
    if options.temperature == 0 and options.repetition_penalty == 1:
        return lambda _, scores: scores
    from transformers.generation import logits_process as processors

    chain: Any = processors.LogitsProcessorList()
    if options.repetition_penalty != 1:
        chain.append(processors.RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.temperature not in (0, 1):
        chain.append(processors.TemperatureLogitsWarper(options.temperature))
    if options.top_k is not None:
        chain.append(processors.TopKLogitsWarper(options.top_k))
    if options.top_p is not None:
        chain.append(processors.TopPLogitsWarper(options.top_p))
    if options.min_p is not None:
        chain.append(processors.MinPLogitsWarper(options.min_p))
    return lambda tokens, scores: chain(tokens, scores)


def _choose(logits: Tensor, generators: Sequence[torch.Generator], *, greedy: bool) -> list[int]:
    """Choose one token for each row."""
    if greedy:
        likeliest: list[int] = logits.argmax(dim=-1).tolist()
        return likeliest
    probabilities = logits.softmax(dim=-1)
    pairs = zip(probabilities, generators, strict=True)
    return [int(torch.multinomial(row, 1, generator=generator)) for row, generator in pairs]
