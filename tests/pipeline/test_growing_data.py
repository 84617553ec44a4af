"""Data that grow: a new version is judged against a champion that was made with fewer rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.project import Project, write_reviews

pytestmark = pytest.mark.slow

GATE = """
gate:
  resamples: 200
  min_unseen: 60
  difference: {margin: 0.2}
  slices: {margin: 0.5}
  budgets: {latency: {ratio: 1000}, rows: 5, repeats: 1}
"""


@pytest.fixture(scope="module")
def grown(built_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Champion version 1 of 300 rows; version 2 of 520 rows, in another order; an earlier version 3 like it."""
    project = Project(tmp_path_factory.mktemp("growing") / "project")
    ignored = shutil.ignore_patterns("mlruns", "mlflow.db*")
    shutil.copytree(built_project.root, project.root, symlinks=True, ignore=ignored)
    with (project.root / "params.yaml").open("a") as file:
        file.write(GATE)
    project.edit("conf/data/tiny.yaml", "splits: {", "splits: {method: stable, ")
    reviews = project.root / "data/own/reviews.csv"
    write_reviews(reviews, 300)
    project.repro()
    project.commit("300 rows")
    project.run("textmill", "promote", "--reason", "the first")
    write_reviews(reviews, 520)
    head, *rows = reviews.read_text().splitlines()
    reviews.write_text("\n".join([head, *rows[::-1]]) + "\n")
    project.repro()
    project.commit("520 rows, the new ones first")
    return project


@pytest.fixture
def project(grown: Project, tmp_path: Path) -> Project:
    return Project(Path(shutil.copytree(grown.root, tmp_path / "project", symlinks=True)))


def test_promote_after_growth_is_judged_on_unseen_rows(project: Project) -> None:
    tried = json.loads(project.run("textmill", "promote", "--dry-run", "--json", check=False).stdout)
    assert tried["look"] == 1
    done = json.loads(project.run("textmill", "promote", "--json").stdout)
    assert (done["outcome"], done["champion"], done["version"]) == ("moved", "1", "2"), done["words"]
    today, proven = done["decision"]["unseen"]
    assert (today["split"], today["decides"], proven["split"], proven["decides"]) == (
        "version 2", True, "version 1", False
    )  # fmt: skip
    assert today["seen"]["version 1"] <= 5, "stable splits leave few rows of the test split in an old training split"
    assert today["unseen"] == today["rows"] - today["seen"]["version 1"] > proven["rows"]
    names = [check["name"] for check in done["decision"]["checks"]]
    assert {"digest", "overlap", "unseen", "difference", "proven"} <= set(names)
    told = json.loads(project.run("textmill", "history", "--json").stdout)
    assert list(told["looks"].values()) == [1]


def test_compare_after_growth_predicts_unseen_rows(project: Project) -> None:
    found = json.loads(project.run("textmill", "compare", "1", "2", "--json").stdout)
    assert found["how"].startswith("Both predicted rows that neither has seen now, with the graphs that serve: ")
    assert "rows of the test split of version 2 are unseen (version 1 has seen" in found["how"]
    assert found["differences"]["weighted_f1"]["low"] <= found["differences"]["weighted_f1"]["high"]
    assert found["digests"]["test rows"][0] != found["digests"]["test rows"][1]
    back = json.loads(project.run("textmill", "compare", "2", "1", "--json").stdout)
    assert "of the test split of version 1 are unseen" in back["how"]


def test_promote_without_a_record_takes_the_lineage_and_without_both_says_so(project: Project) -> None:
    records = grown_records(project)
    assert len(records) == 2
    kept = [(path, path.read_bytes()) for path in records]
    try:
        for path, _ in kept:
            path.unlink()
        by_lineage = json.loads(project.run("textmill", "promote", "--dry-run", "--json").stdout)
        assert by_lineage["verdict"] == "pass", by_lineage["words"]
        shutil.rmtree(project.root / ".dvc/cache")
        unknown = project.run("textmill", "promote", "--dry-run", "--json", check=False)
        assert unknown.returncode == 4, unknown.stdout + unknown.stderr
        assert "it is not known which rows version 1 has seen" in json.loads(unknown.stdout)["words"]
        for path, content in kept:
            path.write_bytes(content)
        kept[0][0].write_bytes(b"x" + kept[0][1][1:])
        kept[1][0].write_bytes(b"x" + kept[1][1][1:])
        changed = project.run("textmill", "promote", "--dry-run", "--json", check=False)
        assert changed.returncode == 3
        assert "the record of seen rows differs from the registered one" in changed.stdout
    finally:
        for path, content in kept:
            path.write_bytes(content)


def grown_records(project: Project) -> list[Path]:
    """Artefacts stay where they were made."""
    uris = project.run("python", "-c", "import mlflow; mlflow.set_tracking_uri('sqlite:///mlflow.db'); "
                       "print('\\n'.join(mlflow.get_run(v.run_id).info.artifact_uri "
                       "for v in mlflow.MlflowClient().search_model_versions('')))").stdout.split()  # fmt: skip
    return [Path(uri.removeprefix("file://")) / "seen/seen.parquet" for uri in uris]


def test_promote_after_growth_with_few_rows_is_inconclusive(project: Project) -> None:
    project.edit("params.yaml", "min_unseen: 60", "min_unseen: 5000")
    done = project.run("textmill", "promote", "--dry-run", check=False, env={"COLUMNS": "200"})
    assert done.returncode == 4
    assert "5000 are required" in done.stdout
    assert "are missing" in done.stdout
