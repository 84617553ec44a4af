"""Text from a language model, token by token: greedy, sampled or by beam search, with a cache.

What a distribution is changed by before a token is drawn (temperature, top-k, top-p, min-p, repetition
penalty) are the processors of the transformers library.
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
"""From a row's number and its new tokens to whether it is finished."""


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
    """Continue prompts side by side; yields the next token of each, None for those that are finished.

    A row ends with the token `end` (which is not given out), when `is_done` says so, or after
    `max_new_tokens`. What a row draws depends on the seed and its number, not on the other rows.

    Args:
        model: In evaluation mode.
        prompts: Token ids; an empty prompt begins as a new document does.
        options: How tokens are chosen; `beams` is for `search`.
        end: Id of the token that ends a document.
        is_done: Further ends.
        cached: Whether keys and values of earlier tokens are kept, or all is computed again.
        source: What each row is about, where the model reads a source.
    """
    device = model.output_weight.device
    process = _processors(options)
    draws = [torch.Generator(device).manual_seed(options.seed + row) for row in range(len(prompts))]
    rows = [list(prompt) or [end] for prompt in prompts]
    window = _Window(model, rows, options.max_new_tokens, cached=cached, source=source)
    written: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    for _ in range(options.max_new_tokens):
        logits = process(window.tokens(), window.next_logits())
        chosen = _draw(logits, draws, greedy=options.temperature == 0)
        step: list[int | None] = [None] * len(prompts)
        for row in sorted(open_rows):
            if chosen[row] == end:
                open_rows.discard(row)
                continue
            step[row] = chosen[row]
            written[row].append(chosen[row])
            if is_done is not None and is_done(row, written[row]):
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
    """The likeliest continuation of each prompt that a beam search finds, by log-likelihood / length^penalty.

    A prompt's search is over when `beams` continuations have ended, or at the greatest length.
    Arguments are those of `generate`.
    """
    beams, device = options.beams, model.output_weight.device
    searches = [_Beams(options) for _ in prompts]
    open_searches = list(searches)
    rows = [list(prompt) or [end] for prompt in prompts for _ in range(beams)]
    window = _Window(model, rows, options.max_new_tokens, cached=True, source=source, rows_of_source=beams)
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
                tokens += [written[-1] for written in search.written]
        open_searches = still_open
        if not open_searches:
            break
        window.reorder(kept)
        window.append(tokens)
    return [search.best() for search in searches]


def write(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    options: GenerationConfig,
    end: int,
    *,
    source: Source | None = None,
) -> list[list[int]]:
    """What `search` finds, or, for one beam, all that `generate` gives; arguments are theirs."""
    if options.beams > 1:
        return search(model, prompts, options, end, source=source)
    rows: list[list[int]] = [[] for _ in prompts]
    for step in generate(model, prompts, options, end, source=source):
        for row, token in zip(rows, step, strict=True):
            row += [] if token is None else [token]
    return rows


class _Beams:
    """The beam search of one prompt.

    Attributes:
        scores: Log-likelihood of each beam.
        written: New tokens of each.
        origins: Which beam each came from in the last step.
    """

    def __init__(self, options: GenerationConfig) -> None:
        self._options = options
        self._finished: list[tuple[float, list[int]]] = []
        # All beams begin alike; only the first one branches.
        self.scores = [0.0] + [-math.inf] * (options.beams - 1)
        self.written: list[list[int]] = [[] for _ in range(options.beams)]
        self.origins = list(range(options.beams))

    def step(self, scores: Sequence[float], chosen: Sequence[tuple[int, int]], end: int) -> bool:
        """Take the best candidates, (beam, token) with their scores in falling order; whether to go on."""
        beams = self._options.beams
        kept: list[tuple[float, int, int]] = []
        for rank, (score, (beam, token)) in enumerate(zip(scores, chosen, strict=True)):
            if token == end:
                if rank < beams:
                    self._finished.append((self._value(score, len(self.written[beam]) + 1), self.written[beam]))
            elif len(kept) < beams:
                kept.append((score, beam, token))
        self.scores = [score for score, _, _ in kept]
        self.origins = [beam for _, beam, _ in kept]
        self.written = [[*self.written[beam], token] for _, beam, token in kept]
        return len(self._finished) < beams

    def best(self) -> list[int]:
        """The best continuation, one that was cut off at its greatest length among them."""
        cut = [
            (self._value(score, len(tokens)), tokens)
            for score, tokens in zip(self.scores, self.written, strict=True)
            if tokens and score > -math.inf
        ]
        return max([*self._finished, *cut], key=lambda pair: pair[0])[1]

    def _value(self, score: float, length: int) -> float:
        value: float = score / length**self._options.length_penalty
        return value


class _Window:
    """The tokens that the model sees, and its cache; begins anew with the newer half when it is full."""

    def __init__(
        self,
        model: LanguageModel,
        rows: list[list[int]],
        new: int,
        *,
        cached: bool,
        source: Source | None,
        rows_of_source: int = 1,
    ) -> None:
        self._model = model
        self._rows = rows
        self._cached = cached
        self._about = [number // rows_of_source for number in range(len(rows))]
        self._all_sources = source
        self._source = self._sources_of_rows()
        self._context = model.architecture.max_length
        self._room = min(self._context, max(map(len, rows)) + new)
        self._ids: Tensor
        self._mask: Tensor | None
        self._cache: KeyValueCache | None
        self._begin()

    def tokens(self) -> Tensor:
        """Everything in sight, filled up on the left with each row's first token, (B, T)."""
        return self._ids

    def next_logits(self) -> Tensor:
        """Logits (B, V) of the next token, in float32."""
        fresh = self._ids if self._cache is None else self._ids[:, self._cache.length :]
        mask = None
        if self._mask is not None:
            # A cache remembers which of the earlier tokens were filled up.
            mask = self._mask if self._cache is None else self._mask[:, self._cache.length :]
        about: dict[str, Any] = {} if self._source is None else {"source": self._source}
        hidden = self._model.hidden_states(fresh, attention_mask=mask, cache=self._cache, **about)
        states = hidden.states[:, -1]
        return F.linear(states, self._model.output_weight).float()

    def append(self, tokens: Sequence[int]) -> None:
        """Add a token to each row."""
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)
        if self._ids.size(1) >= self._context:
            self._begin()
            return
        new = torch.tensor(tokens, device=self._ids.device)[:, None]
        self._ids = torch.cat([self._ids, new], dim=1)
        if self._mask is not None:
            self._mask = torch.cat([self._mask, torch.ones_like(new)], dim=1)

    def reorder(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        index = torch.tensor(rows, device=self._ids.device)
        self._rows = [list(self._rows[row]) for row in rows]
        self._ids = self._ids[index]
        self._mask = None if self._mask is None else self._mask[index]
        if self._cache is not None:
            self._cache.reorder(index)
        about = [self._about[row] for row in rows]
        if about != self._about:  # mostly the beams of a source change places among themselves
            self._about = about
            self._source = self._sources_of_rows()

    def _sources_of_rows(self) -> Source | None:
        if self._all_sources is None:
            return None
        return self._all_sources.select(torch.tensor(self._about, device=self._model.output_weight.device))

    def _begin(self) -> None:
        """Lay out the rows anew: whole ones if there is room for more, else their newer half."""
        longest = max(map(len, self._rows))
        kept = self._context // 2 if longest >= self._context else longest
        rows = [row[-kept:] for row in self._rows]
        width = max(map(len, rows))
        device = self._model.output_weight.device
        self._ids = torch.tensor([row[:1] * (width - len(row)) + row for row in rows], device=device)
        self._mask = None
        if any(len(row) < width for row in rows):
            self._mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        self._cache = self._model.new_cache(len(rows), self._room) if self._cached else None


def _processors(options: GenerationConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """The changes of the distribution that the options ask for, in transformers' order."""
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


def _draw(logits: Tensor, draws: Sequence[torch.Generator], *, greedy: bool) -> list[int]:
    """A token for each row."""
    if greedy:
        likeliest: list[int] = logits.argmax(dim=-1).tolist()
        return likeliest
    shares = logits.softmax(dim=-1)
    return [int(torch.multinomial(row, 1, generator=generator)) for row, generator in zip(shares, draws, strict=True)]
