"""Access control: a bearer token for networks; names of the host and origins for a server on loopback."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from textmill.errors import UserError
from textmill.serving.limits import RequestError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

TOKEN = "TEXTMILL_TOKEN"
_MIN_TOKEN_LENGTH = 16
# Probes of a container or a load balancer send no token, nor does a browser that opens a page. The pages
# / and /docs have a field for the token and send it with their requests.
_OPEN_PATHS = frozenset({"/", "/health", "/ready", "/docs", "/openapi.json"})
_OPEN_FOLDERS = ("/docs/static/", "/page/")
_LIVENESS = "/health"  # says nothing of the model, and probes send any name


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


class LocalRequests:
    """ASGI middleware that answers 403 to requests which a web page of another site caused.

    A browser on this machine reaches a loopback address for any page that it shows. A page that lets its own
    name resolve to 127.0.0.1 (DNS rebinding) sends that name as `Host`; a request to another site has an
    `Origin` that is not `Host`. With a token on a network neither matters: a page does not know the token.

    Args:
        app: The application.
        names: Further names of this server, with or without a port; `*` allows any.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self.app = app
        self._names = frozenset(name.lower() for name in names)
        self._problem = lru_cache(maxsize=64)(self._find_problem)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on requests to this server by one of its names, and probes; refuse others."""
        if scope["type"] != "http" or scope["path"] == _LIVENESS:
            await self.app(scope, receive, send)
            return
        hosts = tuple(value for name, value in scope["headers"] if name == b"host")
        origins = tuple(value for name, value in scope["headers"] if name == b"origin")
        if problem := self._problem(hosts, origins):
            await RequestError(403, problem, {"Connection": "close"}).response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _find_problem(self, hosts: tuple[bytes, ...], origins: tuple[bytes, ...]) -> str | None:
        """Return why a request with these headers is refused, or None."""
        if "*" in self._names:
            return None
        host, origin = (b",".join(values).decode("latin-1").lower() for values in (hosts, origins))
        if not (self._is_own(host) or is_loopback(_hostname(host))):
            return f"this server does not answer to the name {host!r}; to allow it: --allowed-host {host or 'NAME'}"
        page = origin.rpartition("//")[2]
        if origins and page != host and not self._is_own(page):
            return f"a page of {origin!r} may not use this server, unless --allowed-host names its host"
        return None

    def _is_own(self, authority: str) -> bool:
        return authority in self._names or _hostname(authority) in self._names


def _hostname(authority: str) -> str:
    """Return the name or address of `NAME[:PORT]` without port and brackets; empty if it is malformed."""
    try:
        parts = urlsplit(f"//{authority}")
        _ = parts.port  # raises if it is not a number
    except ValueError:
        return ""
    return (parts.hostname or "").rstrip(".") if parts.netloc == authority and "@" not in authority else ""


class BearerToken:
    """ASGI middleware that answers 401 to requests without the token, before reading their body.

    Probes and the two pages, which show nothing of the model by themselves, need no token.
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
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDERS)
