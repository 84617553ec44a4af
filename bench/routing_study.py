"""Every router against the dense model of equal FLOPs, into MLflow and `docs/routing.md`: `make routing-study`.

Each router trains the same decoder on the same batches from the same seeds, and so does a dense
network whose tokens pass as many weights. All runs are children of one MLflow run of the experiment
`routing-study`. What has finished there with the same configuration and data is not run again, so
a study that was cut off goes on where it stopped; `--fresh` starts another one.

The study has four parts, all run unless `--only` names some: `train`; `speed`, which measures
training steps on one thread; `equal_time`, which trains the dense model for as
long as the best router takes; and `page`, which writes what was found.

Further arguments are Hydra overrides of every run, such as `model.n_layers=2`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.routing_page import DENSE, DENSE_LONGER, LIMITED, TAG, Found, best_router, read_study, write_page
from bench.routing_task import CAPACITY_FACTOR
from textmill.config.compose import compose
from textmill.config.layout import Layout
from textmill.config.schema import PipelineConfig
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.registry.runs.opening import Opened
from textmill.registry.runs.tracking import StageRun, StoreLog
from textmill.stages.runner import run_program

log = logging.getLogger("textmill")

ROOT = Path(__file__).resolve().parent.parent
TINY_SHAKESPEARE = ROOT / "../shared/data/tinyshakespeare/input.txt"
PARTS = ("train", "speed", "equal_time", "page")
VALIDATIONS = 2
_SPEED_ROUNDS, _SPEED_STEPS, _SPEED_WARM_UP = 2, 15, 3


@dataclass(frozen=True)
class Arm:
    """One of the models that are compared.

    Attributes:
        name: Of the router, or `dense`.
        overrides: What makes it different.
    """

    name: str
    overrides: tuple[str, ...]


def arms(routers: Sequence[str]) -> list[Arm]:
    """The dense model, one for each router, and a Switch that drops tokens."""
    known = [path.stem for path in sorted((ROOT / "conf" / "router").glob("*.yaml"))]
    experts: dict[str, tuple[str, ...]] = {name: ("model=shakespeare_moe", f"router={name}") for name in known}
    experts[LIMITED] = ("model=shakespeare_moe", "router=switch", f"model.experts.capacity_factor={CAPACITY_FACTOR}")
    if unknown := set(routers) - experts.keys():
        raise UserError(f"no such router: {', '.join(sorted(unknown))}", fix=f"Allowed: {', '.join(experts)}")
    return [Arm(DENSE, ("model=shakespeare_dense",)), *(Arm(name, experts[name]) for name in routers or experts)]


class Study:
    """One parent run, the data it is about, and how to train on it.

    Args:
        options: The command line.
        overrides: Hydra overrides of every run.
    """

    def __init__(self, options: argparse.Namespace, overrides: Sequence[str]) -> None:
        self.arms = arms([name for name in options.routers.split(",") if name])
        self.seeds = range(1, options.seeds + 1)
        self.steps: int = options.steps
        self._overrides = list(overrides)
        self._text: Path | None = options.text
        self._layout = Layout(ROOT)
        self.prepared = self._prepare(self._composed(self.arms[0], 1, 1, self.steps))
        # Some tokens are left over where sequences and batches end.
        self._training_tokens = 0.98 * self.prepared.statistics["splits"]["train"]["tokens"]["total"]
        config = self.configured(self.arms[0], 1, self.steps)
        self._client, self._uri, self._experiment = self._connect(config)
        self.parent = self._open(config, options.fresh)

    # -- configuration and data -------------------------------------------------------------

    def configured(self, arm: Arm, seed: int, steps: int, *more: str) -> PipelineConfig:
        """The configuration of one run; `more` overrides come last.

        Where the text has fewer batches than steps are asked, there are several epochs, and as many steps as
        make them equally long.
        """
        config = self._composed(arm, seed, 1, steps, *more)
        batches = int(self._training_tokens / config.train.batches.tokens)
        epochs = math.ceil(steps / max(1, batches))
        return config if epochs == 1 else self._composed(arm, seed, epochs, math.ceil(steps / epochs), *more)

    def _composed(self, arm: Arm, seed: int, epochs: int, steps_per_epoch: int, *more: str) -> PipelineConfig:
        data = ["experiment=shakespeare"]
        if self._text is not None:
            data = ["experiment=tiny_shakespeare", f"fetch.source.files.all={json.dumps(str(self._text.resolve()))}"]
        fixed = [
            "name=routing-study",
            "task._target_=bench.routing_task.WatchedLanguageModelling",
            "trainer=cpu",
            f"seed={seed}",
            f"train.max_epochs={epochs}",
            f"train.batches.per_epoch={steps_per_epoch}",
            "train.batches.tokens=1024",
            f"train.validations_per_epoch={1 if epochs > 1 else min(VALIDATIONS, steps_per_epoch)}",
        ]
        return compose(self._layout, [*data, *fixed, *arm.overrides, *self._overrides, *more])

    def _prepare(self, config: PipelineConfig) -> Prepared:
        """The data as the stages `fetch` and `prepare` make them, once for all runs."""
        from textmill.data.prepare import prepare
        from textmill.fetching.corpus import fetch_corpus

        key = _digest(
            {"fetch": config.fetch.model_dump(mode="json"), "prepare": config.prepare.model_dump(mode="json")}
        )
        layout = Layout(self._layout.state / "routing-study" / key[:16])
        if not layout.prepared.is_dir():
            fetch_corpus(config.fetch, layout)
            prepare(config.prepare, config.runtime, layout)
        return Prepared(layout.prepared)

    # -- the store --------------------------------------------------------------------------

    def _connect(self, config: PipelineConfig) -> tuple[Any, str, str]:
        from mlflow import MlflowClient, get_tracking_uri

        from textmill.registry.runs.store import connect

        connect(config.runtime, self._layout)
        client = MlflowClient()
        experiment = client.get_experiment_by_name(config.runtime.tracking_experiment)
        return client, get_tracking_uri(), str(experiment.experiment_id)  # type: ignore[union-attr]

    def _open(self, config: PipelineConfig, fresh: bool) -> StageRun:
        """The parent run of this configuration: the newest one there is, or a new one."""
        fixed = config.train.model_dump(mode="json", exclude={"checkpoint_seconds", "model", "seed"})
        key = self._key(fixed)
        query = f"tags.`{TAG}` = '{key}'"
        found = [] if fresh else self._client.search_runs([self._experiment], query, max_results=1)
        if found:
            run = self._run(found[0].info.run_id)
            self._client.update_run(run.run_id, status="RUNNING")
            return run
        run = self._new_run(f"{self.steps} steps", {TAG: key})
        run.log_params({"train": fixed, "steps": self.steps, "text": self._text.name if self._text else "shakespeare"})
        return run

    def _new_run(self, name: str, tags: Mapping[str, str]) -> StageRun:
        from textmill.registry.runs.origin import origin_tags

        everything = {**origin_tags(ROOT), "mlflow.source.name": "bench.routing_study", **tags}
        return self._run(self._client.create_run(self._experiment, run_name=name, tags=everything).info.run_id)

    def _run(self, run_id: str) -> StageRun:
        return StageRun(run_id, "routing-study", StoreLog(self._client, self._uri, Opened(run_id, {})))

    def _key(self, parts: Any) -> str:
        digests = {name: self.prepared.digest(name) for name in ("train", "validation")}
        return _digest([parts, digests, self._overrides])

    def read(self) -> Found:
        """What the store holds of this study so far."""
        return read_study(self._client, self._experiment, self.parent.run_id, [arm.name for arm in self.arms])

    # -- parts ------------------------------------------------------------------------------

    def train(self) -> None:
        """All arms from all seeds, seed by seed, so that a study that is cut off has whole seeds."""
        for seed in self.seeds:
            for arm in self.arms:
                self._train(arm, seed, self.steps)

    def equal_time(self) -> None:
        """The dense model for as long as the best router's training takes."""
        found = self.read()
        best = best_router(found)
        if best is None or not {DENSE, best} <= found.speeds.keys():
            raise UserError("no speeds were measured yet", fix="Run with --only speed first")
        steps = round(self.steps * found.speeds[DENSE] / found.speeds[best])
        log.info("dense for %d steps, as long as %s takes for %d", steps, best, self.steps)
        self.parent.set_tags({f"{TAG}.equal_time": f"{steps} steps, as long as {best}"})
        for seed in self.seeds:
            self._train(Arm(DENSE_LONGER, self.arms[0].overrides), seed, steps)

    def speed(self) -> None:
        """Tokens a second of whole training steps on one thread, routers unwatched: the median, the arms in turns.

        Time is the processor's, so that what else the machine does counts little.
        """
        import torch

        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
        plain = ("task._target_=textmill.tasks.language_modelling.LanguageModelling", "train.validations_per_epoch=1")
        taken: dict[str, list[float]] = {arm.name: [] for arm in self.arms}
        for _ in range(_SPEED_ROUNDS):
            for arm in self.arms:
                config = self.configured(arm, 1, min(self.steps, _SPEED_STEPS), *plain)
                watch = _Speedometer(config.train.batches.tokens)
                self._fit(config, watch)
                taken[arm.name] += watch.speeds[_SPEED_WARM_UP:] or watch.speeds
        for name, speeds in taken.items():
            log.info("%s: %.0f tokens/s", name, statistics.median(speeds))
            self.parent.log_metrics({f"speed/{name}": statistics.median(speeds)})
        self.parent.flush()

    def _train(self, arm: Arm, seed: int, steps: int) -> None:
        """Train unless that was done already."""
        config = self.configured(arm, seed, steps)
        values = config.train.model_dump(mode="json", exclude={"checkpoint_seconds"})
        tags = {"mlflow.parentRunId": self.parent.run_id, f"{TAG}.run": self._key(values)}
        query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        # The longer dense model may have to be trained for as many steps as the dense model.
        query += f" and attributes.status = 'FINISHED' and tags.`{TAG}.arm` = '{arm.name}'"
        if self._client.search_runs([self._experiment], query, max_results=1):
            log.info("%s, seed %d: done before", arm.name, seed)
            return
        log.info("%s, seed %d ...", arm.name, seed)
        tags |= {f"{TAG}.arm": arm.name, f"{TAG}.seed": str(seed)}
        run = self._new_run(f"{arm.name}, seed {seed}", tags)
        with _ended(run):
            run.log_params({"train": values, "steps": config.train.max_epochs * (config.train.batches.per_epoch or 0)})
            trained = self._fit(config, run)
            run.log_params({"weights": trained.network.parameter_counts()})
            run.log_metrics({f"final/{name}": value for name, value in trained.history[-1].items()})
            run.log_metrics({"train_seconds": trained.metrics["train_seconds"]})

    def _fit(self, config: PipelineConfig, metrics: Any) -> Any:
        from textmill.training.trainer import Training

        quiet = config.runtime.model_copy(update={"progress": "plain"})
        with tempfile.TemporaryDirectory() as checkpoints:
            return Training(config.train, quiet, self.prepared, None, Path(checkpoints)).run(metrics)


class _Speedometer:
    """Keeps how fast each step was, in tokens a second of processor time.

    Args:
        tokens: Of a step.
    """

    def __init__(self, tokens: int) -> None:
        self.speeds: list[float] = []
        self._tokens = tokens
        self._clock = time.process_time()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # noqa: ARG002
        """Called after each step, among others."""
        if "train/loss" in metrics:
            now = time.process_time()
            self.speeds.append(self._tokens / max(now - self._clock, 1e-9))
            self._clock = now


@contextmanager
def _ended(run: StageRun) -> Iterator[None]:
    """End the run as the block ends."""
    try:
        yield
        run.flush()
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        run.end("KILLED" if stopped else "FAILED")
        raise
    run.end("FINISHED")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are asked for, by `arguments` or those of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = TINY_SHAKESPEARE if TINY_SHAKESPEARE.is_file() else None
    parser.add_argument("--text", type=Path, default=text, help="tiny Shakespeare; without it, the embedded plays")
    parser.add_argument("--steps", type=int, default=400, help="of every run")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--routers", default="", help="names in conf/router/ with commas between; all if left out")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--fresh", action="store_true", help="a new study, though there is one of this configuration")
    parser.add_argument("--block", default="routing-study", help="name of the markers on the page, and of pictures")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "routing.md", help="with the markers of the table")
    options, overrides = parser.parse_known_args(arguments)
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        raise UserError(f"no such part: {', '.join(unknown)}", where="--only", fix=f"Allowed: {', '.join(PARTS)}")
    study = Study(options, overrides)
    with _ended(study.parent):
        for part in (part for part in PARTS if part in parts):
            if part == "page":
                write_page(study.read(), options.page, options.block, study.parent)
            else:
                getattr(study, part)()


if __name__ == "__main__":
    run_program("routing-study", main)
