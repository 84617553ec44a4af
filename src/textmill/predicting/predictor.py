"""Predictions by ONNX Runtime from an exported folder; loads neither PyTorch nor MLflow."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from textmill.predicting.exported import ExportedModel
from textmill.tasks.abilities import sequences_of
from textmill.tasks.base import Task
from textmill.text.batches import length_batches, pad, restore_order

if TYPE_CHECKING:
    import onnxruntime
    import pandas as pd
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from textmill.data.cleaning import Cleaner
    from textmill.metrics.base import Outputs

# On the CPU the fused operator took ten times as long as the sum and the norm that it replaces, and
# with it a fifth of MiniLM's time.
_SLOWING = ["SkipLayerNormFusion"]

_CHARACTERS_PER_TOKEN = 10  # more than almost any text has: what comes later is beyond the limit anyway


class Predictor:
    """An exported model, ready to answer.

    Args:
        exported: What the folder's `textmill.json` says.
        tokenizer: Of the exported folder, without padding and truncation.
        session: Of one of its graphs; None where a subclass answers without.
        head: Of its graph over the outputs of that one, if it has one.
        tokens_per_batch: Padded tokens of a batch.
    """

    def __init__(
        self,
        exported: ExportedModel,
        tokenizer: Tokenizer,
        session: onnxruntime.InferenceSession | None,
        *,
        head: onnxruntime.InferenceSession | None = None,
        tokens_per_batch: int = 2048,
    ) -> None:
        self.exported = exported
        self.task = Task.build(exported.task)
        self.tokenizer = tokenizer
        self.session = session
        self.head = head
        self.tokens_per_batch = tokens_per_batch

    def lengths(self, values: Sequence[Any]) -> list[int]:
        """Tokens of each raw input's texts together, at most `max_length`: they differ little from the clean ones'."""
        limit = self.exported.max_length
        texts = [" ".join(_strings(value))[: limit * _CHARACTERS_PER_TOKEN] or " " for value in values]
        return [min(limit, max(1, len(found))) for found in self.tokenizer.encode_batch_fast(texts)]

    def predict(self, values: Sequence[Any]) -> list[dict[str, Any]]:
        """Answer natural inputs (see `Task.parse_inputs`), one record an input, in their order.

        Raises:
            UserError: An input is empty or of a wrong kind.
        """
        given = self.task.parse_inputs(values)
        return self.answered(self._cleaned(given), given)[1]

    def answered(self, frame: pd.DataFrame, given: pd.DataFrame) -> tuple[Outputs, list[dict[str, Any]]]:
        """Raw outputs and natural answers for rows of texts, clean and as they were given."""
        columns = self._columns(frame)
        outputs = self.outputs_of_columns(sequences_of(self.task, columns))
        clean, raw = ({name: texts[name].tolist() for name in self.task.text_columns} for texts in (frame, given))
        return outputs, self.task.answers(outputs, {**clean, **columns}, raw, self.exported.state)

    def outputs_for_targets(self, frame: pd.DataFrame) -> tuple[Outputs, pd.DataFrame]:
        """Return raw outputs for clean rows with their targets, and the rows with their encoded columns.

        Only the texts are encoded: the model need not know every target.
        """
        columns = self._columns(frame[list(self.task.text_columns)])
        outputs = self.outputs_of_columns(sequences_of(self.task, columns))
        own = {name: values for name, values in columns.items() if name not in self.task.sequence_columns.values()}
        return outputs, frame.assign(**own)

    def outputs(self, frame: pd.DataFrame) -> Outputs:
        """Raw outputs for rows that have the task's text columns, a row for each sequence that the network sees."""
        return self.outputs_of_columns(sequences_of(self.task, self._columns(frame)))

    def outputs_of_columns(self, columns: Mapping[str, Sequence[Sequence[int]]]) -> Outputs:
        """Raw outputs for `sequences_of`; the network reads those of each column by themselves."""
        outputs = {
            name + ending: values
            for ending, column in self.task.sequence_columns.items()
            for name, values in self.outputs_of_ids(columns[column]).items()
        }
        if self.head is None:
            return outputs
        names = [value.name for value in self.head.get_outputs()]
        found = self.head.run(names, {value.name: outputs[value.name] for value in self.head.get_inputs()})
        return outputs | dict(zip(names, found, strict=True))

    def outputs_of_ids(self, input_ids: Sequence[Sequence[int]]) -> Outputs:
        """Raw outputs for tokenised texts, computed in batches of like length; NaN for those without a token."""
        lengths = np.fromiter((len(ids) for ids in input_ids), np.int64, len(input_ids))
        batches = length_batches(lengths, self.tokens_per_batch)
        assert self.session is not None, "this model has no graph"
        chunks: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self.exported.outputs}
        for rows in batches:
            padded, mask = pad([input_ids[row] for row in rows])
            feed = {"input_ids": padded, "attention_mask": mask}
            for name, values in zip(self.exported.outputs, self.session.run(self.exported.outputs, feed), strict=True):
                chunks[name].append(values)
        outputs = restore_order(chunks, batches)
        if not lengths.all():
            for values in outputs.values():
                values[lengths == 0] = np.nan
        return outputs

    def _columns(self, frame: pd.DataFrame) -> dict[str, list[Any]]:
        return self.task.encode(frame, self.tokenizer, self.exported.state, self.exported.max_length)

    @cached_property
    def _cleaner(self) -> Cleaner:
        from textmill.data.cleaning import Cleaner

        # Which languages are wanted is a question to training data; whoever asks gets an answer.
        return Cleaner(self.exported.cleaning.model_copy(update={"languages": None}))

    def _cleaned(self, frame: pd.DataFrame) -> pd.DataFrame:
        clean = self._cleaner.clean
        return frame.assign(**{name: [clean(text) for text in frame[name]] for name in self.task.text_columns})


def _strings(value: Any) -> Iterator[str]:
    """All texts in an input of whatever form."""
    if isinstance(value, str):
        yield value.encode("utf-8", "replace").decode() if not value.isascii() else value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def open_session(graph: Path, threads: int | None = None) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU, quiet, with one thread for each core unless told otherwise."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    return onnxruntime.InferenceSession(
        str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWING
    )
