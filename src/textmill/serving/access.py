"""Access control: the bearer token, required unless the server listens on loopback only."""

from __future__ import annotations

import hmac
import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING

from textmill.errors import UserError
from textmill.serving.limits import RequestError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

TOKEN = "TEXTMILL_TOKEN"
_MIN_TOKEN_LENGTH = 16
# Probes of a container or a load balancer send no token, nor does a browser that opens a page. The page
# /docs has a field for the token and sends it with its requests.
_OPEN_PATHS = frozenset({"/health", "/ready", "/docs", "/openapi.json"})
_OPEN_FOLDER = "/docs/static/"


def read_token(file: Path | None) -> str | None:
    """Return the token in `file`, else in `$TEXTMILL_TOKEN`, else None.

    Raises:
        UserError: The token is too short, or has characters that a header cannot carry.
        OSError: The file cannot be read.
    """
    where = str(file) if file else f"${TOKEN}"
    fix = "Create one, for example with `openssl rand -hex 32`"
    try:
        token = file.read_text(encoding="ascii").strip() if file else os.environ.get(TOKEN)
    except UnicodeDecodeError as error:
        raise UserError("the token is not plain ASCII", where=where, fix=fix) from error
    if token is None:
        return None
    if len(token) < _MIN_TOKEN_LENGTH:
        raise UserError(f"the token is shorter than {_MIN_TOKEN_LENGTH} characters", where=where, fix=fix)
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError("the token has white space or is not plain ASCII", where=where, fix=fix)
    return token


def require_token(host: str, token: str | None) -> None:
    """Raise UserError if there is no token and `host` is not a loopback address."""
    if token is None and not is_loopback(host):
        raise UserError(
            "other machines can reach this address, but no token is set",
            where=f"--host {host}",
            fix=f"Use --token-file, set ${TOKEN}, or listen on 127.0.0.1",
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address; names other than localhost count as a network."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class BearerToken:
    """ASGI middleware that answers 401 to requests without the token, before reading their body.

    Probes and the documentation page, which shows nothing of the model, need no token.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on requests that are open or have the token; refuse others."""
        if scope["type"] != "http" or _is_open(scope["path"]) or self._is_authorized(scope):
            await self.app(scope, receive, send)
            return
        message = "this server requires its token: Authorization: Bearer TOKEN"
        headers = {"WWW-Authenticate": "Bearer", "Connection": "close"}
        await RequestError(401, message, headers).response()(scope, receive, send)

    def _is_authorized(self, scope: Scope) -> bool:
        headers = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(headers) == 1 and hmac.compare_digest(headers[0], self._expected)


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)
