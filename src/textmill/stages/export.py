"""Write the exported folder: weights, ONNX graphs, card, manifest; with their parity checked."""

from __future__ import annotations

import logging

from textmill.config.layout import Layout
from textmill.config.sections.export import ExportConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.stages.runner import run_stage

log = logging.getLogger("textmill")


def main(config: ExportConfig, runtime: RuntimeConfig, layout: Layout) -> None:
    """Make `data/exported` from `data/prepared`, `data/trained` and `data/evaluation`."""
    from textmill.export.export import MODEL_FOLDER, export, fingerprint
    from textmill.files import atomic_folder, write_json
    from textmill.registry.runs.tracking import stage_run

    upstream = layout.evaluation / "run.json"
    with (
        atomic_folder(layout.exported) as folder,
        stage_run("export", layout, runtime, upstream=upstream, fingerprint=fingerprint(config, layout)) as run,
    ):
        made = export(config, layout, folder)
        write_json(folder / "metrics.json", made.metrics())
        run.log_configuration("export", config, layout)
        run.log_metrics({f"export/{name}": value for name, value in made.metrics().items()})
        run.set_tags({"textmill.manifest_sha256": made.manifest_sha256})
        run.log_artifact(folder / MODEL_FOLDER / "README.md", "export")
        run.write_reference(folder / "run.json")
    if made.verdict:
        log.info("export: %s", made.verdict)


if __name__ == "__main__":
    run_stage("export", main)
