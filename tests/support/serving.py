"""Real `textmill serve` processes on loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.http_client import ask
from support.tiny_export import wait_for


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def metric(self, name: str) -> float:
        """The sum of a metric's series; `name` may be the beginning of a series, labels and all."""
        lines = ask(self.port, "GET", "/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def until(self, words: str, seconds: float = 60) -> None:
        """Wait until the log has some words."""
        end = time.monotonic() + seconds
        while words not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)


@contextmanager
def served(cwd: Path, log: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """A server on a free port, ready to answer; ended with SIGTERM if it still runs."""
    command = [str(Path(sys.executable).parent / "textmill"), "serve", "--port", "0", *arguments]
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=cwd, stdout=file, stderr=file, env={**inherited, **environment})
    try:
        end = time.monotonic() + 60
        while not (found := re.search(r"listening on \S+:(\d+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        port = int(found[1])
        wait_for(f"http://127.0.0.1:{port}/ready", process)
        yield Server(process, port, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
