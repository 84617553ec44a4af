"""Generate text token by token: greedy, by sampling or by beam search, with a cache.

Temperature, top-k, top-p, min-p and repetition penalty are processors of the transformers library.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor

from textmill.config.sections.generation import GenerationConfig

if TYPE_CHECKING:
    from textmill.models.cache import KeyValueCache
    from textmill.models.language_model import LanguageModel
    from textmill.models.transformer import Source

_IMPOSSIBLE = -1e9
"""Transformers' score of what cannot be; ties and rounding with it are the same."""

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
    other_ends: Collection[int] = (),
    observe: Callable[[Tensor, list[int]], None] | None = None,
    restrict: Callable[[Tensor, list[list[int]]], None] | None = None,
) -> Iterator[list[int | None]]:
    """Continue prompts in parallel; yield the next token of each, None for finished rows.

    A row ends with the token `end` or one of `other_ends` (not yielded), when `is_done` returns True, or after
    `max_new_tokens`. A row's samples depend on the seed and its number, not on other rows. An empty
    prompt starts a new document. Without `cached`, keys and values are recomputed for each token.
    `source` has the sources of the rows, for a model that reads them. `observe` is called at each step with the
    logits (R, V) of the R open rows, before temperature and the like, and the chosen tokens. `restrict` gets
    logits (R, V) and the new tokens of each open row; it sets logits of tokens that may not follow to minus infinity.
    """
    device = model.output_weight.device
    process = _processors(options)
    generators = [torch.Generator(device).manual_seed(options.seed + row) for row in range(len(prompts))]
    rows = [list(prompt) or [end] for prompt in prompts]
    window = _Window(model, rows, options.max_new_tokens, cached=cached, source=source)
    new_tokens: list[list[int]] = [[] for _ in prompts]
    open_rows = list(range(len(prompts)))
    for _ in range(options.max_new_tokens):
        raw = window.next_logits()
        logits = raw.clone() if observe is not None else raw
        if restrict is not None:
            restrict(logits, [new_tokens[row] for row in open_rows])
        logits = process(window.ids, logits)
        chosen = _choose(logits, [generators[row] for row in open_rows], greedy=options.temperature == 0)
        if observe is not None:
            observe(raw, chosen)
        step: list[int | None] = [None] * len(prompts)
        kept = []
        for place, (row, token) in enumerate(zip(open_rows, chosen, strict=True)):
            if token == end or token in other_ends:
                continue
            step[row] = token
            new_tokens[row].append(token)
            if is_done is None or not is_done(row, new_tokens[row]):
                kept.append(place)
        yield step
        if not kept:
            return
        if len(kept) < len(open_rows):
            window.reorder(kept)
            open_rows = [open_rows[place] for place in kept]
        window.append([chosen[place] for place in kept])


@torch.inference_mode()
def search(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    options: GenerationConfig,
    end: int,
    *,
    source: Source | None = None,
    other_ends: Collection[int] = (),
) -> list[list[int]]:
    """Return the best continuation of each prompt by beam search, scored by log-likelihood / length^penalty.

    The same search as transformers' `generate`: only continuations that ended, or that reached the
    maximum length, can be the best. `options.early_stopping` decides when a prompt's search ends. The
    arguments are those of `generate`.
    """
    beams, device = options.beams, model.output_weight.device
    rows = [list(prompt) or [end] for prompt in prompts for _ in range(beams)]
    window = _Window(model, rows, options.max_new_tokens, cached=True, source=source, rows_per_source=beams)
    state = _Beams(len(prompts), options, device)
    ends = torch.tensor([end, *other_ends], device=device)
    open_prompts = list(range(len(prompts)))
    results: list[list[int]] = [[] for _ in prompts]
    for length in range(1, options.max_new_tokens + 1):
        log_likelihood = window.next_logits().log_softmax(dim=-1).view(len(open_prompts), beams, -1)
        origins = state.step(log_likelihood, length, ends)
        goes_on = state.can_improve(length) if length < options.max_new_tokens else [False] * len(open_prompts)
        kept = [place for place, open_ in enumerate(goes_on) if open_]
        for place, (prompt, open_) in enumerate(zip(open_prompts, goes_on, strict=True)):
            if not open_:
                results[prompt] = [token for token in state.best(place) if token not in (end, *other_ends)]
        if not kept:
            break
        open_prompts = [open_prompts[place] for place in kept]
        state.select(torch.tensor(kept, device=device))
        window.reorder([place * beams + beam for place in kept for beam in origins[place]])
        window.append(state.tokens[:, :, length - 1].flatten().tolist())
    return results


def generate_tokens(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    options: GenerationConfig,
    end: int,
    *,
    source: Source | None = None,
    other_ends: Collection[int] = (),
) -> list[list[int]]:
    """Return the result of `search`, or for one beam all tokens of `generate`; the arguments are theirs."""
    if options.beams > 1:
        return search(model, prompts, options, end, source=source, other_ends=other_ends)
    rows: list[list[int]] = [[] for _ in prompts]
    for step in generate(model, prompts, options, end, source=source, other_ends=other_ends):
        for row, token in zip(rows, step, strict=True):
            row += [] if token is None else [token]
    return rows


class _Beams:
    """The beam searches of P open prompts with K beams each, as transformers does them, -1e9 for impossible included.

    Attributes:
        scores: Log-likelihood of each open beam, (P, K), falling.
        tokens: New tokens of each open beam, -1 after them, (P, K, `max_new_tokens`).
        ended: Whether each place holds an ended continuation, (P, K).
        ended_scores: Log-likelihood / length^penalty of the ended continuations, (P, K), falling.
        ended_tokens: Their tokens, the end included, (P, K, `max_new_tokens`).
    """

    def __init__(self, prompts: int, options: GenerationConfig, device: torch.device) -> None:
        self._options = options
        shape = (prompts, options.beams)
        # All beams are equal at first; only the first one branches
        self.scores = torch.full(shape, _IMPOSSIBLE, device=device)
        self.scores[:, 0] = 0
        self.tokens = torch.full((*shape, options.max_new_tokens), -1, device=device)
        self.ended = torch.zeros(shape, dtype=torch.bool, device=device)
        self.ended_scores = torch.full(shape, _IMPOSSIBLE, device=device)
        self.ended_tokens = self.tokens.clone()

    def step(self, log_likelihood: Tensor, length: int, end: Tensor) -> list[list[int]]:
        """Extend the beams by their `length`-th token; return the previous beam of each new one.

        `log_likelihood` (P, K, V) is that of every next token, and `end` has the tokens that end a text.
        """
        beams = self._options.beams
        candidates = log_likelihood + self.scores[:, :, None]
        # Twice as many as beams: half of them may end
        scores, places = candidates.flatten(1).topk(min(2 * beams, candidates[0].numel()))
        origins, added = places // candidates.size(2), places % candidates.size(2)
        tokens = _take(self.tokens, origins)
        tokens[:, :, length - 1] = added
        ends = torch.isin(added, end) | (length == self._options.max_new_tokens)
        values = scores / length**self._options.length_penalty
        # Only the best K candidates may end a text, the others merely keep K beams open
        ending = ends & (torch.arange(ends.size(1), device=ends.device) < beams)
        merged = torch.cat([self.ended_scores, values + ~ending * _IMPOSSIBLE], dim=1)
        self.ended_scores, best = merged.topk(beams)
        self.ended_tokens = _take(torch.cat([self.ended_tokens, tokens], dim=1), best)
        self.ended = torch.cat([self.ended, ending], dim=1).gather(1, best)
        self.scores, best = (scores + ends * _IMPOSSIBLE).topk(beams)
        self.tokens = _take(tokens, best)
        kept: list[list[int]] = origins.gather(1, best).tolist()
        return kept

    def can_improve(self, length: int) -> list[bool]:
        """Return for each prompt whether its open beams of `length` new tokens may still change the result."""
        options = self._options
        longest = options.early_stopping == "never" and options.length_penalty > 0
        hoped = self.scores[:, :1] / (options.max_new_tokens if longest else length) ** options.length_penalty
        worst = torch.where(self.ended, self.ended_scores.amin(dim=1, keepdim=True), _IMPOSSIBLE)
        improvable = (hoped > worst).any(dim=1)
        if options.early_stopping in (True, None):
            improvable &= ~self.ended.all(dim=1)
        result: list[bool] = improvable.tolist()
        return result

    def select(self, prompts: Tensor) -> None:
        """Keep the prompts with these indices."""
        for name in ("scores", "tokens", "ended", "ended_scores", "ended_tokens"):
            setattr(self, name, getattr(self, name)[prompts])

    def best(self, prompt: int) -> list[int]:
        """Return the tokens of the best ended continuation."""
        tokens: list[int] = self.ended_tokens[prompt, 0].tolist()
        return tokens[: tokens.index(-1)] if -1 in tokens else tokens


def _take(tokens: Tensor, beams: Tensor) -> Tensor:
    """Return the beams (P, N) of `tokens` (P, K, L): (P, N, L)."""
    return tokens.gather(1, beams[:, :, None].expand(-1, -1, tokens.size(2)))


class _Window:
    """The model's current context of each row, and its cache.

    When the context of a row is full, its newer half is kept: where a row's context begins depends on
    that row alone. `ids` (B, T) are padded on the left with the first token of each row's context.
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
        self._starts = [0 if len(row) < self._context else len(row) - self._context // 2 for row in rows]
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
        moved = False
        for number, (row, token) in enumerate(zip(self._rows, tokens, strict=True)):
            row.append(token)
            if len(row) - self._starts[number] > self._context:
                self._starts[number] = len(row) - self._context // 2
                moved = True
        if moved or self.ids.size(1) >= self._context:
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
        self._starts = [self._starts[row] for row in rows]
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
        """Compute the context of every row afresh."""
        rows = [row[start:] for row, start in zip(self._rows, self._starts, strict=True)]
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
