"""Random requests to a real server: every answer has a status below 500, comes in time, and is one line if an error."""

from __future__ import annotations

import http.client
import json
import os
import re
import time
from collections import Counter
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.core import NotSet

from support.http_client import ask
from support.serving import Server

SECONDS = 30  # without an answer for so long a request hangs


class Client:
    """One kept connection; counts the statuses of its answers."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        self.statuses: Counter[int] = Counter()
        self.slowest = 0.0

    def send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> None:
        started = time.monotonic()
        try:
            self.connection.request(method, path, body, headers)
            answer = self.connection.getresponse()
            content = answer.read()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self.connection.close()
            self.statuses[0] += 1
            return
        self.slowest = max(self.slowest, time.monotonic() - started)
        self.statuses[answer.status] += 1
        assert answer.status < 500, (method, path, body, headers, content)
        if answer.status >= 400 and method != "HEAD":
            assert list(json.loads(content)) == ["error"] and len(json.loads(content)["error"]) <= 300


def fuzzed(count: int) -> Any:
    """Settings: the same cases in each CI run, others in each run of `make fuzz`; a failure is not made smaller."""
    return settings(
        max_examples=count,
        derandomize="TEXTMILL_NIGHTLY" not in os.environ,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def check_server(server: Server, client: Client, expected: int) -> None:
    """The server answers as before, and nothing in its log is an error."""
    assert client.statuses.total() >= 0.9 * expected
    assert client.statuses[0] < 0.01 * expected, client.statuses
    assert server.metric("textmill_queue_rows") == 0
    log = server.log.read_text()
    assert "Traceback" not in log, log[-3000:]


def send_requests_of_schema(server: Server, client: Client, count: int) -> None:
    """Send what schemathesis derives from the server's own OpenAPI document: valid requests, then as many others."""
    document = ask(server.port, "GET", "/openapi.json").json()
    document.pop("security", None)
    found = [operation.ok() for operation in schemathesis.openapi.from_dict(document).get_all_operations()]
    posts = [operation for operation in found if operation.method.upper() == "POST"]

    def send(case: Any) -> None:
        body = None if isinstance(case.body, NotSet) else case.body
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {name: re.sub(r"[^\x20-\x7e]", "?", str(value)) for name, value in (case.headers or {}).items()}
        headers.setdefault("Content-Type", case.media_type or "application/json")
        client.send(case.method, case.formatted_path, content, headers)

    for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
        cases = st.one_of([operation.as_strategy(generation_mode=mode) for operation in posts])
        fuzzed(count // 2)(given(cases)(send))()
    for operation in found:  # without a parameter each of the others has one case
        client.send(operation.method.upper(), operation.path, None, {})
    assert client.statuses[422] + client.statuses[400] > 0
