"""The study of `textmill tune`: its trials in a database, shared by processes, taken over from killed ones.

Optuna's tables are next to MLflow's in the database of the tracking store. Only `alembic_version` has the same name in
both: it stays MLflow's, and Optuna's check of it is left out.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from textmill.config.layout import Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.config.sections.tune import TuneConfig
from textmill.errors import UserError, first_line
from textmill.registry.runs.identity import ProcessIdentity, own_identity
from textmill.registry.runs.store import database_file, open_store

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

_ATTEMPTS = 3
"""Processes that may die in one trial before it counts as failed."""
_LOCKED_SECONDS = 60
_NAMELESS_SECONDS = 10.0  # between the start of a trial and the note of its process


def require_optuna() -> None:
    """Raise UserError where the extra is not installed; keep Optuna's own log quiet."""
    try:
        import optuna
    except ImportError as error:
        fix = "Run pip install --constraint constraints.txt -e '.[tune]'"
        raise UserError("Optuna is not installed", where="textmill tune", fix=fix) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@contextmanager
def study_errors(address: str) -> Iterator[None]:
    """Translate errors of the study's database into a UserError of one line."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    from textmill.registry.runs.store import without_credentials

    try:
        yield
    except (StorageInternalError, SQLAlchemyError, ImportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "optuna" not in str(error):
            raise
        where = without_credentials(address)
        raise UserError(f"error of the study's database: {first_line(error)}", where=where) from error


@dataclass
class Ledger:
    """A study with what its processes need to share it.

    Attributes:
        study: Optuna's study.
        config: How it searches.
        folder: Its data and checkpoints on this machine.
        lock: File that one process of this machine holds while it counts and begins a trial.
        address: Address of the database.
        space: Distribution of each key.
    """

    study: Study
    config: TuneConfig
    folder: Path
    lock: Path
    address: str
    space: dict[str, BaseDistribution]

    @property
    def maximizes(self) -> bool:
        """Whether a larger metric is better."""
        from optuna.study import StudyDirection

        return self.study.direction == StudyDirection.MAXIMIZE

    def trials(self) -> list[FrozenTrial]:
        """Return the trials, without those that another process began again after a kill."""
        again = self._continued()
        return [each for each in self._every() if each.number not in again]

    def seconds(self) -> float:
        """Return the time of all trials, of all processes."""
        return sum(float(each.user_attrs.get("seconds", 0.0)) for each in self._every())

    def ranked(self) -> list[FrozenTrial]:
        """Return the trials that trained to the end, the best first."""
        from optuna.trial import TrialState

        whole = [each for each in self.trials() if each.state == TrialState.COMPLETE]
        return sorted(whole, key=lambda each: float(each.value or 0.0), reverse=self.maximizes)

    def begin(self, trials: int | None, budget: float | None) -> Trial | None:
        """Begin a trial; return None where the trials or the seconds of the study are used up.

        A trial of a killed process is begun again first, with the same values.
        """
        from filelock import FileLock
        from optuna.trial import TrialState

        with FileLock(self.lock), study_errors(self.address):
            self._take_over()
            begun = [each for each in self.trials() if each.state != TrialState.WAITING]
            if trials is not None and len(begun) >= trials:
                return None
            if budget is not None and self.seconds() >= budget:
                return None
            # Drawn by the number of the trial alone, so that a study that was killed proposes the same trials.
            self.study.sampler = _sampler(self.config, len(begun))
            trial = self.study.ask(self.space)
            trial.set_user_attr("process", own_identity().as_text())
            if (continued := trial.user_attrs.get("continues")) is not None:
                values = self._every()[continued].intermediate_values
                for number, value in values.items():
                    trial.report(value, number)
                trial.set_user_attr("reported", list(values))
            return trial

    def again(self, number: int, *, died: bool = False) -> None:
        """Let a trial that was cut off begin again, from its checkpoint; fail it when processes keep dying in it."""
        from optuna.trial import TrialState

        with study_errors(self.address):
            trial = self._every()[number]
            attempt = int(trial.user_attrs.get("attempt", 1)) + died
            # Enqueued before it is ended: a kill in between leaves it RUNNING, and it is not enqueued twice.
            if len(trial.params) == len(self.space) and attempt <= _ATTEMPTS and number not in self._continued():
                kept = {key: trial.user_attrs[key] for key in ("run_id",) if key in trial.user_attrs}
                noted = {"continues": number, "first": first_number(trial), "attempt": attempt, **kept}
                self.study.enqueue_trial(trial.params, user_attrs=noted)
            self.study.tell(number, state=TrialState.FAIL)

    @contextmanager
    def joined(self) -> Iterator[list[Callable[[], None]]]:
        """Count this process among those of the study in the block.

        The last one deletes the folder, unless a trial waits to be continued. Any other one calls what the block has
        put into the list.
        """
        from filelock import FileLock
        from optuna.trial import TrialState

        members = self.folder / "processes"
        with FileLock(self.lock):
            members.mkdir(parents=True, exist_ok=True)
            own = FileLock(members / f"{os.getpid()}.lock")
            own.acquire()
        leaving: list[Callable[[], None]] = []
        try:
            yield leaving
        finally:
            with FileLock(self.lock):
                own.release()
                if any(map(_is_held, members.iterdir())):
                    for call in leaving:
                        call()
                elif not self.study.get_trials(deepcopy=False, states=[TrialState.WAITING, TrialState.RUNNING]):
                    shutil.rmtree(self.folder, ignore_errors=True)

    def _every(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _continued(self) -> set[int]:
        return {each.user_attrs["continues"] for each in self._every() if "continues" in each.user_attrs}

    def _take_over(self) -> None:
        from optuna.trial import TrialState

        for trial in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if _is_dead(trial):
                self.again(trial.number, died=True)


def open_study(
    name: str,
    config: TuneConfig,
    mode: Literal["min", "max"],
    frozen: Mapping[str, Any],
    layout: Layout,
    runtime: RuntimeConfig,
    storage: str | None,
) -> Ledger:
    """Open or create a study.

    Args:
        name: Its name in the database.
        config: How it searches.
        mode: Whether a large (`max`) or a small (`min`) metric is better.
        frozen: All that its trials must have in common, as plain values.
        layout: The project.
        runtime: Names the tracking store.
        storage: Address of a database; None takes the tracking store's, or `optuna.db` next to a tracking server.

    Raises:
        UserError: The database cannot be used, or the study was begun with other settings.
    """
    import optuna
    from filelock import FileLock
    from optuna.storages import RDBStorage

    from textmill.selection.search_space import distributions

    uri = open_store(runtime, layout)  # MLflow first: on an empty database Optuna would take `alembic_version`
    shared = storage is None and not uri.startswith(("http://", "https://", "databricks", "file:"))
    address = storage or (uri if shared else f"sqlite:///{layout.home / 'optuna.db'}")
    options = {"connect_args": {"timeout": _LOCKED_SECONDS}} if database_file(address) else {}
    layout.tuning.mkdir(parents=True, exist_ok=True)
    with FileLock(layout.tuning / ".lock"), study_errors(address):
        opened = RDBStorage(address, engine_kwargs=options, skip_compatibility_check=shared)
        direction: Literal["maximize", "minimize"] = "maximize" if mode == "max" else "minimize"
        study = optuna.create_study(
            storage=opened, study_name=name, direction=direction, pruner=_pruner(config), load_if_exists=True
        )
        text = json.dumps(frozen, sort_keys=True)
        noted = study.user_attrs.get("settings")
        if noted is None:
            study.set_user_attr("settings", text)
        elif changed := _changed(json.loads(noted), json.loads(text)):
            fix = "Name another study by --study, or restore the settings"
            raise UserError(f"begun with another {', '.join(changed[:3])}", where=f"study {name}", fix=fix)
    folder = layout.tuning / name
    return Ledger(study, config, folder, Path(f"{folder}.lock"), address, distributions(config))


def first_number(trial: Trial | FrozenTrial) -> int:
    """Return the number under which a trial began, before any process was cut off in it."""
    return int(trial.user_attrs.get("first", trial.number))


def _changed(before: Any, now: Any, prefix: str = "") -> list[str]:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [prefix]
    keys = [*before, *(key for key in now if key not in before)]
    return [
        found
        for key in keys
        for found in _changed(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else str(key))
    ]


def _is_dead(trial: FrozenTrial) -> bool:
    """Return whether the process of a running trial has ended; one that noted no process died at its start."""
    from datetime import datetime

    text = trial.user_attrs.get("process")
    if text is None:
        started = trial.datetime_start
        return started is not None and (datetime.now() - started).total_seconds() > _NAMELESS_SECONDS
    return ProcessIdentity.from_text(text).is_dead()


def _is_held(path: Path) -> bool:
    from filelock import FileLock, Timeout

    try:
        with FileLock(path, blocking=False):
            return False
    except Timeout:
        return True


def _sampler(config: TuneConfig, number: int) -> BaseSampler:
    from optuna.samplers import RandomSampler, TPESampler

    seed = zlib.crc32(f"{config.seed} {number}".encode())
    if config.sampler == "random":
        return RandomSampler(seed=seed)
    # `constant_liar`: trials that other processes train now count as bad, so that no two try the same.
    return TPESampler(n_startup_trials=config.startup, multivariate=True, constant_liar=True, seed=seed)


def _pruner(config: TuneConfig) -> BasePruner:
    from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

    if config.pruner == "median":
        return MedianPruner(n_startup_trials=config.startup)
    if config.pruner == "asha":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    return NopPruner()
