"""Services that ask for a secret, and a search for secrets in everything that a run leaves."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit


@contextmanager
def guarded_files(folder: Path, user: str, password: str, token: str) -> Iterator[str]:
    """Serve a folder to who gives the login or, but for `train`, the token (as query or header); give `HOST:PORT`."""
    login = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            keys = [self.headers.get("X-Api-Key"), *parse_qs(asked.query).get("token", [])]
            if self.headers.get("Authorization") != login and (token not in keys or "train" in asked.path):
                self.send_error(401)
                return
            path = folder / asked.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def forms(secret: str, user: str | None = None) -> list[bytes]:
    """How a secret may stand in a file."""
    texts = {secret, quote(secret, safe=""), quote(secret)}
    if user:
        texts.add(base64.b64encode(f"{user}:{secret}".encode()).decode())
    return [text.encode() for text in texts]


def places(folder: Path, wanted: list[bytes]) -> list[str]:
    """The files below a folder that contain, or are named after, one of these."""
    found = []
    for path in folder.rglob("*"):
        name = path.name.encode()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        if any(each in name or each in content for each in wanted):
            found.append(str(path))
    return found
