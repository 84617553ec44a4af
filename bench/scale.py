"""Where a training of many GPUs saturates: forecasts of `textmill plan`, and what this machine's store takes.

The first tables are models, by the functions of `textmill plan` on the catalogue's H100; the last are measured here.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SIZES = {
    "124 M": {"n_layers": 12, "n_heads": 12, "width": 768, "hidden_width": 2048},
    "1.3 B": {"n_layers": 24, "n_heads": 16, "width": 2048, "hidden_width": 5504},
    "6.7 B": {"n_layers": 32, "n_heads": 32, "width": 4096, "hidden_width": 11008},
}
ROWS, LENGTH, VOCABULARY = 8, 1024, 50_257
DEVICES = (1, 8, 64, 256, 1024)
FAILURES = 419 / (54 * 16_384)
"""Unexpected interruptions per GPU and day of Llama 3's training (Grattafiori et al. 2024, section 3.3.4)."""
WRITERS = (1, 2, 4)
_DAY = 86_400


def loads() -> Iterator[tuple[str, int, float, Any]]:
    """Yield for each size its name, its parameters, the bytes of a checkpoint, and the load of a step."""
    import torch

    from textmill.config.compose import compose
    from textmill.config.layout import Layout
    from textmill.models.base import Model
    from textmill.planning.hardware import Load
    from textmill.tasks.base import Task
    from textmill.training.footprint import PARTS, Tracer

    ids = torch.randint(1, VOCABULARY, (ROWS, LENGTH))
    state = {"vocabulary_size": VOCABULARY, "end_of_text": 0}
    for name, shape in SIZES.items():
        settings = [f"model.{key}={value}" for key, value in (shape | {"max_length": LENGTH}).items()]
        settings += ["experiment=tiny_shakespeare", "train.optimizer.name=adamw", "train.activation_checkpointing=true"]
        config = compose(Layout(ROOT), settings).train
        task, model = Task.build(config.task), Model.build(config.model)
        build = functools.partial(task.build_network, model, None, state)
        tracer = Tracer(task, build, state, config, "bf16-mixed")
        step = tracer.trace({"input_ids": ids, "labels": ids})
        fixed = sum(step.memory[part] for part in PARTS[:4])
        trained = tracer.counts.trainable
        rest = sum(step.memory[part] for part in ("activations", "logits", "temporary"))
        load = Load(step.flops, step.kernels, step.optimizer_flops, trained * 4.0, float(fixed), float(rest), half=True)
        yield name, trained, 12.0 * trained, load


def training() -> None:
    """Print the share of a step in which devices wait."""
    from textmill.planning.hardware import forecast, read_catalogue

    device = read_catalogue(ROOT / "conf" / "hardware")["h100"]
    every = list(loads())
    print(
        f"### Communication\n\nShare of a step in which H100s wait for each other, with {ROWS} rows of {LENGTH:,} "
        "tokens on each.\n"
    )
    print(f"| parameters | strategy | memory each | {' | '.join(f'{count:,}' for count in DEVICES)} |")
    print(f"|---|---|---:|{'---:|' * len(DEVICES)}")
    for name, _, _, load in every:
        for strategy in ("ddp", "fsdp"):
            found = [forecast("h100", device, load, 10**6, count, strategy) for count in DEVICES]
            cells = [f"{each.communication_seconds / each.step_seconds:.0%}" if each.fits else "-" for each in found]
            memory = f"{found[1].memory / 1e9:.0f} GB at 8"
            print(f"| {name} | {strategy.upper()} | {memory} | {' | '.join(cells)} |")
    print("\n`-`: does not fit.\n\n### Checkpoints\n")
    print(
        "A checkpoint has weights and both moments, 12 bytes per parameter. With n GPUs that fail as often as those of "
        f"Llama 3 ({FAILURES:.1e} per GPU and day), writing and repeating lost steps cost the square root of 2 c / M "
        "of the time at the best interval, for a checkpoint of c seconds and M seconds between failures (Young 1974). "
        "The table has the bandwidth of the store at which this is 1 %.\n"
    )
    print("| parameters | checkpoint | " + " | ".join(f"{count:,} GPUs" for count in DEVICES[1:]) + " |")
    print("|---|---:|" + "---:|" * len(DEVICES[1:]))
    for name, _, size, _ in every:
        needed = [size / (0.01**2 / 2 * _DAY / (FAILURES * count)) for count in DEVICES[1:]]
        cells = [f"{bandwidth / 1e6:,.1f} MB/s" for bandwidth in needed]
        print(f"| {name} | {size / 1e9:.1f} GB | {' | '.join(cells)} |")
    print("\n### Data\n\nTokens per second of all GPUs, and their bytes at 4 per token, as `prepare` stores them.\n")
    print("| parameters | " + " | ".join(f"{count:,}" for count in DEVICES) + " |")
    print("|---|" + "---:|" * len(DEVICES))
    for name, _, _, load in every:
        cells = []
        for count in DEVICES:
            options = [forecast("h100", device, load, 10**6, count, way) for way in ("ddp", "fsdp")]
            best = min((each for each in options if each.fits), key=lambda each: each.step_seconds, default=None)
            rate = 0.0 if best is None else count * ROWS * LENGTH / best.step_seconds
            cells.append(f"{rate:.2g}, {4 * rate / 1e6:.1f} MB/s" if best else "-")
        print(f"| {name} | {' | '.join(cells)} |")


def write_metrics(uri: str, seconds: float, count: Any) -> None:
    """Log metrics to a run of its own in batches of a step's five, about as `train` does in a second."""
    import mlflow
    from mlflow.entities import Metric

    client = mlflow.MlflowClient(uri)
    run = client.create_run("0").info.run_id
    until, step, written = time.monotonic() + seconds, 0, 0
    while time.monotonic() < until:
        batch = [Metric(f"m{key}", 1.0, 1, step + number) for number in range(20) for key in range(5)]
        client.log_batch(run, batch)
        step, written = step + 20, written + len(batch)
    count.put(written)


def store(seconds: float = 4.0) -> None:
    """Measure metrics per second of MLflow's SQLite store, by processes."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    context = multiprocessing.get_context("spawn")
    print("\n### Tracking store\n\nMetrics per second that MLflow's SQLite store takes here, in batches of 100.\n")
    print("| processes | metrics/s | trainings of 5 metrics per step and 10 steps/s |\n|---:|---:|---:|")
    for writers in WRITERS:
        with tempfile.TemporaryDirectory() as folder:
            uri = f"sqlite:///{folder}/mlflow.db"
            SqlAlchemyStore(uri, folder).engine.dispose()  # type: ignore[no-untyped-call]
            count: Any = context.Queue()
            each = [context.Process(target=write_metrics, args=(uri, seconds, count)) for _ in range(writers)]
            for process in each:
                process.start()
            written = sum(count.get(timeout=120) for _ in each)
            for process in each:
                process.join()
        rate = written / seconds
        print(f"| {writers} | {rate:,.0f} | {math.floor(rate / 50)} |")


def studies() -> None:
    """Measure the time that a trial of `textmill tune` spends in the study, by the trials before it."""
    import optuna
    from optuna.storages import RDBStorage

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {f"x{number}": optuna.distributions.FloatDistribution(0, 1) for number in range(4)}
    print(
        "\n### Studies\n\nSeconds per trial in the study (SQLite, TPE, four settings, four validations), without "
        "training.\n"
    )
    print("| trials before | seconds |\n|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        sampler = optuna.samplers.TPESampler(seed=1)
        study = optuna.create_study(storage=RDBStorage(f"sqlite:///{folder}/study.db"), sampler=sampler)
        for before in (0, 100, 300):
            while len(study.get_trials(deepcopy=False)) < before:
                values = dict.fromkeys(space, before * 7 % 10 / 10)
                study.add_trial(optuna.trial.create_trial(params=values, distributions=dict(space), value=values["x0"]))
            started = time.perf_counter()
            for _ in range(5):
                trial = study.ask(dict(space))
                for number in range(4):
                    trial.report(trial.params["x0"], number)
                    trial.should_prune()
                study.tell(trial, trial.params["x0"])
            print(f"| {before} | {(time.perf_counter() - started) / 5:.2f} |")


if __name__ == "__main__":
    training()
    store()
    studies()
