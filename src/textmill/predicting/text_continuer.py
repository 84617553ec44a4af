"""Continue prompts with an exported language model, by PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config.sections.generation import GenerationConfig
from textmill.errors import UserError
from textmill.predicting.json_grammar import Guide, guide_tokenizer
from textmill.predicting.predictor import Predictor
from textmill.predicting.text_generator import load_network
from textmill.tasks.abilities import CutsExamples

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from tokenizers import Tokenizer

    from textmill.metrics.base import Outputs
    from textmill.models.language_model import LanguageModel
    from textmill.predicting.exported import ExportedModel

_OF_TOKENS = ("input_ids", "answer")
"""Encoded columns with a value for each token."""
_REPLACEMENT = "\ufffd"
"""The character that a decoder writes for an incomplete UTF-8 sequence."""


@dataclass(frozen=True)
class TokenScore:
    """A generated token: its text, its log-likelihood in nats, and the likeliest tokens at its place with theirs."""

    text: str
    log_likelihood: float
    likeliest: list[tuple[str, float]]


@dataclass(frozen=True)
class Piece:
    """A piece of a continuation.

    Attributes:
        text: Characters that are final; may be empty.
        tokens: Number of tokens since the piece before.
        scores: Their scores, if they were asked for.
        finish: In the last piece, `length` if the largest number of tokens ended the text, else `stop`.
    """

    text: str
    tokens: int
    scores: list[TokenScore]
    finish: str | None = None


class TextContinuer(Predictor):
    """An exported language model, in evaluation mode, that continues prompts (see `ContinuesText`)."""

    engine_name = "pytorch"
    concurrent = 2
    """Generations that a server runs at a time unless it is told otherwise."""

    def __init__(self, exported: ExportedModel, tokenizer: Tokenizer, model: LanguageModel, context: int = 0) -> None:
        super().__init__(exported, tokenizer, session=None)
        self.model = model
        self.context = context or model.architecture.max_length
        self.options = exported.generation or GenerationConfig()
        self._end = int(exported.state["end_of_text"])
        self._other_ends = frozenset(exported.state.get("end_ids", ()))

    @classmethod
    def load_verified(cls, folder: Path, exported: ExportedModel, *, threads: int | None = None) -> TextContinuer:
        """Load a folder after its digests were checked; see `load_predictor`."""
        from textmill.data.tokenizing import load_tokenizer

        model: Any = load_network(folder, exported, threads=threads)
        return cls(exported, load_tokenizer(folder), model)

    def predict(self, values: Sequence[Any]) -> list[dict[str, Any]]:
        """Continue natural inputs with the exported generation options; see `generate`."""
        return self.generate(values, self.options)

    def generate(self, prompts: Sequence[Any], options: GenerationConfig) -> list[dict[str, Any]]:
        """Continue natural inputs in one batch; return `text` and the number of `tokens` for each."""
        from textmill.models.generation import search

        encoded = self._encoded(prompts)
        if options.beams > 1:
            found = search(self.model, encoded, options, self._end, other_ends=self._other_ends)
            return [self._answer(row, options) for row in found]
        rows: list[list[int]] = [[] for _ in prompts]
        for step in self._steps(encoded, options):
            for row, token in zip(rows, step, strict=True):
                row += [] if token is None else [token]
        return [self._answer(row, options) for row in rows]

    def continued(self, prompt: Sequence[int], options: GenerationConfig) -> list[int]:
        """Return the tokens that continue those of one prompt, a stop included."""
        if options.beams > 1:
            from textmill.models.generation import search

            return search(self.model, [list(prompt)], options, self._end, other_ends=self._other_ends)[0]
        return [token for [token] in self._steps([list(prompt)], options) if token is not None]

    def stream(self, prompt: str, options: GenerationConfig) -> Iterator[str]:
        """Yield the continuation of one prompt in pieces, each when its characters are final."""
        for piece in self.pieces(self.encode_prompt(prompt), options):
            yield piece.text

    def encode_prompt(self, prompt: Any, *, plain: bool = False) -> list[int]:
        """Return the tokens of a natural input, or with `plain` those of a text as it is.

        Raises:
            UserError: The input is invalid, or longer than the model's context.
        """
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids if plain else self._encoded([prompt])[0]
        if len(ids) >= self.context:
            message = f"the prompt has {len(ids)} tokens, the model's context {self.context}"
            raise UserError(message, fix="Send a shorter prompt")
        return list(ids)

    def pieces(
        self,
        prompt: Sequence[int],
        options: GenerationConfig,
        likeliest: int | None = None,
        grammar: str | None = None,
    ) -> Iterator[Piece]:
        """Yield the continuation of tokens in pieces, each when its characters are final; the last has `finish`.

        With `likeliest`, pieces have the scores of their tokens, and of that many likeliest ones at each place. The
        text follows `grammar`, the result of `json_grammar`.

        Raises:
            UserError: The tokenizer, or a beam search, cannot follow a grammar.
        """
        from textmill.models.generation import search

        if options.beams > 1:
            if grammar is not None:
                raise UserError("a beam search cannot follow a schema", where="beams", fix="Use one beam")
            [tokens] = search(self.model, [list(prompt)], options, self._end, other_ends=self._other_ends)
            yield Piece(self._answer(tokens, options)["text"], len(tokens), [], self._finish(tokens, options))
            return
        scores: list[TokenScore] = []

        def observe(logits: torch.Tensor, chosen: list[int]) -> None:
            scores.append(self._score(logits[0], chosen[0], likeliest or 0))

        guide = None if grammar is None else Guide(self._guide_tokenizer, grammar, self._end)
        withheld = max((len(stop) - 1 for stop in options.stop), default=0)
        tokens, told = [], 0
        sent = ""
        for [token] in self._steps([list(prompt)], options, observe if likeliest is not None else None, guide):
            if token is None:
                continue
            tokens.append(token)
            text = self._answer(tokens, options)["text"].rstrip(_REPLACEMENT)
            final = text[: len(text) - withheld] if withheld else text
            if len(final) > len(sent):
                yield Piece(final[len(sent) :], len(tokens) - told, scores[told : len(tokens)])
                sent, told = final, len(tokens)
        rest = self._answer(tokens, options)["text"][len(sent) :]
        yield Piece(rest, len(tokens) - told, scores[told : len(tokens)], self._finish(tokens, options))

    def outputs(self, frame: pd.DataFrame) -> Outputs:
        """Return `nll` (nats) and `targets` of each token, one row per text, truncated to the context."""
        import torch

        from textmill.tasks.base import Task

        task: Task = self.task
        columns = task.encode(frame, self.tokenizer, self.exported.state, self.exported.max_length)
        context = self.model.architecture.max_length
        windows = [[self._end, *ids][: context + 1] for ids in columns["input_ids"]]
        batch = task.collate({"input_ids": windows, "document_ids": [[0] * len(window) for window in windows]})
        device = self.model.output_weight.device
        with torch.inference_mode():
            loss = task.loss(self.model, {name: tensor.to(device) for name, tensor in batch.items()})
        return {name: values.float().cpu().numpy() for name, values in loss.outputs.items()}

    def outputs_for_targets(self, frame: pd.DataFrame) -> tuple[Outputs, pd.DataFrame]:
        """Return `nll` (nats) and `targets` (tokens) of each text, and the rows with `input_ids` and `length`.

        Every token of a text is a target once. A text longer than the context is cut into windows of it.
        """
        import numpy as np
        import torch

        if self.task.target_columns:
            return self._outputs_of_rows(frame)
        columns = self._columns(frame[list(self.task.text_columns)])
        if isinstance(self.task, CutsExamples):  # parts of documents: they begin as a document does, and do not end
            columns["input_ids"] = [[self._end, *ids[:-1]] for ids in columns["input_ids"]]
        context, task = self.model.architecture.max_length, self.task
        nll, targets = np.zeros(len(frame)), np.zeros(len(frame), np.int64)
        with torch.inference_mode():
            for row, ids in enumerate(columns["input_ids"]):
                for start in range(0, max(1, len(ids) - 1), context):
                    window = slice(start, start + context + 1)
                    part = {name: [values[row][window]] for name, values in columns.items() if name in _OF_TOKENS}
                    batch = task.collate({**part, "document_ids": [[0] * len(part["input_ids"][0])]})
                    device = self.model.output_weight.device
                    outputs = task.loss(self.model, {name: value.to(device) for name, value in batch.items()}).outputs
                    nll[row] += float(outputs["nll"].sum())
                    targets[row] += int(outputs["targets"].sum())
        return {"nll": nll, "targets": targets}, frame.assign(input_ids=columns["input_ids"], length=targets)

    def _outputs_of_rows(self, frame: pd.DataFrame) -> tuple[Outputs, pd.DataFrame]:
        """Return the outputs of the task's loss for rows with targets, one after the other, and the rows."""
        import torch

        from textmill.text.batches import stack_rows

        rows = {str(name): frame[name].tolist() for name in frame} | self._columns(frame)
        chunks: dict[str, list[Any]] = {}
        device = self.model.output_weight.device
        with torch.inference_mode():
            for row in range(len(frame)):
                batch = self.task.collate({name: [values[row]] for name, values in rows.items()})
                found = self.task.loss(self.model, {name: value.to(device) for name, value in batch.items()})
                for name, values in found.outputs.items():
                    chunks.setdefault(name, []).append(values.float().cpu().numpy())
        return {name: stack_rows(parts) for name, parts in chunks.items()}, frame

    def _encoded(self, prompts: Sequence[Any]) -> list[list[int]]:
        task: Any = self.task  # a `ContinuesText`
        texts = task.prompts(task.parse_inputs(prompts), self.exported.state)
        return [self.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]

    def _score(self, logits: torch.Tensor, token: int, likeliest: int) -> TokenScore:
        """Return the score of a chosen token, given the logits (V) at its place."""
        values = logits.float().log_softmax(dim=-1)
        best, places = values.topk(likeliest)
        decode = partial(self.tokenizer.decode, skip_special_tokens=False)
        others = [(decode([place]), value) for place, value in zip(places.tolist(), best.tolist(), strict=True)]
        return TokenScore(decode([token]), float(values[token]), others)

    def _finish(self, tokens: Sequence[int], options: GenerationConfig) -> str:
        stopped = any(stop in self.tokenizer.decode(list(tokens)) for stop in options.stop)
        return "length" if len(tokens) == options.max_new_tokens and not stopped else "stop"

    def _steps(
        self,
        prompts: list[list[int]],
        options: GenerationConfig,
        observe: Callable[[torch.Tensor, list[int]], None] | None = None,
        guide: Guide | None = None,
    ) -> Iterator[list[int | None]]:
        from textmill.models.generation import generate

        longest = max(map(len, options.stop), default=0)

        def is_done(_: int, tokens: list[int]) -> bool:
            # A token is at least one byte and a character at most four: these tokens cover the longest stop.
            tail = self.tokenizer.decode(tokens[-4 * longest - 1 :])
            return any(stop in tail for stop in options.stop)

        done = is_done if options.stop else None
        hooks: dict[str, Any] = {"is_done": done, "observe": observe, "restrict": guide}
        return generate(self.model, prompts, options, self._end, other_ends=self._other_ends, **hooks)

    @cached_property
    def _guide_tokenizer(self) -> Any:
        return guide_tokenizer(self.tokenizer, self.model.vocabulary_size, [self._end, *self._other_ends])

    def _answer(self, tokens: list[int], options: GenerationConfig) -> dict[str, Any]:
        text: str = self.tokenizer.decode(tokens)
        ends = [text.index(stop) for stop in options.stop if stop in text]
        return {"text": text[: min(ends, default=len(text))], "tokens": len(tokens)}
