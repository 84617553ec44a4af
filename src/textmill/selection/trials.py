"""Trials of candidates: networks that resume their training, baselines that are refitted on more rows."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from textmill.config.layout import Layout
from textmill.config.sections.candidate import ChatConfig
from textmill.config.sections.train import TrainConfig
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.evaluation.evaluate import load_for_answers, split_outputs
from textmill.evaluation.evaluator import evaluator_of
from textmill.evaluation.evaluators.asked import predictions_of
from textmill.fetching.pretrained import fetch_pretrained
from textmill.metrics.bootstrap import Bootstrap, Interval, intervals, paired_test
from textmill.models.base import Model
from textmill.predicting.asked import ask, load_chat, records
from textmill.selection.candidates import Candidate
from textmill.selection.halving import TrainingCost
from textmill.selection.results import Rung, on_common_rows
from textmill.tasks.abilities import GeneratesText, examples_of
from textmill.tasks.base import Task
from textmill.tasks.examples.asking import Asking
from textmill.training.datamodule import PreparedDataModule
from textmill.training.loading import MODEL_FOLDER, WEIGHTS_FILE, save_network
from textmill.training.trainer import Trained, Training

if TYPE_CHECKING:
    import pandas as pd

    from textmill.registry.runs.tracking import StageRun

SPLIT = "validation"

_FIRST_SHARE = 1 / 32
_MIN_BATCHES = 10
_MIN_ROWS = 500

Clock = Callable[[], float]


class Trial(ABC):
    """A candidate in training, with its rungs and its predictions for the validation split.

    Attributes:
        metric: The deciding metric.
        rungs: Measurements so far.
        predictions: Predictions for the validation split after the last rung.
        cost: Cost of further training, estimated from the last rung.
    """

    def __init__(self, candidate: Candidate, prepared: Prepared, clock: Clock, run: StageRun) -> None:
        self.name = candidate.name
        self.candidate = candidate
        self.prepared = prepared
        self.task = Task.build(candidate.config.prepare.task)
        self.evaluator = evaluator_of(self.task)
        self.metric = self.evaluator.main_metric(prepared.state)
        self.rungs: list[Rung] = []
        self.predictions: pd.DataFrame | None = None
        self.cost = TrainingCost(0.0, 0.0, 0.0)
        self.run = run
        self._clock = clock

    @property
    def share(self) -> float:
        """Share of the full training that is done."""
        return self.rungs[-1].share if self.rungs else 0.0

    @property
    def quality(self) -> float:
        """The main metric, with the sign for which higher is better."""
        value = self.rungs[-1].quality.value
        return value if self.metric.higher_is_better else -value

    @property
    @abstractmethod
    def first_share(self) -> float:
        """Share of the full training that is enough to measure the speed."""

    @abstractmethod
    def advance(self, share: float) -> None:
        """Train until `share` of the full training is done, and measure."""

    def is_worse(self, other: Trial) -> bool:
        """Return whether a paired bootstrap shows that this trial is worse now."""
        if self.predictions is None or other.predictions is None:
            return False
        tables = on_common_rows(self.predictions, other.predictions)
        gain = paired_test(*tables, self.metric, self._bootstrap()).gain
        return gain.high < 0

    def _bootstrap(self) -> Bootstrap:
        config = self.candidate.config.evaluate
        return Bootstrap(config.resamples, config.confidence, config.seed)

    def _measure(self, predictions: pd.DataFrame) -> Interval:
        self.predictions = predictions
        return intervals(predictions, [self.metric], self._bootstrap())[self.metric.name]

    def _record(self, rung: Rung) -> None:
        self.rungs.append(rung)
        name = self.metric.name
        metrics = {name: rung.quality.value, f"{name}_low": rung.quality.low, f"{name}_high": rung.quality.high}
        metrics |= {"share": rung.share, "samples": rung.samples, "seconds": rung.seconds}
        self.run.log_metrics({f"rung/{key}": value for key, value in metrics.items()}, len(self.rungs))


class NetworkTrial(Trial):
    """A network trained by the pipeline's own training.

    Each rung is a training with a complete schedule, warm-up and decay, from the weights of the rung
    before (a warm restart; Loshchilov & Hutter 2017). A schedule cut off midway would measure every
    candidate at too high a learning rate.
    """

    def __init__(self, candidate: Candidate, prepared: Prepared, clock: Clock, run: StageRun) -> None:
        super().__init__(candidate, prepared, clock, run)
        config = candidate.config.train
        data = PreparedDataModule(self.task, prepared, config.batches, config.seed)
        self._epoch_batches = len(data.plan(0).batches)
        self._batches = sum(len(data.plan(epoch).batches) for epoch in range(config.max_epochs))
        self._rows = data.rows() * config.max_epochs
        self._done = 0
        self._step = 0

    @property
    def first_share(self) -> float:
        """Share of the full training that is enough to measure the speed."""
        return min(1.0, max(_FIRST_SHARE, _MIN_BATCHES / self._batches))

    def advance(self, share: float) -> None:
        """Train until `share` of the batches of the full training are done, and measure."""
        started, wall_started = self._clock(), time.perf_counter()
        batches = max(1, round(share * self._batches) - self._done)
        config = self.candidate.config.train
        if self._done or batches < self._batches:
            config = self._rung_config(config, batches)
        layout = self.candidate.layout
        weights = layout.trained / MODEL_FOLDER / WEIGHTS_FILE
        training = Training(
            config,
            self.candidate.config.runtime.model_copy(update={"progress": "plain"}),
            self.prepared,
            layout.pretrained,
            layout.root / "checkpoints",
            start=weights if self._done else None,
        )
        trained = training.run(_StepOffset(self.run, self._step))
        training.folder.remove()
        save_network(layout.trained / MODEL_FOLDER, trained.network, trained.weights)
        self._done = min(self._batches, self._done + batches)
        self._step += int(trained.metrics["steps"])
        interval = self._measure(self._predictions(trained, autocast="16" in training.precision))
        elapsed, wall = self._clock() - started, time.perf_counter() - wall_started
        in_steps = elapsed * trained.metrics["train_seconds"] / max(wall, 1e-9)
        share = self._done / self._batches
        self.cost = TrainingCost(elapsed - in_steps, in_steps / batches * self._batches, share)
        self._record(
            Rung(
                share=share,
                samples=round(self._rows * share),
                quality=interval,
                seconds=wall,
                whole_seconds=trained.metrics["train_seconds"] / batches * self._batches,
            )
        )

    def _rung_config(self, config: TrainConfig, batches: int) -> TrainConfig:
        """Return a training of `batches` batches with its own schedule and sampling seed."""
        epochs = -(-batches // self._epoch_batches)
        return config.model_copy(
            update={
                "seed": config.seed + len(self.rungs),
                "max_epochs": epochs,
                "batches": config.batches.model_copy(update={"per_epoch": -(-batches // epochs)}),
                "validations_per_epoch": 1,
                "early_stopping": None,
            }
        )

    def _predictions(self, trained: Trained, autocast: bool) -> pd.DataFrame:
        """Return predictions for the validation split, from the training's last validation where complete."""
        frame = examples_of(self.task, self.prepared.split(SPLIT)).frame()
        outputs = trained.outputs
        if outputs is None or isinstance(self.task, GeneratesText):
            config, layout = self.candidate.config, self.candidate.layout
            model = Model.build(config.train.model)
            network = load_for_answers(
                self.task, model, self.prepared, layout.trained, config.runtime.trainer.accelerator
            )
            # The precision of the training: speed matters here.
            outputs = split_outputs(self.task, network, self.prepared, SPLIT, autocast=autocast)
        return self.evaluator.predictions(outputs, frame, self.prepared.state)


class BaselineTrial(Trial):
    """A baseline of the task, refitted on more rows at each rung; baselines cannot resume.

    Attributes:
        predict: The fitted baseline: rows -> predictions. None before the first rung.
    """

    def __init__(self, candidate: Candidate, prepared: Prepared, clock: Clock, run: StageRun) -> None:
        super().__init__(candidate, prepared, clock, run)
        columns = self.evaluator.baseline_columns
        self._train = prepared.frame("train", columns)
        self._validation = prepared.frame(SPLIT, columns)
        self.predict: Callable[[pd.DataFrame], pd.DataFrame] | None = None

    @property
    def first_share(self) -> float:
        """Share of the rows that is enough to measure the speed and contains every class."""
        return min(1.0, max(_FIRST_SHARE, _MIN_ROWS / len(self._train)))

    def advance(self, share: float) -> None:
        """Fit on `share` of the training rows, and measure."""
        started, wall_started = self._clock(), time.perf_counter()
        config = self.candidate.config.evaluate
        rows = max(1, round(share * len(self._train)))
        part = self._train.sample(n=rows, random_state=config.seed)
        fitted = self.evaluator.baselines(part, self._validation, self.prepared.state, config.baselines, config.seed)
        name = str(self.candidate.baseline)
        if name not in fitted:
            known = f"{self.task.name} has {', '.join(fitted)}"
            raise UserError(f"no baseline {name!r}", where=f"conf/candidate/{self.name}.yaml", fix=known)
        self.predict = fitted[name]
        interval = self._measure(self.predict(self._validation))
        elapsed, wall = self._clock() - started, time.perf_counter() - wall_started
        share = rows / len(self._train)
        # A refit starts from scratch, so it costs the whole share, not the missing part.
        self.cost = TrainingCost(0.0, elapsed / share, 0.0 if share < 1 else 1.0)
        self._record(Rung(share, rows, interval, seconds=wall, whole_seconds=wall / share))


class ChatTrial(Trial):
    """A chat model that answers a part of the validation split; nothing is trained.

    Attributes:
        folder: The model's folder.
        model: The model.
        asking: The wording of its questions.
        examples: Rows with answers in front of each question.

    Raises:
        UserError: There is no such model, or the task cannot be asked.
    """

    def __init__(self, candidate: Candidate, prepared: Prepared, clock: Clock, run: StageRun) -> None:
        super().__init__(candidate, prepared, clock, run)
        chat = candidate.chat
        assert chat is not None
        self.asking = Asking(self.task, prepared.state, chat.prompt)
        self.folder = _chat_folder(chat, candidate)
        self.model = load_chat(self.folder)
        columns, seed = self.evaluator.baseline_columns, candidate.config.evaluate.seed
        columns = list(dict.fromkeys(["id", *self.task.text_columns, *self.task.target_columns, *columns]))
        train = prepared.frame("train", columns)
        rows = train.sample(n=min(chat.examples, len(train)), random_state=seed)
        self.examples = records(rows)
        self._validation = _drawn(prepared.frame(SPLIT, columns), self.task.text_columns[0], chat.rows, seed)

    @property
    def first_share(self) -> float:
        """Return 1: there is no training."""
        return 1.0

    def advance(self, share: float) -> None:
        """Ask for the validation rows, and measure."""
        started = time.perf_counter()
        outputs = ask(self.model, self.asking, self._validation, self.examples)
        table = predictions_of(self.evaluator, outputs, self._validation, self.prepared.state)
        interval = self._measure(table)
        self.cost = TrainingCost(0.0, 0.0, 1.0)
        seconds = time.perf_counter() - started
        self._record(Rung(share, len(self.examples), interval, seconds=seconds, whole_seconds=0.0))


def _chat_folder(chat: ChatConfig, candidate: Candidate) -> Path:
    """Return the folder of an exported chat model, or fetch weights as they come."""
    if chat.folder is None:
        layout = Layout(candidate.layout.root / "chat")
        own = {"pretrained": chat.pretrained, "pretrained_sha256": chat.pretrained_sha256}
        fetch_pretrained(candidate.config.fetch.model_copy(update={**own, "start": None, "teacher": None}), layout)
        return layout.pretrained
    folder = candidate.layout.home / chat.folder
    if not folder.is_dir():
        fix = "Run `dvc exp run -S experiment=assistant`, and copy data/exported/model there"
        raise UserError(
            f"no exported chat model in {chat.folder}", where=f"conf/candidate/{candidate.name}.yaml", fix=fix
        )
    return folder


def _drawn(frame: pd.DataFrame, column: str, most: int, seed: int) -> pd.DataFrame:
    """Return at least `most` rows (or all), drawn at random; rows with the same text in `column` stay together."""
    order = frame[column].drop_duplicates().sample(frac=1, random_state=seed)
    places = frame[column].map({text: place for place, text in enumerate(order)})
    drawn: pd.DataFrame = frame[places <= places.sort_values().iloc[min(most, len(frame)) - 1]]
    return drawn


class _StepOffset:
    """A metric log that continues the step count of the rungs before."""

    def __init__(self, run: StageRun, first: int) -> None:
        self._run = run
        self._first = first

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See `MetricLog`."""
        self._run.log_metrics(metrics, self._first + (step or 0))
