"""`textmill plan` as it is typed, in a project with prepared data."""

from __future__ import annotations

import json

from support.project import Project


def test_plan_tells_operations_memory_time_and_devices_and_trains_nothing(project: Project) -> None:
    before = {path: path.stat().st_mtime_ns for path in (project.root / "data").rglob("*")}
    cache = {"XDG_CACHE_HOME": str(project.root.parent / "cache")}
    command = ("textmill", "plan", "train.max_epochs=4", "--device", "h100", "--device", "cpu", "--devices", "8")
    found = json.loads(project.run(*command, "--json", env=cache).stdout)
    assert found["work"]["parameters"] == found["work"]["active_parameters"] > 1000
    assert found["here"]["seconds"] > found["here"]["training_seconds"] > 0
    assert sum(found["memory"].values()) < found["here"]["available_memory"]
    assert found["optimum"] is None, "not a language model"
    assert {(each["device"], each["devices"]) for each in found["forecasts"]} >= {("cpu", 1), ("h100", 1), ("h100", 8)}
    assert all(each["seconds"] > 0 and each["fits"] for each in found["forecasts"])
    assert {path: path.stat().st_mtime_ns for path in (project.root / "data").rglob("*")} == before

    speeds = (project.root.parent / "cache/textmill/speeds.json").read_text()
    table = project.run(*command, env=cache).stdout
    assert (project.root.parent / "cache/textmill/speeds.json").read_text() == speeds, "remembered"
    assert "FLOPs of the training" in table and "h100" in table and "largest batch that fits" in table

    refused = project.run("textmill", "plan", "prepare.max_length=8", check=False)
    assert refused.returncode == 1
    assert "the data was prepared with other settings" in refused.stderr and "Traceback" not in refused.stderr
    unknown = project.run("textmill", "plan", "--device", "h10", check=False)
    assert unknown.returncode == 1 and "Did you mean 'h100'?" in unknown.stderr
