"""A benchmark that is ended ends the servers that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, time
from bench import end_by_exception
from bench.llm_serving import free_port, process
end_by_exception()
port = free_port()
code = "import http.server, os, sys; print(os.getpid(), file=open(sys.argv[1], 'w')); " \\
    "http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[2]), bind='127.0.0.1')"
with process([sys.executable, "-c", code, sys.argv[1], str(port)], port, "/"):
    print("up", flush=True)
    time.sleep(60)
"""


def test_sigterm_ends_a_benchmark_and_its_server(repository_root: Path, tmp_path: Path) -> None:
    paths = os.pathsep.join([str(repository_root), *filter(None, sys.path)])
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "pid")]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    ) as running:
        assert running.stdout is not None and running.stdout.readline() == b"up\n"
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 128 + signal.SIGTERM
    server = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{server}").exists()
