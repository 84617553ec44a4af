"""Train the network, tracked by MLflow; a training that was cut off goes on from its last checkpoint."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from textmill.config.layout import SEEN_FILE, START, Layout
from textmill.config.sections.runtime import RuntimeConfig
from textmill.config.sections.train import TrainConfig
from textmill.errors import first_line
from textmill.processes import is_first_process, is_launched
from textmill.stages.imports import quick_imports
from textmill.stages.launch import launch, noted_errors
from textmill.stages.runner import run_stage

if TYPE_CHECKING:
    from textmill.data.prepared import Prepared
    from textmill.planning.plan import Plan
    from textmill.registry.runs.tracking import StageRun
    from textmill.training.trainer import Trained, Training


log = logging.getLogger("textmill")

_PROBE_SHARE = 0.02
"""Largest share of the training's time that measuring its speed takes, apart from the first few steps."""


def main(config: TrainConfig, runtime: RuntimeConfig, layout: Layout) -> None:
    """Make `data/trained` from `data/prepared` and `data/pretrained`, in the processes of `runtime.launcher`."""
    if is_launched():
        with noted_errors():
            _main(config, runtime, layout)
    elif runtime.launcher.name == "local":
        _main(config, runtime, layout)
    else:
        launch(main, config, runtime, layout)


def _main(config: TrainConfig, runtime: RuntimeConfig, layout: Layout) -> None:
    with quick_imports():
        from textmill.data.prepared import Prepared
        from textmill.training import distributed

        distributed.connect(runtime.trainer.accelerator)  # first, as the other ranks wait for it
        from textmill.training.trainer import Training

        if is_first_process():
            from textmill.registry.runs.tracking import connect

            connect(runtime, layout)  # imports what this store needs

    prepared = Prepared(layout.prepared)
    training = Training(config, runtime, prepared, layout.pretrained, layout.checkpoints)
    if not is_first_process():
        training.run()
        return

    with training.folder.lock():
        _train(config, runtime, layout, training, prepared)


def _train(config: TrainConfig, runtime: RuntimeConfig, layout: Layout, training: Training, prepared: Prepared) -> None:
    from textmill.planning.plan import errors, measured
    from textmill.registry.runs.abandoned import end_abandoned
    from textmill.registry.runs.descriptions import run_label
    from textmill.registry.runs.tracking import stage_run

    if refused := training.refused_checkpoint():
        log.warning("train: %s", refused)
    with stage_run(
        "train",
        layout,
        runtime,
        upstream=None,
        fingerprint=training.fingerprint,
        resume_run_id=training.folder.run_id(),
        name=run_label(config.model),
        system_metrics=True,
    ) as run:
        training.folder.note_run(run.run_id)
        others = training.folder.others()
        end_abandoned([other.run_id() for other in others], run.run_id, layout, runtime)
        for other in others[runtime.unfinished_trainings :]:
            log.warning("train: deletes the oldest unfinished training, %s (runtime.unfinished_trainings)", other.path)
            other.remove()
        run.log_configuration("train", config, layout)
        _log_inputs(run, config, runtime, training, prepared)
        plan = _plan(config, runtime, training, run)
        trained = training.run(run)
        run.log_metrics({f"best/{name}": value for name, value in trained.metrics.items()})
        if plan is not None:
            found = errors(plan, *measured())
            run.log_metrics(found)
            trained.metrics.update({name.replace("/", "_"): value for name, value in found.items()})
        _write(layout.trained, trained, run, layout.pretrained if config.start else None)
        run.log_artifact(layout.trained / "history.csv")
    training.folder.remove()


def _plan(config: TrainConfig, runtime: RuntimeConfig, training: Training, run: StageRun) -> Plan | None:
    """Log what the training takes before it begins; None for several processes, a resumed training, a failed probe."""
    from textmill.planning.plan import make_plan

    if not runtime.plan or training.ranks > 1 or training.folder.has_checkpoint():
        return None
    try:
        plan = make_plan(training, config, _PROBE_SHARE)
    except Exception as error:  # the training reports it, or succeeds without a plan
        log.info("train: no estimate of time and memory (%s)", first_line(error))
        return None
    run.log_params({"plan": plan.params()})
    log.info("train: %s", plan.sentence())
    return plan


def _log_inputs(
    run: StageRun, config: TrainConfig, runtime: RuntimeConfig, training: Training, prepared: Prepared
) -> None:
    run.log_params({"train": config.model_dump(mode="json"), "precision": training.precision})
    run.log_params({"trainer": runtime.trainer.model_dump(mode="json")})
    run.log_params({"launcher": {"name": runtime.launcher.name, "ranks": training.ranks}})
    if mixture := prepared.statistics.get("mixture"):
        shares = {name: source["share_tokens"] for name, source in mixture["sources"].items()}
        run.log_params({"mixture": shares})
    for name, context in (("train", "training"), ("validation", "validation")):
        table = prepared.split(name)
        readable = [field.name for field in table.schema if field.type == "string"]
        run.log_input_table(
            table.select(readable).slice(0, 100).to_pandas(),
            name=name,
            source=str(prepared.folder / name),
            digest=prepared.digest(name),
            context=context,
            rows=table.num_rows,
        )


def _write(target: Path, trained: Trained, run: StageRun, pretrained: Path | None) -> None:
    import shutil

    from textmill.files import atomic_folder, write_json
    from textmill.training.loading import MODEL_FOLDER, save_network
    from textmill.training.start import started_from

    with atomic_folder(target) as folder:
        save_network(folder / MODEL_FOLDER, trained.network, trained.weights)
        for name, rows in (("history.csv", trained.history), ("curve.csv", trained.curve)):
            with (folder / name).open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
                writer.writeheader()
                writer.writerows(rows)
        write_json(folder / "metrics.json", trained.metrics)
        if pretrained is not None:  # the version travels with the weights that go on from it
            write_json(folder / f"{START}.json", started_from(pretrained))
            shutil.copyfile(pretrained / START / SEEN_FILE, folder / SEEN_FILE)
        run.write_reference(folder / "run.json")


if __name__ == "__main__":
    run_stage("train", main)
