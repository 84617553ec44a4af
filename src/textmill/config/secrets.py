"""Secrets of a configuration: references to environment variables, resolved only where a secret is used.

A secret is written `${secret:NAME}`, alone or inside an address. The reference is what the resolved
configuration, `dvc.lock`, MLflow and every record of an origin contain. A literal secret is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

from omegaconf import Node, OmegaConf

from textmill.errors import UserError, hide

Key = tuple[str, ...]

STORAGE_OPTIONS = "storage_options"
_REFERENCE = re.compile(r"\$\{(?:secret|oc\.env):\s*([A-Za-z_][A-Za-z0-9_]*)\s*(?:,[^}]*)?\}")
_SECRET_NAME = re.compile(
    r"(^|[-_])pass$|password|passwd|passphrase|pwd|secret|token$|credential|bearer|cookie|authorization|^auth$|"
    r"(^|[-_])sas([-_]|$)|"
    r"(^|[-_])(sig|signature)$|((api|access|account|private|shared|secret|encryption)[-_]?|^)key$|connection_?string",
    re.IGNORECASE,
)
_HARMLESS = re.compile(r"(^|_)(pad|unk|bos|eos|cls|sep|mask|end|start|special)_token$")
_KNOWN_FORMS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|"
    r"glpat-[\w-]{20,}|AKIA[A-Z0-9]{16}|xox[abprs]-[\w-]{10,}|sk-[\w-]{20,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+)"
)
_LOGIN_IS_SECRET = ("http", "https")
_MISSING = object()


def keep_references() -> None:
    """Let composing keep `${secret:NAME}`, and `${oc.env:NAME}` where only a secret or an address can be meant."""
    OmegaConf.register_new_resolver("secret", lambda name: f"${{secret:{name}}}", replace=True)
    OmegaConf.register_new_resolver("oc.env", _environment_value, replace=True)


def _environment_value(name: str, default: Any = _MISSING, *, _node_: Node) -> Any:
    """Return the variable's value as OmegaConf's own resolver does, or a reference where it may be a secret."""
    key = str(_node_._get_full_key(""))
    given = default is _MISSING or name in os.environ
    if given and (_SECRET_NAME.search(name) or STORAGE_OPTIONS in key or "://" in str(_node_._value())):
        return f"${{secret:{name}}}"
    if default is _MISSING and name not in os.environ:
        raise KeyError(f"Environment variable '{name}' not found")
    value = os.environ.get(name, default)
    return None if value is None else str(value)


def reveal(value: Any, where: str) -> Any:
    """Replace the references in a value, also in nested ones, by what the environment holds.

    In the login and in the query of an address a secret is percent-encoded, so that it may contain any
    character. No message shows the values from now on.

    Raises:
        UserError: A variable is not set; `where` names the setting.
    """
    if isinstance(value, Mapping):
        return {key: reveal(inner, where) for key, inner in value.items()}
    if isinstance(value, list):
        return [reveal(inner, where) for inner in value]
    if not isinstance(value, str):
        return value
    if whole := _REFERENCE.fullmatch(value):
        return _look_up(whole[1], where)

    def value_of(found: re.Match[str]) -> str:
        text = _look_up(found[1], where)
        encoded = "://" in value and ("@" in value[found.end() :] or "?" in value[: found.start()])
        return quote(text, safe="") if encoded else text

    return _REFERENCE.sub(value_of, value)


def _look_up(name: str, where: str) -> str:
    value = os.environ.get(name)
    if not value:
        fix = f"Set it where the pipeline runs: export {name}=..."
        raise UserError(f"needs the environment variable {name}, which is not set", where=where, fix=fix)
    hide(value)
    if "://" in value:
        for part in literal_secrets(value):
            hide(part)
    return value


def find_literal(values: Any, key: Key = ()) -> Key | None:
    """Return the key of the first literal secret in a configuration's plain values, or None."""
    if isinstance(values, Mapping):
        inner = ((str(name), value) for name, value in values.items())
    elif isinstance(values, list):
        inner = ((str(number), value) for number, value in enumerate(values))
    else:
        return key if isinstance(values, str) and _is_literal(key, values) else None
    return next((found for name, value in inner if (found := find_literal(value, (*key, name)))), None)


def _is_literal(key: Key, text: str) -> bool:
    name = next((part for part in reversed(key) if not part.isdigit()), "")
    named = _SECRET_NAME.search(name) and not _HARMLESS.search(name) and text.strip() and not _REFERENCE.search(text)
    parts = [part for part in literal_secrets(text) if not _REFERENCE.search(part)]
    return bool(named or parts or _KNOWN_FORMS.search(text))


def literal_secrets(text: str) -> Iterator[str]:
    """Yield the secrets in the addresses of a text: passwords, and tokens in the query."""
    for found in re.finditer(r"([A-Za-z][A-Za-z0-9+.-]*)://(\S+)", text):
        scheme, rest = found[1].lower(), found[2]
        login = split_login(rest)[0]
        user, colon, password = login.partition(":")
        if colon and password:
            yield password
        elif user and scheme in _LOGIN_IS_SECRET:
            yield user
        for parameter in re.split(r"[?&#;]", rest)[1:]:
            name, _, value = parameter.partition("=")
            if value and _SECRET_NAME.search(unquote(name)):
                yield value


def split_login(rest: str) -> tuple[str, str]:
    """Split what follows `://` into login (empty without one) and the rest; the login may contain any character.

    An `@` in the path belongs to it, unless what comes before it cannot be a host and a port.
    """
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        login, _, host = authority.rpartition("@")
        return login, host + rest[len(authority) :]
    _, colon, port = authority.partition(":")
    if colon and not port.isdigit() and not authority.startswith("[") and "@" in rest:
        login, _, host = rest.rpartition("@")
        return login, host
    return "", rest


def without_login(address: str) -> tuple[str, str, str]:
    """Return an address without its login, the user and the password, both decoded."""
    scheme, separator, rest = address.partition("://")
    login, rest = split_login(rest)
    user, _, password = login.partition(":")
    return f"{scheme}{separator}{rest}", unquote(user), unquote(password)
