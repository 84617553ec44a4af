"""The stage `register`: register the exported model and write `data/registered`."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict

from textmill.config.layout import Layout
from textmill.config.sections.register import RegisterConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import UserError
from textmill.files import atomic_folder, read_optional, sha256_file, write_json
from textmill.predicting.exported import MANIFEST_FILE, read_specification
from textmill.registry.runs.tracking import stage_run
from textmill.registry.versions import versions

log = logging.getLogger("textmill")


def register_exported(config: RegisterConfig, runtime: RuntimeConfig, layout: Layout) -> None:
    """Register `data/exported` under `config.name` and write `data/registered/registered.json`.

    Raises:
        UserError: There is no exported model, it was tampered with, or the registry refuses it.
    """
    model, examples = layout.exported / "model", layout.exported / "examples.json"
    exported = read_specification(model)
    if not examples.is_file():
        raise UserError("file missing: no stored answers", where=str(examples), fix="Run `dvc repro --force export`")
    manifest = sha256_file(model / MANIFEST_FILE)
    key = json.dumps([config.name, manifest, sha256_file(examples)])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    with (
        atomic_folder(layout.registered) as folder,
        stage_run("register", layout, runtime, upstream=layout.exported / "run.json", fingerprint=fingerprint) as run,
    ):
        run.log_configuration("register", config, layout)
        run.log_artifact(examples, "register")
        if (lock := layout.root / "dvc.lock").is_file():
            run.log_artifact(lock, "register")  # this state of the lock may never be committed
        registered = versions.register(config.name, model, examples, run.run_id, layout)
        run.set_tags({"textmill.registered": f"{registered.name}/{registered.version}"})
        metrics = read_optional(layout.evaluation / "metrics.json")
        write_json(folder / "registered.json", {**asdict(registered), "metrics": metrics.get("test", {})})
    log.info(
        "register: %s version %s (alias %s) serves %s",
        registered.name,
        registered.version,
        registered.alias,
        " and ".join(sorted(exported.graphs.values())) or "generated text",
    )
