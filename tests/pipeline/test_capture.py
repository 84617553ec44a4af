"""`textmill serve --capture`: requests, answers and feedback on disk, and as a corpus; full folders, other bodies."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.http_client import Answer, ask
from support.serving import Server, served
from support.tiny_export import RUNTIME, build_evaluated_project, export_config

from textmill.errors import UserError
from textmill.fetching.sources.captured import CapturedSource
from textmill.serving.capture import Capture, load_mask
from textmill.serving.loading import FolderSource, load_model
from textmill.serving.metrics import ServingMetrics
from textmill.serving.settings import ServeSettings
from textmill.stages import export

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = build_evaluated_project(tmp_path_factory.mktemp("capture") / "project")
    export.main(export_config(), RUNTIME, layout)
    return layout.exported / "model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("captured") / "own"


@pytest.fixture(scope="module")
def server(model: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with served(model.parent, log, str(model), "--capture", str(folder), "--capture-share", "0.5") as running:
        yield running


def post(server: Server, path: str, content: Any) -> Answer:
    return ask(server.port, "POST", path, json.dumps(content).encode(), {"Content-Type": "application/json"})


def written(folder: Path, name: str) -> list[dict[str, Any]]:
    return [row for path in folder.glob(f"{name}/*/*.parquet") for row in pq.read_table(path).to_pylist()]


def until_written(folder: Path, name: str, rows: int) -> list[dict[str, Any]]:
    end = time.monotonic() + 60
    while len(found := written(folder, name)) < rows:
        assert time.monotonic() < end, f"{len(found)} of {rows} rows of {name}"
        time.sleep(0.2)
    return found


def test_capture_writes_a_share_masked_and_whatever_gets_feedback(server: Server, folder: Path, tmp_path: Path) -> None:
    identifiers = []
    for number in range(60):
        text = f"great film {number}, write to ada@example.com or 4111 1111 1111 1111"
        answer = post(server, "/predict", {"inputs": [text, f"awful plot {number}"]})
        identifiers.append(answer.headers["x-textmill-request"])
    assert len(set(identifiers)) == 60
    for identifier in identifiers[:20]:
        done = post(server, "/feedback", {"request": identifier, "position": 1, "answer": "bad"})
        assert done.status == 202, done.body
    corrected = post(server, "/feedback", {"request": identifiers[0], "position": 1, "answer": "good"})
    assert corrected.status == 202

    until_written(folder, "feedback", 21)
    rows = written(folder, "requests")
    captured = {row["request"] for row in rows}
    assert captured >= set(identifiers[:20]), "feedback captures its request"
    assert 5 <= len(captured - set(identifiers[:20])) <= 35, "half of the other 40, by chance"
    assert len(rows) == 2 * len(captured)
    first = next(row for row in rows if row["request"] == identifiers[0] and row["position"] == 0)
    assert first["text"] == "great film 0, write to [email] or [card]"
    assert {"label", "probabilities"} <= json.loads(first["answer"]).keys()
    assert b"example.com" not in b"".join(path.read_bytes() for path in folder.rglob("*.parquet"))
    assert server.metric('textmill_captured_rows_total{what="requests"}') == len(rows)

    source = CapturedSource.build({"_target_": f"{CapturedSource.__module__}.CapturedSource", "folder": str(folder)})
    provenance = source.fetch(tmp_path, tmp_path)
    corpus = [json.loads(line) for line in (tmp_path / "all/captured.jsonl").read_text().splitlines()]
    assert {row["text"]: row["label"] for row in corpus} == {
        f"awful plot {number}": "good" if number == 0 else "bad" for number in range(20)
    }
    assert provenance.made is not None and provenance.made.startswith("20 inputs to ")
    assert corpus == sorted(corpus, key=lambda row: row["time"])


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ({"request": "0" * 24, "answer": "bad"}, 404),
        ({"request": "../../etc/passwd", "answer": "bad"}, 404),
        ({"answer": "bad"}, 422),
        ({"request": 5, "answer": "bad"}, 422),
        ({"request": "0", "answer": "bad", "position": -1}, 422),
        ({"request": "0", "answer": "bad", "position": True}, 422),
        ({"request": "0", "answer": " "}, 422),
        ({"request": "0", "answer": None}, 422),
        ({"request": "0", "answer": "bad", "user": "ada"}, 422),
        ({"request": "0", "answer": "b" * 20_001}, 422),
        ([], 422),
    ],
)
def test_feedback_of_another_form_or_to_an_unknown_request_is_refused(
    server: Server, content: Any, status: int
) -> None:
    refused = post(server, "/feedback", content)
    assert refused.status == status
    assert list(refused.json()) == ["error"]


def test_feedback_that_is_no_label_of_the_model_is_refused_and_names_the_option(server: Server, folder: Path) -> None:
    identifier = post(server, "/predict", {"input": "great"}).headers["x-textmill-request"]
    for answer in ("nonsense", 7, {"label": "bad"}, ["bad"], True, "n" * 9000):
        refused = post(server, "/feedback", {"request": identifier, "answer": answer})
        assert refused.status == 422 and "\n" not in refused.json()["error"], answer
    unknown = post(server, "/feedback", {"request": identifier, "answer": "nonsense"}).json()["error"]
    option = "the server's option --new-labels allows others"
    assert unknown == f"the answer 'nonsense' is none of the labels bad, good; {option}"
    body = b'{"request": "%s", "answer": 1e400}' % identifier.encode()
    infinite = ask(server.port, "POST", "/feedback", body, {"Content-Type": "application/json"})
    assert (infinite.status, infinite.json()["error"]) == (422, "the answer has a number that is not finite")
    assert post(server, "/feedback", {"request": identifier, "answer": " bad "}).status == 202


def test_feedback_beyond_the_inputs_of_a_request_is_refused(server: Server) -> None:
    identifier = post(server, "/predict", {"input": "great"}).headers["x-textmill-request"]
    assert post(server, "/feedback", {"request": identifier, "position": 1, "answer": "bad"}).status == 404


def test_feedback_after_a_restart_finds_the_request_on_disk(model: Path, tmp_path: Path) -> None:
    arguments = (str(model), "--capture", str(tmp_path / "own"), "--capture-share", "1", "--capture-max-mb", "1")
    arguments += ("--new-labels",)
    with served(model.parent, tmp_path / "log", *arguments) as first:
        identifier = post(first, "/predict", {"input": "great"}).headers["x-textmill-request"]
    assert len(written(tmp_path / "own", "requests")) == 1, "the end of the server writes what waits"
    filler = tmp_path / "own/requests/2999-01-01/filler.parquet"
    with served(model.parent, tmp_path / "again", *arguments) as second:
        assert post(second, "/feedback", {"request": identifier, "answer": "neutral"}).status == 202
        until_written(tmp_path / "own", "feedback", 1)
        filler.parent.mkdir()
        filler.write_bytes(b"\0" * (2 << 20))
        post(second, "/predict", {"input": "great"})
        second.until("is full; nothing more is written")
        assert post(second, "/predict", {"input": "great"}).status == 200
        assert post(second, "/feedback", {"request": identifier, "answer": "bad"}).status == 507
        assert second.metric('textmill_captured_rows_total{what="dropped"}') >= 1
    assert len(written_without(filler, "requests")) == 1


def test_feedback_to_a_full_folder_is_refused_from_the_start(model: Path, tmp_path: Path) -> None:
    filler = tmp_path / "own/requests/2999-01-01/filler.parquet"
    filler.parent.mkdir(parents=True)
    filler.write_bytes(b"\0" * (2 << 20))
    arguments = (str(model), "--capture", str(tmp_path / "own"), "--capture-max-mb", "1")
    with served(model.parent, tmp_path / "log", *arguments) as full:
        identifier = post(full, "/predict", {"input": "great"}).headers["x-textmill-request"]
        assert post(full, "/feedback", {"request": identifier, "answer": "bad"}).status == 507
        filler.unlink()
        time.sleep(1.1)
        assert post(full, "/feedback", {"request": identifier, "answer": "bad"}).status == 202


def test_failing_mask_drops_its_rows_alone_and_clean_up_touches_only_its_own(model: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    kept = [own / "requests/1999-archive/a.parquet", own / "requests/1999-01-01/notes.txt", own / "requests/0/b"]
    old = own / "requests/1999-01-02/120000-0123456789ab.parquet"
    for path in (*kept, old):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    settings = ServeSettings(capture=own, capture_share=1, capture_mask="support.failing_mask:mask")
    metrics = ServingMetrics()
    capture = Capture(own, settings, metrics)
    assert all(path.exists() for path in kept) and not old.parent.exists()
    (own / "feedback").rmdir()  # the clean-up then fails
    loaded = load_model(FolderSource(model).fetch(""), "auto", 256)
    capture.take(loaded, ["fine", "do fail", "good"], [{"label": "bad"}] * 3)
    capture.close()
    assert sorted(
        row["text"]
        for row in [row for path in own.glob("requests/2*/*.parquet") for row in pq.read_table(path).to_pylist()]
    ) == ["fine", "good"]
    assert 'textmill_captured_rows_total{what="dropped"} 1.0' in metrics.page().decode()


def written_without(filler: Path, name: str) -> list[dict[str, Any]]:
    folder = filler.parents[2]
    filler.unlink()
    return written(folder, name)


def test_a_server_without_capture_takes_no_feedback(model: Path, tmp_path: Path) -> None:
    with served(model.parent, tmp_path / "log", str(model)) as plain:
        answer = post(plain, "/predict", {"input": "great"})
        assert "x-textmill-request" not in answer.headers
        assert post(plain, "/feedback", {"request": "0", "answer": "bad"}).status == 404
        assert "/feedback" not in ask(plain.port, "GET", "/openapi.json").json()["paths"]


def test_captured_source_without_feedback_and_unknown_masks_are_refused(tmp_path: Path) -> None:
    source = CapturedSource.build({"_target_": f"{CapturedSource.__module__}.CapturedSource", "folder": "none"})
    with pytest.raises(UserError, match="no feedback yet"):
        source.fetch(tmp_path / "out", tmp_path)
    assert load_mask("none")("ada@example.com") == "ada@example.com"
    assert load_mask("textwrap:dedent")("  x") == "x"
    for name in ("emial", "no_such_module:mask", "textwrap:no_such"):
        with pytest.raises(UserError, match="--capture-mask"):
            load_mask(name)
