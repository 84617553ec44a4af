"""Promotion, rollback and history on a real store: judged, moved whole or not at all, and remembered."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.tiny_export import RUNTIME, mlflow_server
from support.tiny_registry import (
    GATE,
    NAME,
    aliases,
    list_versions,
    register_export,
    store,
    textmill,
    write_gate,
)

from textmill.config import resolved
from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.files import read_json
from textmill.registry.promotion.events import history
from textmill.registry.promotion.promotion import promote
from textmill.registry.promotion.rollback import rollback


@pytest.fixture
def layout(three_versions: Layout) -> Layout:
    """Three versions, no champion yet."""
    return three_versions


@pytest.fixture
def crowned(layout: Layout) -> Layout:
    """Version 1 is the champion."""
    store(layout).set_registered_model_alias(NAME, "champion", "1")
    return layout


def events(layout: Layout) -> list[dict[str, Any]]:
    return list(history(store(layout), NAME)["events"])


# -- the whole way ---------------------------------------------------------------------------


@pytest.mark.slow
def test_commands_from_first_champion_to_rollback(layout: Layout) -> None:
    """Promote, promote a better one, refuse a broken one, roll back, read the history."""
    run = lambda *arguments: textmill(*arguments, cwd=layout.root)  # noqa: E731
    tried = run("promote", "1", "--dry-run")
    assert tried.returncode == 0, tried.stderr
    assert "tiny-reviews version 1 would be promoted. Nothing was moved." in tried.stdout
    assert "champion" not in aliases(layout)
    assert events(layout) == []
    first = run("promote", f"models:/{NAME}/1", "--reason", "the first", "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["outcome"] == "moved"
    second = run("promote", f"{NAME}/2")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "tiny-reviews version 2 is now the champion in place of version 1." in second.stdout
    assert aliases(layout) == {"champion": "2", "previous": "1", "challenger": "3"}
    broken = run("promote")
    assert broken.returncode == 3, broken.stdout + broken.stderr
    assert "tiny-reviews version 3 is not promoted: refused. Nothing was moved." in broken.stdout
    assert aliases(layout) == {"champion": "2", "previous": "1", "challenger": "3"}
    back = run("rollback", "--reason", "users [complain]")
    assert back.returncode == 0, back.stderr
    assert "tiny-reviews version 1 is now the champion in place of version 2." in back.stdout
    assert aliases(layout) == {"champion": "1", "challenger": "3"}
    told = run("history")
    assert told.returncode == 0
    assert "users [complain]" in told.stdout
    assert "outside of promote and rollback" not in told.stdout
    found = json.loads(run("history", "--json").stdout)
    assert [(e["action"], e["champion"], e["version"], e["verdict"], e["outcome"]) for e in found["events"]] == [
        ("promotion", None, "1", "pass", "moved"),
        ("promotion", "1", "2", "pass", "moved"),
        ("promotion", "2", "3", "fail", "refused"),
        ("rollback", "2", "1", None, "moved"),
    ]
    assert all(e["user"] and e["time"].endswith("+00:00") for e in found["events"])
    assert run("rollback", "--reason", "again").returncode == 1
    assert run("rollback").returncode == 2


@pytest.mark.slow
def test_decision_and_card_are_stored_with_the_version(crowned: Layout) -> None:
    import mlflow

    done = promote("2", crowned, reason="like the other")
    version = store(crowned).get_model_version(NAME, "2")
    assert version.tags["textmill.verdict"] == "pass"
    address = version.tags["textmill.decision"]
    assert address == done.event.decision
    assert address.startswith(f"runs:/{version.run_id}/")
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=address))
    decision = read_json(folder / "decision.json")
    assert (decision["verdict"], decision["version"], decision["champion"]) == ("pass", "2", "1")
    assert (decision["outcome"], decision["decision"], decision["look"]) == ("moved", address, 1)
    assert version.tags["textmill.outcome"] == "moved"
    assert decision["gate"]["difference"]["margin"] == 0.05
    assert decision["evaluation_set"]["rows"] == 34
    assert {check["name"] for check in decision["checks"]} >= {"digest", "overlap", "difference", "slice", "memory"}
    costs = decision["versions"]["champion"]["costs"]
    assert costs["memory"] > 20
    assert costs["size"] > 0
    card = (folder / "model_card.md").read_text()
    assert card.startswith("# Another card")
    assert "tiny-reviews version 2 compared with version 1" in card


@pytest.mark.slow
def test_refused_and_inconclusive_move_nothing(crowned: Layout) -> None:
    refused = promote("3", crowned)
    assert (refused.event.outcome, refused.event.verdict) == ("refused", "fail")
    assert "accuracy" in refused.event.words or "weighted_f1" in refused.event.words
    write_gate(crowned, **{**GATE, "floors": {"nothing": 1}})
    assert promote("2", crowned).event.outcome == "refused"
    (found,) = (check for check in refused.decision["checks"] if check["name"] == "difference")
    spanned = {"margin": -found["figures"]["value"]}  # in the middle of the interval
    write_gate(crowned, **{**GATE, "difference": spanned, "slices": {"columns": [], "margin": 5.0}})
    unclear = textmill("promote", "3", "--json", cwd=crowned.root)
    found = json.loads(unclear.stdout)
    assert (unclear.returncode, found["outcome"], found["verdict"]) == (4, "inconclusive", "inconclusive")
    assert aliases(crowned)["champion"] == "1"
    assert [event["outcome"] for event in events(crowned)] == ["refused", "refused", "inconclusive"]


@pytest.mark.slow
def test_first_champion_is_held_to_floors(layout: Layout) -> None:
    write_gate(layout, **GATE, floors={"accuracy": 0.99})
    assert promote("1", layout).event.outcome == "refused"
    write_gate(layout, **GATE, floors={"accuracy": 0.6})
    done = promote("1", layout)
    assert done.event.outcome == "moved"
    assert {check["name"] for check in done.decision["checks"]} == {"digest", "overlap", "floor"}
    assert aliases(layout) == {"champion": "1", "challenger": "3"}


@pytest.mark.slow
def test_promote_without_the_data_of_the_version_is_refused(crowned: Layout) -> None:
    """Without a cache the workspace must have the rows of the version."""
    shard = next((crowned.prepared / "train").iterdir())
    shard.rename(shard.with_name("00007.arrow"))
    words = promote("2", crowned, dry_run=True).event.words
    assert words == "the training rows of version 2 are not available"
    shard = next((crowned.prepared / "test").iterdir())
    shard.rename(shard.with_name("00007.arrow"))
    with pytest.raises(UserError, match=r"the test rows of tiny-reviews/2 are not available .*holds other test rows"):
        promote("2", crowned, dry_run=True)


def test_tampered_challenger_or_champion_is_refused_and_named(crowned: Layout) -> None:
    for number, challenger in (("2", "2"), ("1", "2")):
        kept = store(crowned).get_model_version(NAME, number).tags["textmill.manifest_sha256"]
        store(crowned).set_model_version_tag(NAME, number, "textmill.manifest_sha256", "0" * 64)
        done = textmill("promote", challenger, cwd=crowned.root)
        store(crowned).set_model_version_tag(NAME, number, "textmill.manifest_sha256", kept)
        assert done.returncode == 3, done.stderr
        assert f"{NAME} version 2 is not promoted: refused. Nothing was moved." in done.stdout
        assert "manifest.json: the manifest differs from the registered one" in done.stdout
    assert aliases(crowned) == {"champion": "1", "challenger": "3"}
    assert [event["outcome"] for event in events(crowned)] == ["refused", "refused"]


def test_what_cannot_be_promoted_is_told(crowned: Layout) -> None:
    for address, said in (
        ("1", "version 1 is the champion already"),
        ("9", r"has no version 9. Versions: 1 @champion, 2, 3 @challenger"),
        (f"{NAME}@nobody", "has no alias nobody"),
        ("models:/other/1", "Registered models: tiny-reviews"),
        ("a/b", "not the address of a version"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            promote(address, crowned)
        assert len(str(caught.value).splitlines()) == 1
    assert aliases(crowned) == {"champion": "1", "challenger": "3"}


# -- faults ----------------------------------------------------------------------------------


def test_champion_that_changed_meanwhile_is_stale(crowned: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    from textmill.registry.promotion import promotion

    judged = promotion._run_gate

    def meanwhile(*arguments: Any) -> Any:
        found = judged(*arguments)
        store(crowned).set_registered_model_alias(NAME, "champion", "3")
        return found

    monkeypatch.setattr(promotion, "_run_gate", meanwhile)
    done = promote("2", crowned)
    assert done.event.outcome == "stale champion"
    assert done.event.words == "compared with version 1, but the champion is now version 3"
    assert aliases(crowned) == {"champion": "3", "challenger": "3"}
    assert [event["outcome"] for event in events(crowned)] == ["stale champion"]
    assert stored_decision(crowned, "2")["outcome"] == "stale champion"
    assert store(crowned).get_model_version(NAME, "2").tags["textmill.outcome"] == "stale champion"


def stored_decision(layout: Layout, number: str) -> dict[str, Any]:
    """`decision.json` that the tags of a version name."""
    import mlflow

    address = store(layout).get_model_version(NAME, number).tags["textmill.decision"]
    return dict(read_json(Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{address}/decision.json"))))


TWO = """
import sys
from pathlib import Path
from textmill.config.layout import Layout
from textmill.registry.promotion import promotion
judged = promotion._run_gate
def together(*arguments):
    found = judged(*arguments)
    print("ready", flush=True)
    sys.stdin.readline()
    return found
promotion._run_gate = together
print(promotion.promote(sys.argv[2], Layout(Path(sys.argv[1]))).event.outcome)
"""


def promote_at_once(layout: Layout, numbers: list[str], env: dict[str, str]) -> list[str]:
    """Processes that have all judged before the first may move; their outcomes, sorted."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(layout.root), number],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        for number in numbers
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return sorted(process.communicate(timeout=120)[0].strip() for process in processes)


def environment(**more: str) -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | more


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [["2", "2"], ["1", "2"]])
def test_of_two_promotions_at_once_exactly_one_moves(layout: Layout, numbers: list[str]) -> None:
    assert promote_at_once(layout, numbers, environment()) == ["moved", "stale champion"]
    found = events(layout)
    moved = next(event for event in found if event["outcome"] == "moved")
    assert aliases(layout)["champion"] == moved["version"]
    assert "previous" not in aliases(layout)
    left = store(layout).get_registered_model(NAME).tags
    assert not [key for key in left if "claim" in key or "intent" in key]


@pytest.mark.slow
def test_works_through_a_server(layout: Layout, tmp_path: Path) -> None:
    with mlflow_server(tmp_path / "server") as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", address)
        patch.setattr("textmill.registry.versions.versions.check_in_fresh_process", lambda *_: None)
        from support.tiny_registry import another_card

        register_export(layout)
        another_card(layout.exported / "model")
        register_export(layout)
        assert [str(version.version) for version in list_versions(layout)] == ["2", "1"]
        both = promote_at_once(layout, ["1", "2"], environment(MLFLOW_TRACKING_URI=address))
        assert both == ["moved", "stale champion"]
        first = aliases(layout)["champion"]
        other = "1" if first == "2" else "2"
        done = textmill("promote", other, cwd=layout.root, env={"MLFLOW_TRACKING_URI": address})
        assert done.returncode == 0, done.stdout + done.stderr
        done = textmill("rollback", "--reason", "x", "--json", cwd=layout.root, env={"MLFLOW_TRACKING_URI": address})
        assert json.loads(done.stdout)["version"] == first
        assert aliases(layout)["champion"] == first
        assert len(events(layout)) == 4
    (layout.state / "models").rename(layout.state / "gone")
    started = time.monotonic()
    for command in (["promote", "1"], ["rollback", "--reason", "x"], ["history"]):
        done = textmill(*command, cwd=layout.root, env={"MLFLOW_TRACKING_URI": address})
        assert done.returncode == 1
        assert "the tracking server does not answer" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert time.monotonic() - started < 60


def previous_folder(layout: Layout, number: str) -> Path:
    from textmill.registry.versions.versions import fetch_folder

    return fetch_folder(store(layout).get_model_version(NAME, number), layout)


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["changed", "pickle", "manifest"])
def test_tampered_previous_is_refused_and_named(crowned: Layout, harm: str) -> None:
    store(crowned).set_registered_model_alias(NAME, "previous", "2")
    folder = previous_folder(crowned, "2")
    graph, extra, manifest = folder / "model.int8.onnx", folder / "weights.pkl", folder / "manifest.json"
    kept, listed = graph.read_bytes(), manifest.read_bytes()
    try:
        if harm == "pickle":
            extra.write_bytes(b"x")
        else:
            graph.write_bytes(kept + b"x")
        if harm == "manifest":  # someone who knows how digests are checked
            from textmill.predicting.exported import write_manifest

            write_manifest(folder)
        done = textmill("rollback", "--reason", "x", cwd=crowned.root)
    finally:
        graph.write_bytes(kept)
        manifest.write_bytes(listed)
        extra.unlink(missing_ok=True)
    assert done.returncode == 3, done.stderr
    named = {"changed": "model.int8.onnx", "pickle": "weights.pkl", "manifest": "manifest.json"}[harm]
    assert named in done.stdout
    assert aliases(crowned) == {"champion": "1", "previous": "2", "challenger": "3"}
    assert events(crowned)[0]["outcome"] == "refused"
    assert named in events(crowned)[0]["words"]


def test_rolling_back_twice_goes_back_two_steps(layout: Layout) -> None:
    for number in ("1", "2"):
        assert promote(number, layout).event.outcome == "moved"
    write_gate(layout, **{**GATE, "difference": {"margin": 5.0}, "slices": {"columns": [], "margin": 5.0}})
    assert promote("3", layout).event.outcome == "moved"
    assert aliases(layout) == {"champion": "3", "previous": "2"}
    rollback(None, layout, reason="one")
    assert aliases(layout) == {"champion": "2", "previous": "1"}
    rollback(None, layout, reason="two")
    assert aliases(layout) == {"champion": "1"}


def test_rollback_skips_deleted_versions(layout: Layout) -> None:
    """The champion deleted, or a link of the chain: the latest champion that exists comes back."""
    write_gate(layout, **{**GATE, "difference": {"margin": 5.0}, "slices": {"columns": [], "margin": 5.0}})
    for number in ("1", "2", "3"):
        assert promote(number, layout).event.outcome == "moved"
    client = store(layout)
    client.delete_model_version(NAME, "2")
    told = textmill("rollback", "--reason", "a broken link", cwd=layout.root)
    assert told.returncode == 0, told.stderr
    assert aliases(layout) == {"champion": "1"}
    assert promote("3", layout).event.outcome == "moved"
    client.delete_model_version(NAME, "3")
    shown = textmill("history", cwd=layout.root).stdout
    assert "The last champion, version 3, was deleted. `textmill rollback` restores the one before it." in shown
    assert rollback(None, layout, reason="the champion is gone").event.version == "1"
    assert aliases(layout) == {"champion": "1"}
    with pytest.raises(UserError, match="has no previous champion that still exists"):
        rollback(None, layout, reason="none is left")


def test_deleted_champion_does_not_open_the_gate(layout: Layout) -> None:
    """The version before it takes its place; version 3 answers the wrong way round and has no floor to fail."""
    for number in ("1", "2"):
        assert promote(number, layout).event.outcome == "moved"
    store(layout).delete_model_version(NAME, "2")
    done = promote("3", layout)
    assert done.event.outcome == "refused"
    assert done.decision["versions"]["champion"]["version"] == "1"


def test_version_of_a_deleted_run_is_promoted_and_rolled_back(layout: Layout) -> None:
    """MLflow keeps the files of a deleted run until `mlflow gc`."""
    client = store(layout)
    client.delete_run(client.get_model_version(NAME, "1").run_id)
    assert promote("1", layout).event.outcome == "moved"
    assert stored_decision(layout, "1")["outcome"] == "moved"
    assert promote("2", layout).event.outcome == "moved"
    assert rollback(None, layout, reason="x").event.outcome == "moved"


def test_anchor_and_looks_are_recorded_and_shown(layout: Layout) -> None:
    wide = {**GATE, "difference": {"margin": 5.0}, "slices": {"columns": [], "margin": 5.0}}
    assert promote("1", layout).event.look is None
    assert promote("2", layout, dry_run=True).event.look == 1
    done = promote("2", layout, reason="for a reason that is long enough to be worth reading on a narrow terminal")
    assert (done.event.look, done.event.anchor) == (1, "1")
    assert promote("3", layout, dry_run=True).event.look == 2
    refused = promote("3", layout)
    assert (refused.event.outcome, refused.event.look) == ("refused", 2)
    assert refused.decision["versions"]["anchor"]["version"] == "1"
    assert {"difference", "anchor"} <= {
        check["name"] for check in refused.decision["checks"] if check["status"] == "fail"
    }
    digest = done.event.evaluation_set
    assert digest is not None
    told = textmill("history", cwd=layout.root, env={"COLUMNS": "80"}).stdout
    assert "The anchor is version 1." in told
    assert f"Looks at the evaluation set {digest[:12]}: 2." in told
    table = told.partition(f"  {NAME}:")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert "narrow" in told
    store(layout).delete_model_version(NAME, "1")
    write_gate(layout, **wide)
    later = promote("3", layout)
    assert (later.event.outcome, later.event.anchor) == ("moved", "2")


def test_tampered_anchor_is_refused_and_named(layout: Layout) -> None:
    for number in ("1", "2"):
        assert promote(number, layout).event.outcome == "moved"
    store(layout).set_model_version_tag(NAME, "1", "textmill.manifest_sha256", "0" * 64)
    done = promote("3", layout)
    assert (done.event.outcome, done.event.verdict) == ("refused", None)
    assert "manifest.json: the manifest differs from the registered one" in done.event.words


def test_unknown_model_is_named_with_the_existing_ones(crowned: Layout) -> None:
    for command in (("history", "nobody"), ("rollback", "--model", "nobody", "--reason", "x")):
        done = textmill(*command, cwd=crowned.root)
        assert done.returncode == 1
        assert (
            done.stderr
            == "textmill: error: nobody: there is no such registered model. Registered models: tiny-reviews.\n"
        )


def test_alias_moved_by_hand_is_told(crowned: Layout) -> None:
    assert history(store(crowned), NAME)["moved_elsewhere"]


def test_server_that_is_down_moves_nothing(crowned: Layout) -> None:
    down = RUNTIME.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    text = crowned.resolved.read_text()
    resolved.write(crowned.resolved, resolved.read(crowned.resolved).model_copy(update={"runtime": down}))
    with pytest.raises(UserError, match="does not answer"):
        promote("2", crowned)
    crowned.resolved.write_text(text)
    assert aliases(crowned) == {"champion": "1", "challenger": "3"}
