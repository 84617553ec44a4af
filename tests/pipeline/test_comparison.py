"""Two versions or runs side by side, as a table, as JSON and as a page."""

from __future__ import annotations

import json
import re

import pytest
from support.tiny_registry import NAME, list_versions, store, textmill

from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.files import write_json
from textmill.registry.promotion.comparison import compare


@pytest.mark.slow
def test_versions_side_by_side(three_versions: Layout) -> None:
    page = three_versions.root / "out/page.html"
    done = textmill("compare", "1", f"models:/{NAME}@challenger", "--html", str(page), cwd=three_versions.root)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"{NAME}/1 +{NAME}/3 +gain", done.stdout)
    assert re.search(r"accuracy ↑ .*0\.882 .*0\.118 .*-0\.765", done.stdout)
    assert "latency of one row, p95, ms" in done.stdout
    assert re.search(r"test +[0-9a-f]{12} +[0-9a-f]{12} +same", done.stdout)
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 2
    assert not re.search(r"(?:src|href)=\"(?!data:)", text), "the page needs no other file"
    assert "All parameters are equal." in text


@pytest.mark.slow
def test_json_and_params(three_versions: Layout) -> None:
    client = store(three_versions)
    runs = {str(version.version): version.run_id for version in list_versions(three_versions)}
    client.log_param(runs["1"], "train.seed", "1")
    client.log_param(runs["2"], "train.seed", "2")
    client.log_param(runs["1"], "train.only_here", "x")
    done = textmill("compare", runs["1"], f"{NAME}/2", "--json", cwd=three_versions.root)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["params"] == {"train.seed": ["1", "2"], "train.only_here": ["x", None]}
    assert found["differences"]["accuracy"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["metrics"]["accuracy"][0] == found["metrics"]["accuracy"][1]
    assert len(found["costs"]) == 2
    assert found["digests"]["test"][0] == found["digests"]["test"][1]
    assert found["digests"]["test rows"][0] == found["digests"]["test rows"][1]


def test_runs_without_versions_by_what_they_logged(three_versions: Layout) -> None:
    client = store(three_versions)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    runs = [client.create_run(experiment, run_name=name).info.run_id for name in ("one", "two")]
    for value, run in zip((0.7, 0.8), runs, strict=True):
        for suffix, change in (("", 0.0), ("_low", -0.1), ("_high", 0.1)):
            client.log_metric(run, f"test/accuracy{suffix}", value + change)
    found = compare(*runs, three_versions)
    assert found.names == ("one", "two")
    assert [round(side.low, 6) for side in found.metrics["accuracy"] if side] == [0.6, 0.7]
    assert found.differences == {}
    assert found.how.endswith("No paired difference: the run one stored no predictions.")


def test_runs_with_stored_predictions_are_paired(three_versions: Layout) -> None:
    import numpy as np
    import pandas as pd

    client = store(three_versions)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    runs = []
    for wrong in (8, 2):
        labels = np.array(["bad", "good"] * 20)
        answers = labels.copy()
        answers[:wrong] = answers[:wrong][::-1]
        good = np.where(answers == "good", 0.9, 0.1)
        table = pd.DataFrame({"id": [str(i) for i in range(40)], "label": labels, "prediction": answers})
        table = table.assign(confidence=0.9, probability_good=good, probability_bad=1 - good)
        run = client.create_run(experiment).info.run_id
        path = three_versions.root / "predictions.parquet"
        table.to_parquet(path)
        client.log_artifact(run, str(path), "evaluation")
        runs.append(run)
    found = compare(*runs, three_versions)
    assert found.differences["accuracy"].value == pytest.approx(6 / 40)
    assert found.how == "From the stored predictions of the runs for 40 test rows."


def test_what_is_not_there_is_told(three_versions: Layout) -> None:
    for asked, said in ((("1", "7"), "has no version 7"), (("1", "0" * 32), "no such run")):
        with pytest.raises(UserError, match=said):
            compare(*asked, three_versions)
    write_json(three_versions.registered / "registered.json", {"name": "nobody"})
    assert compare("1", "2", three_versions).names == (f"{NAME}/1", f"{NAME}/2")
