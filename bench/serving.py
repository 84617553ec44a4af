"""`textmill serve` beside `mlflow models serve`: the same registered version, client and machine; prints Markdown.

Usage: `python -m bench.serving [--project=FOLDER] [--seconds=60]`, after `make repro`. Sentences are
those of the test split, one a request, over connections that stay open. The client runs on the same
machine and takes its share of the cores from both sides alike.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
CLIENTS = 32
CROWD = 200
GOAL = 5.0
WARM_UP_SECONDS = 3.0
MALFORMED = (b"{", b'{"inputs": []}', b'{"inputs": [""]}', b'{"inputs": [NaN]}', b"\xff")


@dataclass
class Side:
    """A kind of server: how it is started and asked."""

    name: str
    command: list[str]
    probe: str
    path: str
    body: Callable[[str], bytes]


@dataclass
class Found:
    """What a client saw."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def percentile(self, share: float) -> float:
        """In milliseconds."""
        return float(np.percentile(self.seconds, share)) * 1000 if self.seconds else float("nan")


def sides(project: Path, port: int) -> list[Side]:
    """Both servers of the registered version, and MLflow's with a process for each core."""
    binaries = Path(sys.executable).parent
    uri = json.loads((project / "data/registered/registered.json").read_text())["uri"]
    ours = [str(binaries / "textmill"), "serve", uri, "--port", str(port)]
    theirs = [str(binaries / "mlflow"), "models", "serve", "--env-manager", "local", "--model-uri", uri]
    theirs += ["--host", "127.0.0.1", "--port", str(port)]

    def records(text: str) -> bytes:
        return json.dumps({"dataframe_records": [{"text": text}]}).encode()

    cores = str(len(os.sched_getaffinity(0)))
    return [
        Side("`textmill serve`", ours, "/ready", "/predict", lambda text: json.dumps({"input": text}).encode()),
        Side("`mlflow models serve`", theirs, "/ping", "/invocations", records),
        Side(
            f"`mlflow models serve --workers {cores}`", [*theirs, "--workers", cores], "/ping", "/invocations", records
        ),
    ]


@contextmanager
def running(side: Side, project: Path, port: int) -> Iterator[None]:
    """The server, ready to answer."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            side.command, cwd=project, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            for _ in range(600):
                if server.poll() is not None:
                    log.seek(0)
                    sys.exit(log.read().decode(errors="replace"))
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}{side.probe}", timeout=5):
                        break
                except OSError:
                    time.sleep(0.2)
            yield
        finally:
            if server.poll() is None:
                os.killpg(server.pid, 15)
            server.wait(60)


def ask(side: Side, port: int, texts: list[str], clients: int, seconds: float, *, malformed: int = 0) -> Found:
    """Let clients ask one sentence after another; each `malformed`-th body is nonsense and not timed."""
    from support.http_client import Connection, LostError, load

    found = Found()

    def one(number: int) -> Callable[[], Awaitable[None]]:
        connection = Connection(port)
        turn = number * 37

        async def request() -> None:
            nonlocal turn
            turn += 1
            broken = malformed and turn % malformed == 0
            body = MALFORMED[turn % len(MALFORMED)] if broken else side.body(texts[turn % len(texts)])
            try:
                answer = await connection.post(side.path, body)
            except (LostError, ConnectionError):
                found.statuses["lost"] += 1
                return
            found.statuses[str(answer.status)] += 1
            if answer.status == 200:
                found.seconds.append(answer.seconds)

        return request

    asyncio.run(load(seconds, clients, one))
    return found


def row(side: Side, clients: int, seconds: float, found: Found) -> str:
    """A line of the table."""
    others = ", ".join(f"{count} x {status}" for status, count in sorted(found.statuses.items()) if status != "200")
    cells: list[Any] = [side.name, clients, f"{len(found.seconds) / seconds:.0f}"]
    cells += [f"{found.percentile(share):.0f}" for share in (50, 95, 99)]
    return f"| {' | '.join(map(str, [*cells, others or 'none']))} |"


def main(project: Path, seconds: float) -> None:
    """Measure and print the table."""
    from textmill.data.prepared import Prepared

    texts = Prepared(project / "data/prepared").split("test").column("text").to_pylist()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rates: dict[str, float] = {}
    lines = []
    for side in sides(project, port):
        with running(side, project, port):
            ask(side, port, texts, CLIENTS, WARM_UP_SECONDS)
            length = seconds / 3 if "--workers" in side.command else seconds
            found = ask(side, port, texts, CLIENTS, length)
            rates[side.name] = len(found.seconds) / length
            lines.append(row(side, CLIENTS, length, found))
            alone = ask(side, port, texts, 1, seconds / 6)
            lines.append(row(side, 1, seconds / 6, alone))
            if side.path == "/predict":
                crowd = ask(side, port, texts, CROWD, seconds, malformed=10)
                lines.append(row(side, CROWD, seconds, crowd))
    print(
        f"{len(texts)} test sentences, one a request; {seconds:.0f} s with {CLIENTS} clients, {seconds / 6:.0f} s with"
    )
    print(f"one, with `--workers` a third of it; with {CROWD} clients every tenth body is malformed (400 or 422).\n")
    print("| server | clients | answers/s | median ms | p95 ms | p99 ms | other outcomes |")
    print("|---|---:|---:|---:|---:|---:|---|")
    print("\n".join(lines))
    ours = next(iter(rates.values()))
    ratios = ", ".join(f"{ours / rate:.1f} times that of {name}" for name, rate in list(rates.items())[1:])
    print(f"\nThroughput with {CLIENTS} clients: {ratios} (goal: {GOAL:.0f}).")


if __name__ == "__main__":
    options = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
    main(Path(options.get("project", ROOT)).resolve(), float(options.get("seconds", 60)))
