"""Who may ask: the bearer token, and that no server is open to a network without one."""

from __future__ import annotations

import hmac
import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING

from textmill.errors import UserError
from textmill.serving.limits import Refused

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

TOKEN = "TEXTMILL_TOKEN"
_SHORTEST_TOKEN = 16
# Probes of a container or a load balancer carry no token, nor does a browser that opens a page; that
# page has a field for it and asks with it then.
_OPEN_PATHS = frozenset({"/health", "/ready", "/docs", "/openapi.json"})
_OPEN_FOLDER = "/docs/static/"


def read_token(file: Path | None) -> str | None:
    """The token in `file`, else in `$TEXTMILL_TOKEN`, else None.

    Raises:
        UserError: It is too short to be a secret, or has characters that a header cannot carry.
        OSError: The file cannot be read.
    """
    where = str(file) if file else f"${TOKEN}"
    fix = "Make one, for example with `openssl rand -hex 32`"
    try:
        token = file.read_text(encoding="ascii").strip() if file else os.environ.get(TOKEN)
    except UnicodeDecodeError as error:
        raise UserError("the token is not plain ASCII", where=where, fix=fix) from error
    if token is None:
        return None
    if len(token) < _SHORTEST_TOKEN:
        raise UserError(f"the token is shorter than {_SHORTEST_TOKEN} characters", where=where, fix=fix)
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError("the token has white space or is not plain ASCII", where=where, fix=fix)
    return token


def require_token(host: str, token: str | None) -> None:
    """Refuse to listen on a network without a token.

    Raises:
        UserError: `host` is no loopback address and there is no token.
    """
    if token is None and not is_loopback(host):
        raise UserError(
            "reachable from other machines, and no token is set",
            where=f"--host {host}",
            fix=f"Give --token-file, or set ${TOKEN}, or listen on 127.0.0.1",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; a name other than localhost counts as a network."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class BearerToken:
    """ASGI middleware: answers 401 to requests without the token, before their body is read.

    Probes and the page of documentation, which shows nothing of the model, are open.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let what is open and those who know the token through."""
        if scope["type"] != "http" or _is_open(scope["path"]) or self._known(scope):
            await self.app(scope, receive, send)
            return
        message = "this server wants its token: Authorization: Bearer TOKEN"
        headers = {"WWW-Authenticate": "Bearer", "Connection": "close"}
        await Refused(401, message, headers).response()(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)
