"""Measure the trained model beside its baselines, with intervals, slices and a report."""

from __future__ import annotations

from textmill.config.layout import Layout
from textmill.config.sections.evaluate import EvaluateConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.stages.runner import run_stage


def main(config: EvaluateConfig, runtime: RuntimeConfig, layout: Layout) -> None:
    """Make `data/evaluation` from `data/prepared` and `data/trained`."""
    from textmill.evaluation.evaluate import evaluate, fingerprint
    from textmill.evaluation.report import write_evaluation
    from textmill.files import atomic_folder
    from textmill.registry.runs import descriptions
    from textmill.registry.runs.tracking import stage_run

    upstream = layout.trained / "run.json"
    with (
        atomic_folder(layout.evaluation) as folder,
        stage_run("evaluate", layout, runtime, upstream=upstream, fingerprint=fingerprint(config, layout)) as run,
    ):
        found = evaluate(config, runtime, layout)
        write_evaluation(found, config, runtime.tracking_experiment, folder)
        run.set_tags(
            {descriptions.NOTE: descriptions.run_description(runtime.tracking_experiment, found.measurements.summary())}
        )
        run.log_configuration("evaluate", config, layout)
        run.log_metrics({**found.measurements.flat(), **found.own_metrics})
        run.log_artifact(folder, "evaluation")
        run.write_reference(folder / "run.json")


if __name__ == "__main__":
    run_stage("evaluate", main)
