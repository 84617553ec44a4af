"""The stage `train` of a real project by a launcher: DVC sees one stage, MLflow one run."""

from __future__ import annotations

import json

import pytest
from support.project import Project


@pytest.mark.slow
def test_torchrun_in_a_project_is_one_stage_and_one_run(project: Project) -> None:
    settings = "launcher: {processes: 2}, trainer: {strategy: fsdp, accelerator: cpu}"
    params = project.root / "params.yaml"
    params.write_text(f"{params.read_text()}\nlauncher: torchrun\nruntime: {{{settings}}}\n")
    assert project.repro() == ["compose"], "a setting of the machine"
    done = project.run("dvc", "repro", "--force", "--single-item", "train")
    assert "starts 2 processes on each of 1 machines" in done.stderr
    assert project.run("dvc", "status", "train").stdout.strip() == "Data and pipelines are up to date."
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    experiments = [each.experiment_id for each in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    assert run.info.status == "FINISHED"
    assert run.info.run_id == json.loads((project.root / "data/trained/run.json").read_text())["run_id"]
    assert run.data.params["launcher.name"] == "torchrun"
    assert run.data.params["launcher.ranks"] == "2"
