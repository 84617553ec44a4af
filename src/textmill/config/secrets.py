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
    r"(^|[-_])pass$|password|passwd|passphrase|passcode|pwd|secret|token$|credential|bearer|cookie|authorization|"
    r"(^|[-_])(auth|pat|pin|pw|otp|jwt|sig|signature)$|(^|[-_])sas([-_]|$)|"
    r"((api|access|account|private|shared|secret|subscription|encryption)[-_]?|^)key$|connection_?string",
    re.IGNORECASE,
)
_HARMLESS = re.compile(r"(^|_)(pad|unk|bos|eos|cls|sep|mask|end|start|special)_token$")
_HARMLESS_OPTION = re.compile(
    r"accept(_\w+)?|acl|addressing_style|anon|branch|client_email|client_id|compression|consistency|content_type|domain|"
    r"encoding|endpoint(_url)?|host(name)?|kind|location(_mode)?|mode|org|path|port|project|referer|revision|root|"
    r"scheme|server_side_encryption|signature_version|storage_class|tenant_id|(repo_)?type|user(_agent|name)?|version|"
    r"(account|container|profile|region|repo)(_name)?|(default_)?(cache_type|cache_storage|location)|(target_)?protocol",
    re.IGNORECASE,
)
"""Options of s3fs, gcsfs, adlfs, sshfs and HTTP whose texts are shown; any other text must be a reference."""
_LOGIN_BY_THE_MACHINE = ("anon", "browser", "cache", "cloud", "google_default")
"""Values of gcsfs' option `token` that name a source of the login and are none."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_OPTION = re.compile(
    r"(\w*(key|signature|password|pwd|secret|token)=\0|\w*(name|protocol|suffix|endpoint|host|server|database|port|user)=.*)",
    re.IGNORECASE,
)
"""Part of a connection string: a secret as a reference, or what is none."""
_SCHEMES = re.compile(r"(basic|bearer|digest|negotiate|token|apikey|key|[\0\s:;,=])*", re.IGNORECASE)
_KNOWN_FORMS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|"
    r"glpat-[\w-]{20,}|AKIA[A-Z0-9]{16}|xox[abprs]-[\w-]{10,}|sk-[\w-]{20,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+)"
)
_LOGIN_IS_SECRET = ("http", "https")
_MASK = "\0"  # what a reference becomes before a text is judged
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
    """Return the key of the first literal secret in a configuration's plain values, or None.

    Of the options of a file system, any text is taken for a secret that is not known to be harmless.
    """
    if isinstance(values, Mapping):
        inner = ((str(name), value) for name, value in values.items())
    elif isinstance(values, list):
        inner = ((str(number), value) for number, value in enumerate(values))
    else:
        return key if _is_literal(key, values) else None
    return next((found for name, value in inner if (found := find_literal(value, (*key, name)))), None)


def _is_literal(key: Key, value: Any) -> bool:
    names = [part for part in key if not part.isdigit()] or [""]
    is_option = STORAGE_OPTIONS in names
    options = names[names.index(STORAGE_OPTIONS) :] if is_option else names[-1:]
    named = any(map(_names_secret, options))
    if not isinstance(value, str):
        return is_option and named and isinstance(value, int | float) and not isinstance(value, bool)
    text = _REFERENCE.sub(_MASK, value)
    if _KNOWN_FORMS.search(text) or any(part.strip(_MASK) for part in literal_secrets(text)):
        return True
    if _MASK in text and (_ADDRESS.match(text) or all(map(_OPTION.fullmatch, re.split(r"[;\s]+", text.strip("; "))))):
        return False  # an address, whose parts were judged above, or a list of options
    if is_option and options[-1] == "token" and text in _LOGIN_BY_THE_MACHINE:
        return False
    unknown = is_option and not _HARMLESS_OPTION.fullmatch(options[-1].replace("-", "_"))
    return (named or unknown) and not _SCHEMES.fullmatch(text)


def _names_secret(name: str) -> bool:
    return bool(_SECRET_NAME.search(name)) and not _HARMLESS.search(name)


def literal_secrets(text: str) -> Iterator[str]:
    """Yield the secrets in the addresses of a text: passwords, and tokens in the query or among `NAME=value;`."""
    for found in re.finditer(r"(?:\b([A-Za-z][A-Za-z0-9+.-]*):|^\s*)//((?:(?!://)[^\n])+)", text):
        scheme, rest = (found[1] or "").lower(), found[2]
        login = split_login(rest)[0]
        user, colon, password = login.partition(":")
        if colon and password and not password[0].isspace():
            yield password
        elif user and not colon and scheme in _LOGIN_IS_SECRET and not re.search(r"\s", user):
            yield user
        for parameter in re.split(r"[?&#;]", rest.split()[0])[1:]:
            name, _, value = parameter.partition("=")
            if value and (_SECRET_NAME.search(unquote(name)) or name == "code"):  # `code`: functions of Azure
                yield value
    if ";" in text:
        for name, value in re.findall(r"(?:^|;)\s*(\w+)\s*=\s*([^;]+)", text):
            if _SECRET_NAME.search(name):
                yield value


def split_login(rest: str) -> tuple[str, str]:
    """Split what follows `://` into login (empty without one) and the rest; the login may contain any character.

    An `@` in a path belongs to the path if no `:` stands before it, or if it begins a part of the path after a port.
    `host:80/a@b` is taken for the login `host:80/a`: a password shown is worse than an `@` to be written `%40`.
    """
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        login, _, host = authority.rpartition("@")
        return login, host + rest[len(authority) :]
    _, colon, port = authority.partition(":")
    login, at, host = rest.rpartition("@")
    if colon and at and authority[0] != "[" and not (port.isdigit() and not re.search("[^/]@", rest)):
        return login, host
    return "", rest


def without_login(address: str) -> tuple[str, str, str]:
    """Return an address without its login, the user and the password, both decoded."""
    scheme, separator, rest = address.partition("://")
    login, rest = split_login(rest)
    user, _, password = login.partition(":")
    return f"{scheme}{separator}{rest}", unquote(user), unquote(password)
