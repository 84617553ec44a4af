"""`textmill serve` as a process: many at once, malformed bodies, tokens, limits, shutdown under load, memory."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.faults import record, rounds
from support.http_client import Answer, Connection, LostError, ask, load
from support.project import NEGATIVE, POSITIVE, SUBJECTS
from support.serving import Server, served
from support.tiny_export import RUNTIME, build_evaluated_project, export_config

from textmill.predicting.loading import load_predictor
from textmill.stages import export

# The exact graph: rounding could make two texts' answers equal, and one pass for the other.
EXACT = ("--precision", "fp32")
TOLERANCE = 1e-4
TEXTS = [" ".join([*SUBJECTS[: 1 + index % 9], (POSITIVE + NEGATIVE)[index % 16]]) for index in range(144)]
MALFORMED: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b"[" * 100_000, 400),
    (b'{"inputs": [NaN]}', 400),
    (b'{"input": "\\ud800"}', 400),
    (b"[]", 422),
    (b"null", 422),
    (b'{"inputs": []}', 422),
    (b'{"inputs": "great film"}', 422),
    (b'{"inputs": [""]}', 422),
    (b'{"inputs": ["great", 7]}', 422),
    (b'{"input": {"txet": "great"}}', 422),
    (b'{"input": "great", "inputs": ["great"]}', 422),
    (b'{"input": "great", "extra": 1}', 422),
    (b'{"input": "great", "input": "awful"}', 422),
    (b'{"inputs": [{"text": "great", "text": "awful"}]}', 422),
    (b'{"input": ' + b"9" * 5_000 + b"}", 400),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = build_evaluated_project(tmp_path_factory.mktemp("serving") / "project")
    export.main(export_config(), RUNTIME, layout)
    return layout.exported / "model"


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[str, dict[str, Any]]:
    predictor = load_predictor(model, "fp32")
    return {text: predictor.predict([text])[0] for text in TEXTS}


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Shared by tests that leave it as it was."""
    with served(model.parent, tmp_path_factory.mktemp("server") / "log", str(model), *EXACT) as running:
        yield running


def pages(server: Server) -> list[str]:
    """Paths of the page of documentation and of what it loads."""
    page = ask(server.port, "GET", "/docs").body.decode()
    return ["/docs", *re.findall(r'(?:src|href)="([^"]+)"', page)]


def belongs(answer: dict[str, Any], expected: dict[str, Any]) -> bool:
    return all(
        math.isclose(value, expected["probabilities"][label], abs_tol=TOLERANCE)
        for label, value in answer["probabilities"].items()
    )


def test_answers_are_those_of_predict(server: Server, expected: dict[str, dict[str, Any]]) -> None:
    several = ask(server.port, "POST", "/predict", {"inputs": TEXTS[:100]})
    assert several.status == 200
    assert len(several.json()["outputs"]) == 100
    for text, answer in zip(TEXTS, several.json()["outputs"], strict=False):
        assert belongs(answer, expected[text])
    for value in (TEXTS[3], {"text": TEXTS[3]}):
        single = ask(server.port, "POST", "/predict", {"input": value})
        assert belongs(single.json()["output"], expected[TEXTS[3]])
    long, cut = (ask(server.port, "POST", "/predict", {"input": "film " * words}).json() for words in (3000, 62))
    assert long == cut  # the model has 64 positions


@pytest.mark.parametrize(("body", "status"), MALFORMED)
def test_malformed_body_is_told_in_one_line(server: Server, body: bytes, status: int) -> None:
    answer = ask(server.port, "POST", "/predict", body)
    assert answer.status == status
    message = answer.json()["error"]
    assert 5 < len(message) <= 300
    assert "\n" not in message


def test_200_at_once_and_malformed_ones_among_them(server: Server, expected: dict[str, dict[str, Any]]) -> None:
    async def one(number: int) -> tuple[int, Answer]:
        connection = Connection(server.port)
        try:
            if number % 4 == 3:
                return number, await connection.post("/predict", MALFORMED[number % len(MALFORMED)][0])
            texts = [TEXTS[number % 144], TEXTS[(number + 7) % 144]]
            return number, await connection.post("/predict", {"inputs": texts[: 1 + number % 2]})
        finally:
            connection.close()

    async def all_at_once() -> list[tuple[int, Answer]]:
        return await asyncio.gather(*(one(number) for number in range(200)))

    answers = asyncio.run(all_at_once())
    assert len(answers) == 200
    for number, answer in answers:
        if number % 4 == 3:
            assert answer.status == MALFORMED[number % len(MALFORMED)][1]
            continue
        assert answer.status == 200, answer.body
        asked = [TEXTS[number % 144], TEXTS[(number + 7) % 144]][: 1 + number % 2]
        outputs = answer.json()["outputs"]
        assert [belongs(output, expected[text]) for text, output in zip(asked, outputs, strict=True)] == [True] * len(
            asked
        )
    assert server.metric("textmill_batch_rows_count") < server.metric("textmill_batch_rows_sum")
    assert server.metric("textmill_queue_rows") == 0
    assert server.metric('textmill_requests_total{path="/predict",status="500"}') == 0


def test_version_probes_and_documents(server: Server, model: Path) -> None:
    from textmill.files import sha256_file

    assert ask(server.port, "GET", "/health").json() == {"status": "alive"}
    assert ask(server.port, "GET", "/ready").status == 200
    version = ask(server.port, "GET", "/version").json()
    assert version["name"] == str(model)
    assert version["manifest_sha256"] == sha256_file(model / "manifest.json")
    document = ask(server.port, "GET", "/openapi.json").json()
    assert "/generate" not in document["paths"]  # this model classifies
    assert ask(server.port, "POST", "/generate", {"input": "great"}).status == 404
    predict = document["paths"]["/predict"]["post"]
    shapes = predict["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    text, record = shapes[0]["properties"]["inputs"]["items"]["anyOf"]
    assert text == {"type": "string"} and record["required"] == ["text"], "the schema is the task's own"
    for example in predict["requestBody"]["content"]["application/json"]["examples"].values():
        answer = ask(server.port, "POST", "/predict", example["value"])
        assert answer.status == 200
    shown = predict["responses"]["200"]["content"]["application/json"]["examples"]["one"]["value"]["output"]
    assert shown["label"] in ("good", "bad")
    loaded = pages(server)
    assert len(loaded) == 4
    for address in loaded:  # of this server: a browser without a network shows the page too
        assert address.startswith("/")
        assert ask(server.port, "GET", address).status == 200
    assert ask(server.port, "GET", "/nothing-here").json() == {"error": "Not Found"}
    assert ask(server.port, "GET", "/predict").status == 405


@pytest.mark.slow
def test_limits(model: Path, tmp_path: Path, server: Server) -> None:
    limits = ("--max-body-bytes", "5000", "--max-inputs", "20", "--max-characters", "1000", "--max-waiting", "25")
    with served(tmp_path, tmp_path / "log", str(model), *limits, "--workers", "1") as small:
        large = ask(small.port, "POST", "/predict", {"input": "x" * 400_000})
        assert (large.status, large.json()) == (413, {"error": "the body is larger than 5000 bytes"})
        many = ask(small.port, "POST", "/predict", {"inputs": ["great"] * 21})
        assert (many.status, many.json()) == (422, {"error": "21 inputs, more than 20"})
        exact = b'{"inputs": ["%s", "great"]}' % (b"x" * 1000)
        for body, status in ((exact.ljust(5000), 200), (exact.ljust(5001), 413)):
            assert ask(small.port, "POST", "/predict", body).status == status
        assert ask(small.port, "POST", "/predict", {"inputs": ["great"] * 20}).status == 200
        long = ask(small.port, "POST", "/predict", {"inputs": ["great", "x" * 1001]})
        assert long.status == 422
        assert long.json() == {"error": "input 2 has 1001 characters, more than 1000"}

        async def burst() -> list[Answer]:
            asked = {"inputs": ["film " * 50] * 15}
            small.process.send_signal(signal.SIGSTOP)  # so that it finds all 60 at once, however fast it is
            requests = [asyncio.create_task(Connection(small.port).post("/predict", asked)) for _ in range(60)]
            await asyncio.sleep(0.5)
            small.process.send_signal(signal.SIGCONT)
            return await asyncio.gather(*requests)

        answers = asyncio.run(burst())
        counts = Counter(answer.status for answer in answers)
        assert set(counts) == {200, 503}, counts
        assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status == 503)
        assert ask(small.port, "POST", "/predict", {"input": "great film"}).status == 200
        assert small.process.poll() is None


def test_slow_and_broken_clients_harm_nobody(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as broken:
        broken.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        with socket.create_connection(("127.0.0.1", server.port)) as nonsense:
            nonsense.sendall(b"\x16\x03\x01\x02\x00\x01\x00 nonsense\r\n\r\n")
            assert b" 400 " in nonsense.recv(1000)
        assert ask(server.port, "POST", "/predict", {"input": "great film"}).status == 200
    for _ in range(20):  # gone before the answer
        with socket.create_connection(("127.0.0.1", server.port)) as hasty:
            head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            hasty.sendall(head + b'Content-Length: 18\r\n\r\n{"input": "great"}')
    assert ask(server.port, "POST", "/predict", {"input": "great film"}).status == 200
    assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
def test_what_comes_too_slowly_is_refused_and_what_takes_too_long_at_the_end_is_told(
    model: Path, tmp_path: Path
) -> None:
    begun = b'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"input"'

    def answer(connection: socket.socket) -> tuple[bytes, dict[str, Any]]:
        """Status line and body; the server must close the connection after it."""
        received = b"".join(iter(lambda: connection.recv(4096), b""))
        head, _, body = received.partition(b"\r\n\r\n")
        assert b"connection: close" in head.lower()
        return head.partition(b"\r\n")[0], json.loads(body)

    limits = ("--receive-seconds", "3", "--drain-seconds", "1")
    with served(tmp_path, tmp_path / "log", str(model), *limits, "--json") as running:
        assert f'"address": "http://127.0.0.1:{running.port}"' in running.log.read_text()
        with socket.create_connection(("127.0.0.1", running.port), timeout=30) as slow:
            slow.sendall(begun)
            started = time.monotonic()
            while time.monotonic() < started + 2:  # byte by byte does not help, and harms nobody else
                slow.sendall(b" ")
                assert ask(running.port, "POST", "/predict", {"input": "great film"}).status == 200
                time.sleep(0.2)
            status, told = answer(slow)
        assert (status, told) == (b"HTTP/1.1 408 Request Timeout", {"error": "the body did not arrive in 3 s"})

        said = {"error": "the head did not arrive in 3 s"}
        for sent in (b"", b"POST /predict HTTP/1.1\r\nHost:"):
            with socket.create_connection(("127.0.0.1", running.port), timeout=30) as silent:
                silent.sendall(sent)
                assert answer(silent) == (b"HTTP/1.1 408 Request Timeout", said)
        with socket.create_connection(("127.0.0.1", running.port), timeout=30) as second:  # of a kept connection
            second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
            first, later = b"".join(iter(lambda: second.recv(4096), b"")).split(b"HTTP/1.1 ")[1:]
            assert first.startswith(b"200 OK")
            assert later.startswith(b"408 ")
        with socket.create_connection(("127.0.0.1", running.port), timeout=30) as endless:
            endless.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 65536)
            status, told = answer(endless)
            assert status == b"HTTP/1.1 431 Request Header Fields Too Large"
            assert told == {"error": "the head is over 65536 bytes"}

        with socket.create_connection(("127.0.0.1", running.port), timeout=30) as late:
            late.sendall(begun)
            while running.metric("textmill_requests_in_progress") < 2:  # this one and the question itself
                time.sleep(0.05)
            running.process.send_signal(signal.SIGTERM)
            status, told = answer(late)
        assert (status, told) == (
            b"HTTP/1.1 503 Service Unavailable",
            {"error": "the server is shutting down; try again"},
        )
        assert running.process.wait(20) == 0
    log = running.log.read_text()
    assert "stopped; 1 request(s) exceeded --drain-seconds" in log
    assert "Traceback" not in log


# -- tokens ----------------------------------------------------------------------------------


def test_first_page_and_its_files_are_of_this_server_and_nothing_else_may_run(server: Server) -> None:
    page = ask(server.port, "GET", "/")
    text = page.body.decode()
    assert page.status == 200 and page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy and "<style" not in text and " style=" not in text and "onclick" not in text
    files = re.findall(r'(?:src|href)="(page/[^"]+)"', text)
    files += [f"page/{name}" for name in ("chat.js", "task.js", "answers.js", "server.js")]
    for file in files:
        answer = ask(server.port, "GET", f"/{file}")
        assert answer.status == 200
        assert b"http" not in answer.body and b"//cdn" not in answer.body
        assert b"innerHTML" not in answer.body and b"insertAdjacent" not in answer.body  # a text is never markup
    for path in ("/page/", "/page/../server.py", "/page/%2e%2e/server.py", "/page/none.js"):
        assert ask(server.port, "GET", path).status == 404


@pytest.mark.slow
def test_token_is_wanted_everywhere_but_by_probes(model: Path, tmp_path: Path) -> None:
    secret = "a-long-secret-of-32-characters-ab"
    (tmp_path / "token").write_text(secret + "\n")
    with served(tmp_path, tmp_path / "log", str(model), "--token-file", "token", "--host", "0.0.0.0") as guarded:
        for wrong in ({}, {"Authorization": "Bearer no"}, {"Authorization": secret}, {"Authorization": "Bearer"}):
            for path in ("/metrics", "/version", "/docs/../metrics"):
                assert ask(guarded.port, "GET", path, headers=wrong).status == 401
            answer = ask(guarded.port, "POST", "/predict", {"input": "great"}, headers=wrong)
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        right = {"Authorization": f"Bearer {secret}"}
        assert ask(guarded.port, "POST", "/predict", {"input": "great"}, headers=right).status == 200
        assert ask(guarded.port, "GET", "/metrics", headers=right).status == 200
        assert ask(guarded.port, "GET", "/docs/static/../../metrics").status == 404
        for path in ("/", "/page/app.js", "/health", "/ready", *pages(guarded)):
            assert ask(guarded.port, "GET", path).status == 200
        described = ask(guarded.port, "GET", "/openapi.json").json()
        assert described["security"] == [{"token": []}]
        assert "examples" not in json.dumps(described)
        assert secret not in (tmp_path / "log").read_text()
        assert secret not in " ".join(psutil.Process(guarded.process.pid).cmdline())


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("--host", "0.0.0.0"), {}, "--host 0.0.0.0: other machines can reach this address, but no token is set"),
        (("--host", "::"), {}, "no token is set"),
        ((), {"TEXTMILL_TOKEN": ""}, "$TEXTMILL_TOKEN: the token is shorter than 16 characters"),
        ((), {"TEXTMILL_TOKEN": "short"}, "shorter than 16"),
        (("--token-file", "none"), {}, "none: no such file"),
        (("--host", "203.0.113.1"), {"TEXTMILL_TOKEN": "x" * 20}, "203.0.113.1:8000: cannot listen"),
        (("--precision", "int4"), {}, "int8 or fp32"),
        (("--model", "models:/a/1"), {}, "MODEL and --model are both given"),
    ],
)
def test_refuses_to_start_in_one_line(
    tmp_path: Path, model: Path, arguments: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    done = refused(tmp_path, str(model), *arguments, **environment)
    assert message in done


def refused(cwd: Path, *arguments: str, **environment: str) -> str:
    command = [str(Path(sys.executable).parent / "textmill"), "serve", *arguments]
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("textmill: error:")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return errors[0]


def test_name_without_folder_is_refused_before_the_server_listens(tmp_path: Path) -> None:
    said = refused(tmp_path, "movie-reviews")
    assert "movie-reviews: no such folder" in said and "models:/movie-reviews@champion" in said
    assert "no exported model here" in refused(tmp_path, str(tmp_path))


def test_port_in_use_is_told(server: Server, model: Path, tmp_path: Path) -> None:
    assert "Address already in use" in refused(tmp_path, str(model), "--port", str(server.port))


def test_broken_folder_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    import shutil

    assert "no exported model here" in refused(tmp_path, str(tmp_path), "--port", "0")
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    with (copy / "tokenizer.json").open("a") as file:
        file.write("\n")
    assert "tokenizer.json: the file was changed" in refused(tmp_path, str(copy), "--port", "0")
    shutil.copy(model / "tokenizer.json", copy)
    (copy / "model.safetensors").rename(copy / "model.pkl")
    assert "model.pkl: a pickle can run any code" in refused(tmp_path, str(copy), "--port", "0")


# -- under load ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_shutdown_under_load_drops_nothing(model: Path, tmp_path: Path, kind: signal.Signals) -> None:
    outcomes: Counter[str] = Counter()
    readiness: list[int] = []

    def client(number: int) -> Callable[[], Awaitable[None]]:
        kept = Connection(running.port)

        async def request() -> None:
            connection = kept if number % 2 else Connection(running.port)  # half of them connect anew each time
            try:
                answer = await connection.post("/predict", {"input": TEXTS[number]})
                outcomes[str(answer.status)] += 1
            except ConnectionRefusedError:
                outcomes["refused"] += 1
                await asyncio.sleep(0.2)
            except LostError:
                outcomes["lost"] += 1
            if connection is not kept:
                connection.close()

        return request

    async def probing() -> None:
        await asyncio.sleep(1.0)
        running.process.send_signal(kind)
        for _ in range(100):
            try:
                readiness.append((await Connection(running.port).request("GET", "/ready")).status)
            except (ConnectionRefusedError, LostError):
                return
            await asyncio.sleep(0.02)

    async def both() -> None:
        await asyncio.gather(load(3.0, 24, client), probing())

    with served(tmp_path, tmp_path / "log", str(model)) as running:
        asyncio.run(both())
        assert running.process.wait(20) == 0
    assert outcomes["lost"] == 0, outcomes
    assert outcomes["200"] > 100
    assert outcomes["refused"] > 0
    assert set(outcomes) <= {"200", "refused", "lost"}
    assert 503 in readiness
    assert "Traceback" not in running.log.read_text()
    assert "all accepted requests were answered" in running.log.read_text()


@pytest.mark.slow
def test_memory_stays_bounded(model: Path, tmp_path: Path) -> None:
    async def one(number: int) -> None:
        connection = Connection(running.port)
        for turn in range(40):
            length = 1 + (number * 7 + turn * 13) % 60
            asked = {"inputs": [" ".join(SUBJECTS * 6)[: 8 * length]] * (1 + turn % 20)}
            assert (await connection.post("/predict", asked)).status == 200
            assert (await connection.post("/predict", b'{"input": "' + b"x" * 900_000 + b'"}')).status == 422
        connection.close()

    async def wave() -> None:
        await asyncio.gather(*(one(number) for number in range(4)))

    with served(tmp_path, tmp_path / "log", str(model)) as running:
        resident = []
        for _ in range(3):
            asyncio.run(wave())
            resident.append(psutil.Process(running.process.pid).memory_info().rss / 1e6)
    assert resident[2] < resident[0] * 1.1 + 10, resident


@pytest.mark.slow
def test_mixed_load_for_seconds(server: Server, expected: dict[str, dict[str, Any]]) -> None:
    wrong: list[Any] = []
    statuses: Counter[int] = Counter()

    def client(number: int) -> Callable[[], Awaitable[None]]:
        connection = Connection(server.port)
        turn = 0

        async def request() -> None:
            nonlocal turn
            turn += 1
            if turn % 5 == 4:
                body, status = MALFORMED[(turn + number) % len(MALFORMED)]
                answer = await connection.post("/predict", body)
                if answer.status != status:
                    wrong.append((body[:40], answer))
            else:
                text = TEXTS[(number * 31 + turn) % 144]
                answer = await connection.post("/predict", {"input": text})
                if answer.status != 200 or not belongs(answer.json()["output"], expected[text]):
                    wrong.append((text, answer))
            statuses[answer.status] += 1

        return request

    started = time.monotonic()
    asyncio.run(load(5.0, 50, client))
    assert not wrong, wrong[:3]
    assert statuses[200] > 200
    assert time.monotonic() - started < 15
    assert json.loads(ask(server.port, "GET", "/ready").body)["status"] == "ready"


# -- what a web page of another site can send ---------------------------------------------------

JSON = {"Content-Type": "application/json"}


def send(port: int, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> tuple[int, bytes]:
    """Send exactly these headers; `Host` is as in any client if it is not among them."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),  # what a page may send to another site without asking it
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=a"}, 415),
        ({}, 415),
        ({"Content-Type": "text/plain; application/json"}, 415),
        ({"Content-Type": "Application/JSON; charset=utf-8"}, 200),
        ({"Host": "evil.example"}, 403),  # a name that was rebound to 127.0.0.1
        ({"Host": "evil.example:PORT"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost@evil.example"}, 403),
        ({"Host": "0.0.0.0:PORT"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "localhost:PORT"}, 200),
        ({"Host": "LOCALHOST."}, 200),
        ({"Host": "[::1]:PORT"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://127.0.0.1:PORT"}, 200),
    ],
)
def test_server_on_loopback_request_of_another_site_is_refused(
    server: Server, headers: dict[str, str], status: int
) -> None:
    given = {name: value.replace("PORT", str(server.port)) for name, value in headers.items()}
    whole = given if "Content-Type" in given or not given else {**JSON, **given}
    answer, body = send(server.port, "POST", "/predict", whole, b'{"input": "great film"}')
    assert answer == status, body
    if status != 200:
        assert list(json.loads(body)) == ["error"]
    if "Host" in headers:
        for path in ("/ready", "/version", "/metrics", "/docs", "/openapi.json"):
            assert send(server.port, "GET", path, {"Host": given["Host"]})[0] == status
        assert send(server.port, "GET", "/health", {"Host": given["Host"]})[0] == 200


@pytest.mark.slow
def test_server_behind_a_proxy_answers_to_allowed_hosts(model: Path, tmp_path: Path) -> None:
    allowed = ("--allowed-host", "models.example.org", "--allowed-host", "other.example:8443")
    with served(tmp_path, tmp_path / "log", str(model), *allowed) as running:
        for host, status in {
            "models.example.org": 200,
            "Models.Example.org:443": 200,
            "other.example:8443": 200,
            "other.example": 403,
            "evil.example": 403,
            "localhost": 200,
        }.items():
            assert send(running.port, "GET", "/version", {"Host": host})[0] == status, host
        for origin, status in {"https://models.example.org": 200, "https://evil.example": 403}.items():
            headers = {**JSON, "Origin": origin}
            assert send(running.port, "POST", "/predict", headers, b'{"input": "great"}')[0] == status, origin


def test_head_answers_as_get_without_a_body(server: Server) -> None:
    kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for path in ("/health", "/ready", "/version", "/metrics", *pages(server), "/openapi.json", "/predict", "/nothing"):
        whole = ask(server.port, "GET", path)
        kept.request("HEAD", path)  # on one connection: a body would be read as the next answer
        answer = kept.getresponse()
        assert answer.read() == b""
        assert answer.status == whole.status
        assert answer.headers["content-type"] == whole.headers["content-type"]
        if path != "/metrics":
            assert answer.headers["content-length"] == str(len(whole.body))
    kept.close()


@pytest.mark.parametrize("pieces", [1, 9])
@pytest.mark.parametrize(("size", "status"), [(65_536, 200), (65_537, 431), (100_000, 431), (2_000_000, 431)])
def test_head_over_64_kib_is_refused_however_it_arrives(server: Server, size: int, status: int, pieces: int) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "
    head += b"x" * (size - len(head) - 4) + b"\r\n\r\n"
    assert len(head) == size
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for start in range(0, size, -(-size // pieces)):
                connection.sendall(head[start : start - (-size // pieces)])
                time.sleep(0.02)
        received = connection.recv(65_536)
    assert received.startswith(b"HTTP/1.1 %d " % status)
    if status == 431:
        assert json.loads(received.partition(b"\r\n\r\n")[2]) == {"error": "the head is over 65536 bytes"}


# -- the end of a server that starts -------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.fault
def test_serve_terminated_at_any_moment_of_its_start_ends_cleanly(model: Path, tmp_path: Path) -> None:
    chooser = random.Random(os.environ.get("TEXTMILL_NIGHTLY"))
    with served(tmp_path, tmp_path / "log", str(model)) as running:
        created = psutil.Process(running.process.pid).create_time()
        start_seconds = time.time() - created
    counts: Counter[int] = Counter()
    for attempt in range(rounds(4, 20)):
        log = tmp_path / f"log-{attempt}"
        command = [str(Path(sys.executable).parent / "textmill"), "serve", "--port", "0", str(model)]
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=tmp_path, stdout=file, stderr=file)
        if attempt % 2:
            time.sleep(chooser.uniform(0, start_seconds))
        else:  # while the model is being loaded
            while b"listening" not in log.read_bytes():
                time.sleep(0.01)
            time.sleep(chooser.uniform(0, start_seconds / 2))
        process.send_signal(signal.SIGTERM)
        counts[process.wait(30)] += 1
        said = log.read_text()
        assert "terminate called" not in said and "Traceback" not in said, said
    assert set(counts) <= {0, -signal.SIGTERM}, counts
    record(
        "3 SIGTERM while a server starts",
        seen="`serve: stopped; all accepted requests were answered`, or nothing before it listens",
        kept="nothing is written at the start",
        measured=f"{counts.total()} starts: {counts[0]} ended with 0, {counts[-signal.SIGTERM]} with 143, 0 with 134",
        starts=counts.total(),
        zero=counts[0],
    )


@pytest.mark.slow
def test_serve_started_with_ignored_interrupt_does_not_react_to_it(model: Path, tmp_path: Path) -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what it starts in the background
    try:
        with served(tmp_path, tmp_path / "log", str(model)) as running:
            running.process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            assert ask(running.port, "GET", "/ready").status == 200
            running.process.terminate()
            assert running.process.wait(20) == 0
    finally:
        signal.signal(signal.SIGINT, previous)
