"""Candidates in training: networks that go on from where they were, baselines that are fitted on more rows."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from textmill.config.sections.train import TrainConfig
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.evaluation.evaluate import load_for_answers, split_outputs
from textmill.evaluation.evaluator import evaluator_of
from textmill.metrics.bootstrap import Bootstrap, Interval, intervals, paired_test
from textmill.models.base import Model
from textmill.selection.candidates import Candidate
from textmill.selection.halving import Price
from textmill.selection.results import Rung
from textmill.tasks.abilities import GeneratesText, examples_of
from textmill.tasks.base import Task
from textmill.training.datamodule import PreparedDataModule
from textmill.training.loading import MODEL_FOLDER, WEIGHTS_FILE, save_network
from textmill.training.training import Trained, Training

if TYPE_CHECKING:
    import pandas as pd

    from textmill.registry.runs.tracking import StageRun

SPLIT = "validation"

_FIRST_SHARE = 1 / 32
_FEWEST_BATCHES = 10
_FEWEST_ROWS = 500

Clock = Callable[[], float]


class Contestant(ABC):
    """What both kinds have in common: a candidate, its rungs and its answers to the validation split.

    Attributes:
        name: Of the candidate.
        candidate: It.
        task: What it is trained for.
        prepared: Its data.
        metric: The one that decides.
        rungs: How far it came, and what was measured there.
        predictions: For the validation split, after the last rung.
        price: Of going on, by the last rung.
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
        self.price = Price(0.0, 0.0, 0.0)
        self.run = run
        self._clock = clock

    @property
    def share(self) -> float:
        """Of the recipe that is done."""
        return self.rungs[-1].share if self.rungs else 0.0

    @property
    def quality(self) -> float:
        """The main metric; more is better."""
        value = self.rungs[-1].quality.value
        return value if self.metric.higher_is_better else -value

    @property
    @abstractmethod
    def first_share(self) -> float:
        """A share of the recipe that is enough to tell the speed."""

    @abstractmethod
    def advance(self, share: float) -> None:
        """Go on until `share` of the recipe is done, and measure."""

    def is_worse(self, other: Contestant) -> bool:
        """Whether a paired bootstrap says that this one is worse now."""
        if self.predictions is None or other.predictions is None:
            return False
        gain = paired_test(self.predictions, other.predictions, self.metric, 0.0, self._bootstrap()).gain
        return gain.high < 0

    def _bootstrap(self) -> Bootstrap:
        config = self.candidate.config.evaluate
        return Bootstrap(config.resamples, config.confidence, config.seed)

    def _measure(self, predictions: pd.DataFrame) -> Interval:
        self.predictions = predictions
        return intervals(predictions, [self.metric], self._bootstrap())[self.metric.name]

    def _note(self, rung: Rung) -> None:
        self.rungs.append(rung)
        name = self.metric.name
        figures = {name: rung.quality.value, f"{name}_low": rung.quality.low, f"{name}_high": rung.quality.high}
        figures |= {"share": rung.share, "samples": rung.samples, "seconds": rung.seconds}
        self.run.log_metrics({f"rung/{key}": value for key, value in figures.items()}, len(self.rungs))


class Network(Contestant):
    """A network that is trained by the pipeline's own training.

    A rung is a training of its own with a whole schedule, warm-up and decay, from the weights that
    the rung before left (a warm restart; Loshchilov & Hutter 2017): a schedule cut off in its middle
    would show every candidate at too high a learning rate.
    """

    def __init__(self, candidate: Candidate, prepared: Prepared, clock: Clock, run: StageRun) -> None:
        super().__init__(candidate, prepared, clock, run)
        config = candidate.config.train
        data = PreparedDataModule(self.task, prepared, config.batches, config.seed)
        self._an_epoch = len(data.plan(0).batches)
        self._batches = sum(len(data.plan(epoch).batches) for epoch in range(config.max_epochs))
        self._rows = data.rows_of_rank() * config.max_epochs
        self._done = 0
        self._step = 0

    @property
    def first_share(self) -> float:
        """A share that is enough to tell the speed."""
        return min(1.0, max(_FIRST_SHARE, _FEWEST_BATCHES / self._batches))

    def advance(self, share: float) -> None:
        """Train until `share` of the recipe's batches are done."""
        started, began = self._clock(), time.perf_counter()
        todo = max(1, round(share * self._batches) - self._done)
        config = self.candidate.config.train
        if self._done or todo < self._batches:
            config = self._short(config, todo)
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
        done = training.run(_Shifted(self.run, self._step))
        training.folder.remove()
        save_network(layout.trained / MODEL_FOLDER, done.network, done.weights)
        self._done = min(self._batches, self._done + todo)
        self._step += int(done.figures["steps"])
        interval = self._measure(self._answers(done, autocast="16" in training.precision))
        spent, wall = self._clock() - started, time.perf_counter() - began
        trained = spent * done.figures["train_seconds"] / max(wall, 1e-9)
        a_batch = trained / todo
        self.price = Price(spent - trained, a_batch * self._batches, self._done / self._batches)
        self._note(
            Rung(
                share=self._done / self._batches,
                samples=round(self._rows * self._done / self._batches),
                quality=interval,
                seconds=wall,
                whole_seconds=done.figures["train_seconds"] / todo * self._batches,
            )
        )

    def _short(self, config: TrainConfig, batches: int) -> TrainConfig:
        """A training of so many batches with a schedule of its own, on rows drawn anew."""
        epochs = -(-batches // self._an_epoch)
        return config.model_copy(
            update={
                "seed": config.seed + len(self.rungs),
                "max_epochs": epochs,
                "batches": config.batches.model_copy(update={"per_epoch": -(-batches // epochs)}),
                "validations_per_epoch": 1,
                "early_stopping": None,
            }
        )

    def _answers(self, done: Trained, autocast: bool) -> pd.DataFrame:
        """To the validation split: those of the training's own validation where they are whole."""
        frame = examples_of(self.task, self.prepared.split(SPLIT)).frame()
        outputs = done.outputs
        if outputs is None or isinstance(self.task, GeneratesText):
            config, layout = self.candidate.config, self.candidate.layout
            model = Model.build(config.train.model)
            network = load_for_answers(
                self.task, model, self.prepared, layout.trained, config.runtime.trainer.accelerator
            )
            # In the precision of the training: what counts here is the time.
            outputs = split_outputs(self.task, network, self.prepared, SPLIT, autocast=autocast)
        return self.evaluator.predictions(outputs, frame, self.prepared.state)


class Baseline(Contestant):
    """One of the task's baselines, fitted anew on more rows at each rung: it cannot go on, and need not."""

    def __init__(self, candidate: Candidate, prepared: Prepared, clock: Clock, run: StageRun) -> None:
        super().__init__(candidate, prepared, clock, run)
        columns = self.evaluator.baseline_columns
        self._train = prepared.frame("train", columns)
        self._validation = prepared.frame(SPLIT, columns)
        self.answer: Callable[[pd.DataFrame], pd.DataFrame] | None = None

    @property
    def first_share(self) -> float:
        """A share that is enough to tell the speed, and has every class."""
        return min(1.0, max(_FIRST_SHARE, _FEWEST_ROWS / len(self._train)))

    def advance(self, share: float) -> None:
        """Fit on `share` of the training rows."""
        started, began = self._clock(), time.perf_counter()
        config = self.candidate.config.evaluate
        rows = max(1, round(share * len(self._train)))
        part = self._train.sample(n=rows, random_state=config.seed)
        fitted = self.evaluator.baselines(part, self._validation, self.prepared.state, config.baselines, config.seed)
        name = str(self.candidate.baseline)
        if name not in fitted:
            has = f"{self.task.name} has {', '.join(fitted)}"
            raise UserError(f"no baseline {name!r}", where=f"conf/candidate/{self.name}.yaml", fix=has)
        self.answer = fitted[name]
        interval = self._measure(self.answer(self._validation))
        spent, wall = self._clock() - started, time.perf_counter() - began
        whole = spent * len(self._train) / rows
        # Fitted from the beginning: going on costs the whole share, not what is missing.
        self.price = Price(0.0, whole, 0.0 if rows < len(self._train) else 1.0)
        self._note(
            Rung(rows / len(self._train), rows, interval, seconds=wall, whole_seconds=wall * len(self._train) / rows)
        )


class _Shifted:
    """Takes the figures of a rung's training as those of the whole: steps go on counting."""

    def __init__(self, run: StageRun, first: int) -> None:
        self._run = run
        self._first = first

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See `MetricLog`."""
        self._run.log_metrics(metrics, self._first + (step or 0))
