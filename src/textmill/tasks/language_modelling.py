"""Language modelling: the likelihood of each next token, and text generated from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from textmill.config.section import Section as Options
from textmill.metrics.base import Outputs
from textmill.tasks.abilities import ContinuesText, CutsExamples
from textmill.tasks.base import State, StepOutput, Task
from textmill.text.checks import empty_rows
from textmill.text.inputs import Input
from textmill.text.rejected_rows import RejectedRow

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import torch
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from textmill.models.base import Model
    from textmill.models.language_model import LanguageModel
    from textmill.models.routing.record import RoutingRecord
    from textmill.tasks.examples.rows import Examples


class LanguageModellingConfig(Options):
    """Options of language modelling.

    Attributes:
        sequence_length: Targets of a training window; at most the model's context.
        packing: How training fills its rows: `concatenate` joins all documents and cuts them into windows of equal
            length; `best_fit` cuts only documents longer than `sequence_length`, and pads a little.
        separate_documents: Whether attention stops at the ends of packed documents.
        end_of_text: Special token of the tokenizer that ends a document.
        prompts: Prompts that the evaluation continues; also the examples whose answers a registered
            version must reproduce.
        sample_tokens: Tokens of each sample in the report.
    """

    sequence_length: Annotated[int, Field(ge=2)] = 256
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    separate_documents: bool = True
    end_of_text: str = "<|endoftext|>"
    prompts: Annotated[list[str], Field(min_length=1)] = ["\n"]
    sample_tokens: Annotated[int, Field(ge=1)] = 100


class Prompt(Input):
    """`text`, the prompt that the model continues; it may be blank."""

    text: str


class CausalTask(Task, ContinuesText):
    """A task of a decoder, measured by the likelihood of its tokens; the option `prompts` has examples."""

    config: Any

    target_columns: tuple[str, ...] = ()
    monitor = "validation/loss"
    monitor_mode = "min"

    def build_network(self, model: Model, pretrained: Path | None, state: State) -> LanguageModel:
        """Build the model's decoder over the vocabulary."""
        return model.build_decoder(state["vocabulary_size"], pretrained)

    def example_inputs(self) -> list[dict[str, Any]]:
        """Return the configured prompts."""
        return [{"text": prompt} for prompt in self.config.prompts]

    def answers(
        self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], raw: Mapping[str, Sequence[str]], state: State
    ) -> list[dict[str, Any]]:
        """Return `loss`, in nats per target token, and `perplexity`, for each row."""
        from textmill.metrics.likelihood import likelihood_answers

        return likelihood_answers(outputs)


class LanguageModelling(CausalTask, CutsExamples):
    """Maximum likelihood of the next token over packed documents.

    State: `vocabulary_size`; `end_of_text`, its id; `token_bytes`, the bytes of each token.
    """

    Config: ClassVar[type[Options]] = LanguageModellingConfig
    config: LanguageModellingConfig

    name = "language_modelling"
    evaluator = "textmill.evaluation.evaluators.language_modelling.LanguageModellingEvaluator"
    text_columns = ("text",)
    input_model = Prompt
    main_metric = "bits_per_byte"

    def bind_tokenizer(self, state: State, tokenizer: Tokenizer, folder: Path) -> State:
        """Return the state with the vocabulary's size, the id that ends a document and the bytes of each token.

        Raises:
            UserError: The tokenizer has no token `end_of_text`.
        """
        from textmill.text.tokens import special_id, token_bytes

        counts = token_bytes(tokenizer)
        end = special_id(tokenizer, self.config.end_of_text, "task.end_of_text")
        return {**state, "vocabulary_size": len(counts), "end_of_text": end, "token_bytes": counts}

    def check(self, frame: pd.DataFrame, state: State | None) -> list[RejectedRow]:
        """Return rows without text."""
        return list(empty_rows(frame, self.text_columns).values())

    def encode(self, frame: pd.DataFrame, tokenizer: Tokenizer, state: State, max_length: int) -> dict[str, list[Any]]:
        """Return `input_ids` and `length` of whole documents, each with its end of text; nothing is cut off."""
        encodings = tokenizer.encode_batch_fast(frame["text"].tolist(), add_special_tokens=False)
        input_ids = [[*encoding.ids, state["end_of_text"]] for encoding in encodings]
        return {"input_ids": input_ids, "length": [len(ids) for ids in input_ids]}

    def examples(self, table: pa.Table) -> Examples:
        """Return windows over the packed documents; training may read other rows (`packing`)."""
        from textmill.tasks.examples.packing import PackedWindows

        return PackedWindows(table, self.config.sequence_length, best_fit=self.config.packing == "best_fit")

    def packing(self, table: pa.Table) -> dict[str, Any]:
        """Return the cut documents of both ways to pack, and which one is `used`."""
        from textmill.tasks.examples.packing import packing_counts

        return packing_counts(table, self.config.sequence_length) | {"used": self.config.packing}

    def collate(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `labels` (B, T), and `document_ids` where a window holds several documents.

        Padding is at the end, where causal attention ignores it; its labels are -100.
        """
        import numpy as np
        import torch

        from textmill.models.losses.likelihood import IGNORED

        windows = [np.asarray(window, np.int64) for window in rows["input_ids"]]
        shape = (len(windows), max(map(len, windows)) - 1)
        input_ids, labels = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        documents = np.zeros(shape, np.int64)
        for row, window in enumerate(windows):
            size = len(window) - 1
            input_ids[row, :size], labels[row, :size] = window[:-1], window[1:]
            documents[row, :size] = rows["document_ids"][row][:-1]
            documents[row, size:] = documents[row, size - 1]
        batch = {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
        if self.config.separate_documents and (documents[:, :1] != documents).any():
            batch["document_ids"] = torch.from_numpy(documents)
        return batch

    def loss(self, network: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> StepOutput:
        """Compute the mean negative log-likelihood, in nats, and in training the routers' auxiliary losses.

        Outputs of each window: `nll`, the sum over its targets, and `targets`, their number; for a mixture
        of experts also `expert_load` (layers, experts), `dropped` and `confidence` (layers).
        """
        from textmill.models.losses.likelihood import IGNORED, mean_cross_entropy

        model: LanguageModel = network  # type: ignore[assignment]
        labels = batch["labels"]
        hidden = model.hidden_states(batch["input_ids"], document_ids=batch.get("document_ids"))
        likelihood, each = mean_cross_entropy(hidden.states, model.output_weight, labels)
        outputs = {"nll": each.sum(dim=1), "targets": (labels != IGNORED).sum(dim=1)}
        if not hidden.routing:
            return StepOutput(likelihood, outputs)
        terms = model.auxiliary_losses(hidden.routing)
        if not model.training:
            outputs |= _routing_of_rows(hidden.routing, len(labels))
        return StepOutput(likelihood + sum(terms.values()), outputs, {"likelihood": likelihood, **terms})

    def target_count(self, batch: Mapping[str, torch.Tensor]) -> int:
        """Return the number of target tokens."""
        from textmill.models.losses.likelihood import count_targets

        return count_targets(batch["labels"])

    def validation_metrics(self, outputs: Outputs, rows: Mapping[str, Sequence[Any]], state: State) -> dict[str, float]:
        """Return `loss` in nats per token, `perplexity`, `bits_per_byte`, and the routing metrics of experts."""
        from textmill.metrics import routing
        from textmill.metrics.likelihood import validation_metrics

        bits = float(outputs["nll"].sum(dtype=float)) / math.log(2)
        bits_per_byte = bits / float(bytes_of(rows["input_ids"], state).sum())
        metrics = validation_metrics(outputs) | {"bits_per_byte": bits_per_byte}
        return metrics | (routing.routing_metrics(outputs) if "expert_load" in outputs else {})

    def prompts(self, frame: pd.DataFrame, state: State) -> list[str]:
        """Return the prompts unchanged."""
        texts: list[str] = frame["text"].tolist()
        return texts


def bytes_of(windows: Sequence[Any], state: State) -> NDArray[np.int64]:
    """Return the number of bytes of text of each window's targets, shape (windows,)."""
    import numpy as np

    of_token = np.asarray(state["token_bytes"], np.int64)
    return np.array([of_token[np.asarray(window)[1:]].sum() for window in windows], np.int64)


def _routing_of_rows(routing: Sequence[RoutingRecord], rows: int) -> dict[str, torch.Tensor]:
    """Return a batch's routing, divided evenly among its rows."""
    import torch

    load = torch.stack([record.load.float() for record in routing])
    dropped = torch.stack([record.dropped.float() for record in routing])
    confidence = [
        load.new_tensor(math.nan) if record.probabilities is None else record.probabilities.max(dim=-1).values.mean()
        for record in routing
    ]
    return {
        "expert_load": (load / rows).expand(rows, *load.shape),
        "dropped": dropped.expand(rows, *dropped.shape),
        "confidence": torch.stack(confidence).float().expand(rows, len(confidence)),
    }
