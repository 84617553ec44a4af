"""`textmill tune`: search settings by many trainings, each in a temporary copy of the project."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import math
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from textmill.config import resolved
from textmill.config.layout import Layout
from textmill.config.sections.candidate import CandidateConfig
from textmill.config.sections.runtime import LauncherConfig, RuntimeConfig
from textmill.config.sections.train import TrainConfig
from textmill.errors import UserError, first_line, is_disk_full
from textmill.registry.runs.nested_runs import child_run, mark_running
from textmill.registry.runs.opening import Opening
from textmill.registry.runs.origin import PREFIX
from textmill.registry.runs.store import connect
from textmill.selection.candidate_data import CandidateData
from textmill.selection.candidates import Candidate, compose_candidate, merge_params
from textmill.selection.search_space import check_space, read_space, settings
from textmill.selection.study import Ledger, first_number, open_study, require_optuna, study_errors
from textmill.selection.workspace import open_workspace
from textmill.tasks.base import Task
from textmill.training.trainer import Trained, Training

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.trial import FrozenTrial

    from textmill.registry.runs.tracking import StageRun

log = logging.getLogger("textmill.tune")
log.setLevel(logging.INFO)

EXPERIMENT = "tune"
"""MLflow experiment of the studies."""
DEFAULT_TRIALS = 20
_FAILURES = 5  # in a row, without any success: the settings themselves are wrong
_VALIDATION = "validation/"


@dataclass(frozen=True)
class Budget:
    """What a study may take, over all its processes and calls; None sets no limit.

    Attributes:
        trials: Trials, also those that were pruned or failed.
        seconds: Time of all trials. The last one trains to its end.
    """

    trials: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Outcome:
    """A study after a call.

    Attributes:
        name: Name of the study.
        metric: Metric that decides.
        trials: All trials, in their order.
        ranked: Those that trained to the end, the best first.
        run_id: MLflow run of the study.
    """

    name: str
    metric: str
    trials: list[FrozenTrial]
    ranked: list[FrozenTrial]
    run_id: str

    @property
    def best(self) -> FrozenTrial | None:
        """The best trial; None without one that trained to the end."""
        return self.ranked[0] if self.ranked else None


def tune(
    changes: Mapping[str, Any], space: str, budget: Budget, layout: Layout, *, name: str | None, storage: str | None
) -> Outcome:
    """Run trials until the budget of the study is used up. The same call continues a study that was cut off.

    MLflow tracks it in the experiment `tune`: a run per study with a child run per trial.

    Args:
        changes: Lines for `params.yaml`, in addition to the project's.
        space: Name of a file of `conf/tune/`.
        budget: What the study may take.
        layout: The project.
        name: Name of the study; None: that of the experiment and of the space.
        storage: Address of the study's database; None: the tracking store's.

    Raises:
        UserError: The extra is missing, settings or space are not valid, the study was begun with others, the store
            refuses, or no trial can be trained.
    """
    require_optuna()
    from filelock import FileLock

    config = read_space(layout, space)
    text = layout.params.read_text(encoding="utf-8") if layout.params.is_file() else ""
    params = merge_params(yaml.safe_load(text) or {}, dict(changes))
    with open_workspace(layout, layout.tuning / ".work") as root:
        base = check_space(space, config, layout, root / "space", params)
        task = Task.build(base.config.prepare.task)
        metric = config.metric or task.monitor.removeprefix(_VALIDATION)
        mode: Literal["min", "max"] = config.mode or ("min" if task.monitor_mode == "min" else "max")
        name = name or f"{base.config.registration.name}-{space}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise UserError("not a valid name of a study", where=name, fix="Use letters, digits, - and _")
        frozen = {
            "space": config.model_dump(mode="json", exclude={"startup"}),
            "metric": metric,
            **base.config.model_dump(mode="json", include={"fetch", "prepare", "train"}),
        }
        runtime = _runtime(base.config.runtime)
        connect(runtime, layout)
        ledger = open_study(name, config, mode, frozen, layout, runtime, storage)
        with study_errors(ledger.address), ledger.joined() as leaving, ExitStack() as stack:
            with FileLock(ledger.lock):  # one process opens the run, the others find it
                opening = Opening("tune", digest(frozen), EXPERIMENT, name, None, ledger.study.user_attrs.get("run_id"))
                run = stack.enter_context(child_run(None, opening, layout))
                ledger.study.set_user_attr("run_id", run.run_id)
            leaving.append(lambda: mark_running(run.run_id))
            process = _Process(ledger, root, layout, runtime, params, metric, run)
            process.prepare(base)
            process.work(budget)
            outcome = Outcome(name, metric, ledger.trials(), ledger.ranked(), run.run_id)
            _log(run, outcome)
    return outcome


class _Process:
    """One process at work on a study."""

    def __init__(
        self,
        ledger: Ledger,
        root: Path,
        layout: Layout,
        runtime: RuntimeConfig,
        params: dict[str, Any],
        metric: str,
        run: StageRun,
    ) -> None:
        self._ledger = ledger
        self._root = root
        self._layout = layout
        self._runtime = runtime
        self._params = params
        self._metric = metric
        self._run = run
        self._name = ledger.study.study_name
        self._folder = ledger.folder
        self._data = CandidateData(self._folder / "data")

    def prepare(self, base: Candidate) -> None:
        """Prepare the data of the experiment; raise UserError if it has changed since the study began."""
        prepared = self._data.prepare_network(base)
        found = digest({name: prepared.digest(name) for name in ("train", "validation")})
        study = self._ledger.study
        if study.user_attrs.get("data", found) != found:
            fix = "Name another study by --study: metrics on other data are not comparable"
            raise UserError("its data has changed", where=f"study {self._name}", fix=fix)
        study.set_user_attr("data", found)

    def work(self, budget: Budget) -> None:
        """Run trials until the budget is used up."""
        failures = 0
        while (trial := self._ledger.begin(budget.trials, budget.seconds)) is not None:
            error = self._try(trial)
            failures = failures + 1 if error is not None else 0
            if failures >= _FAILURES:
                raise UserError(f"{failures} trials in a row failed, the last: {error}", where=f"study {self._name}")

    def _try(self, trial: Trial) -> str | None:
        """Run a trial and note how it ended; return the error of one that failed."""
        from optuna import TrialPruned
        from optuna.trial import TrialState

        study = self._ledger.study
        told = ", ".join(f"{key.rpartition('.')[2]} {_short(value)}" for key, value in trial.params.items())
        try:
            value = self._train(trial)
        except TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
            log.info("trial %d: pruned (%s)", trial.number, told)
        except (KeyboardInterrupt, SystemExit):
            self._ledger.again(trial.number)
            log.info("trial %d: interrupted; the same command continues it", trial.number)
            raise
        except Exception as error:
            if not isinstance(error, UserError | RuntimeError | ValueError) or is_disk_full(error):
                self._ledger.again(trial.number)
                raise
            study.tell(trial, state=TrialState.FAIL)
            line = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
            log.info("trial %d: failed (%s): %s", trial.number, told, line)
            return line
        else:
            study.tell(trial, value)
            self._run.log_metrics({self._metric: value}, trial.number)
            log.info("trial %d: %s %.4f (%s)", trial.number, self._metric, value, told)
        finally:
            gc.collect()
        return None

    def _train(self, trial: Trial) -> float:
        """Train with the values of a trial; return the best value of its metric."""
        from optuna import TrialPruned

        candidate = compose_candidate(
            self._layout, self._root, f"trial-{trial.number}",
            CandidateConfig(title=str(trial.number), params=settings(trial.params)), self._params, {},
        )  # fmt: skip
        resolved.write(candidate.layout.resolved, candidate.config)
        prepared = self._data.prepare_network(candidate)
        config = candidate.config.train
        # A folder per trial: two processes may try the same values.
        checkpoints = self._folder / "checkpoints" / str(first_number(trial))
        training = Training(config, self._runtime, prepared, candidate.layout.pretrained, checkpoints)
        tags = {f"{PREFIX}study": self._name, f"{PREFIX}trial": str(trial.number)}
        opening = Opening(
            "train", training.fingerprint, EXPERIMENT, f"{self._name}-{trial.number}", None,
            trial.user_attrs.get("run_id"), tags=tags,
        )  # fmt: skip
        watch = _Watch(self._ledger, trial, training, config, self._metric)
        with child_run(self._run.run_id, opening, self._layout) as run:
            trial.set_user_attr("run_id", run.run_id)
            run.log_params({"trial": trial.params, "train": config.model_dump(mode="json")})
            run.log_configuration("train", config, candidate.layout)
            watch.log_to(run)
            try:
                trained: Trained | None = training.run(watch)
            except TrialPruned:
                trained = None
                run.set_tags({f"{PREFIX}pruned": "true"})
            except Exception:
                shutil.rmtree(checkpoints, ignore_errors=True)
                raise
            trial.set_user_attr("seconds", watch.seconds())
            if trained is not None:
                run.log_metrics({f"best/{name}": value for name, value in trained.metrics.items()})
        for folder in (checkpoints, candidate.layout.root):
            shutil.rmtree(folder, ignore_errors=True)
        if trained is None:
            raise TrialPruned
        return watch.best(trained)


class _Watch:
    """The metrics of a trial, on their way to its run and to the study."""

    def __init__(self, ledger: Ledger, trial: Trial, training: Training, config: TrainConfig, metric: str) -> None:
        self._trial = trial
        self._sign = 1 if ledger.maximizes else -1
        self._name = _VALIDATION + metric
        self._validations = config.max_epochs * config.validations_per_epoch
        self._steps = training.batches().optimizer_steps(config.max_epochs)
        self._reported = set(trial.user_attrs.get("reported", ()))
        self._started = time.perf_counter()
        self._run: StageRun | None = None

    def log_to(self, run: StageRun) -> None:
        """Set the run that gets all metrics."""
        self._run = run

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See `MetricLog`; report a validation to the study, and raise TrialPruned where the trial is to end."""
        from optuna import TrialPruned

        if self._run is not None:
            self._run.log_metrics(metrics, step)
        if not any(name.startswith(_VALIDATION) for name in metrics):
            return
        if self._name not in metrics:
            known = ", ".join(sorted(name.removeprefix(_VALIDATION) for name in metrics))
            raise UserError(f"no metric {self._name!r}", where="metric of the search space", fix=f"Use one of {known}")
        number = max(1, round((step or 0) / self._steps * self._validations))
        self._trial.set_user_attr("seconds", self.seconds())
        if number not in self._reported and math.isfinite(metrics[self._name]):
            self._reported.add(number)
            self._trial.report(metrics[self._name], number)
        if number < self._validations and self._trial.should_prune():
            raise TrialPruned

    def seconds(self) -> float:
        """Return the time of this trial in this process."""
        return time.perf_counter() - self._started

    def best(self, trained: Trained) -> float:
        """Return the best value of all validations."""
        values = [row[self._name] for row in trained.history if math.isfinite(row[self._name])]
        return self._sign * max(self._sign * value for value in values)


def digest(values: Any) -> str:
    """Return a SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _runtime(runtime: RuntimeConfig) -> RuntimeConfig:
    """Return the settings of a trial: one device, in this process, in the experiment of the studies."""
    trainer = runtime.trainer.model_copy(update={"devices": 1, "num_nodes": 1, "strategy": "auto"})
    own = {"trainer": trainer, "launcher": LauncherConfig(), "tracking_experiment": EXPERIMENT, "progress": "plain"}
    return runtime.model_copy(update=own)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _log(run: StageRun, outcome: Outcome) -> None:
    """Log the best trial to the run of the study."""
    if outcome.best is None:
        return
    text = ", ".join(f"{key} = {value}" for key, value in outcome.best.params.items())
    note = f"Best of {len(outcome.trials)} trials: {outcome.metric} {outcome.best.value:.4f}, {text}"
    run.set_tags({f"{PREFIX}best_run_id": outcome.best.user_attrs["run_id"], "mlflow.note.content": note})
    run.log_metrics({f"best/{outcome.metric}": float(outcome.best.value or 0.0)}, len(outcome.trials))
