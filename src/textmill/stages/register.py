"""Register the exported model as the challenger, after a fresh process has tried it."""

from __future__ import annotations

import logging

from textmill.config.layout import Layout
from textmill.config.sections.register import RegisterConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.stages.runner import run_stage

log = logging.getLogger("textmill")


def main(config: RegisterConfig, runtime: RuntimeConfig, layout: Layout) -> None:
    """Make `data/registered` and a version in the model registry from `data/exported`.

    Raises:
        UserError: There is no exported model, it was tampered with, or the registry refuses it.
    """
    import hashlib
    import json
    from dataclasses import asdict

    from textmill.errors import UserError
    from textmill.files import atomic_folder, read_optional, sha256_file, write_json
    from textmill.predicting.exported import MANIFEST_FILE, read_specification
    from textmill.registry.promotion.challenger import make_challenger
    from textmill.registry.runs.origin import REGISTERED
    from textmill.registry.runs.tracking import stage_run
    from textmill.registry.versions import versions

    model, examples = layout.exported / "model", layout.exported / "examples.json"
    exported = read_specification(model)
    if not examples.is_file():
        raise UserError("file missing: no stored answers", where=str(examples), fix="Run `dvc repro --force export`")
    key = json.dumps([config.name, sha256_file(model / MANIFEST_FILE), sha256_file(examples)])
    fingerprint, upstream = hashlib.sha256(key.encode()).hexdigest(), layout.exported / "run.json"
    with (
        atomic_folder(layout.registered) as folder,
        stage_run("register", layout, runtime, upstream=upstream, fingerprint=fingerprint, needs_store=True) as run,
    ):
        import mlflow

        run.log_configuration("register", config, layout)
        run.log_artifact(examples, "register")
        if (lock := layout.root / "dvc.lock").is_file():
            run.log_artifact(lock, "register")  # this state of the lock may never be committed
        registered = versions.register(config.name, model, examples, run.run_id, layout)
        run.set_tags({REGISTERED: f"{registered.name}/{registered.version}"})
        make_challenger(mlflow.MlflowClient(), registered)
        metrics = read_optional(layout.evaluation / "metrics.json")
        write_json(folder / "registered.json", {**asdict(registered), "metrics": metrics.get("test", {})})
    log.info(
        "register: %s version %s (alias %s) serves %s",
        registered.name,
        registered.version,
        registered.alias,
        " and ".join(sorted(exported.graphs.values())) or "generated text",
    )


if __name__ == "__main__":
    run_stage("register", main)
