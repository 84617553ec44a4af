"""Secrets of a configuration: refused as literals, kept as references, resolved where used, shown nowhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from textmill.config import resolved
from textmill.config.compose import compose
from textmill.config.layout import Layout
from textmill.config.secrets import find_literal, reveal, without_login
from textmill.errors import UserError, hide, redacted


@pytest.fixture
def layout(tmp_path: Path, repository_root: Path) -> Layout:
    shutil.copytree(repository_root / "conf", tmp_path / "conf")
    shutil.copy(repository_root / "params.yaml", tmp_path)
    return Layout(tmp_path)


def put_source(layout: Layout, **options: Any) -> None:
    source = {"_target_": "textmill.fetching.sources.files.FilesSource", "files": {"all": "x.csv"}, **options}
    content = {"fetch": {"source": source}, "prepare": {"read": {"columns": {"text": "text", "label": "label"}}}}
    (layout.conf / "data/mine.yaml").write_text(f"# @package _global_\n{yaml.safe_dump(content)}")


LITERALS = [
    {"files": {"all": "https://ann:planted@host/x.csv"}},
    {"files": {"all": "https://ann:plan@ted@host/x.csv"}},
    {"files": {"all": "https://ann:plan/ted@host/x.csv"}},
    {"files": {"all": "https://ann:planted%40@host/x.csv"}},
    {"files": {"all": "https://planted@host/x.csv"}},
    {"files": {"all": ["x.csv", "sftp://ann:planted@host/x.csv"]}},
    {"files": {"all": "https://host/x.csv?token=planted"}},
    {"files": {"all": "https://host/x.csv?a=1&X-Amz-Signature=planted"}},
    {"files": {"all": "https://host/x.csv?sv=1&sig=planted"}},
    {"files": {"all": "https://ann:${secret:USER}@host/x.csv?api_key=planted"}},
    {"files": {"all": "https://ann:12/planted@host/x.csv"}},
    {"files": {"all": "https://ann:12?planted@host/x.csv"}},
    {"files": {"all": "https://ann:planted/@host/x.csv"}},
    {"files": {"all": "https://ann:plan ted@host/x.csv"}},
    {"files": {"all": "//ann:planted@host/x.csv"}},
    {"files": {"all": "https://ann:planted${secret:PW}@host/x.csv"}},
    {"files": {"all": "https://host/x.csv?code=planted"}},
    {"files": {"all": "https://host/x.csv?pw=planted"}},
    {"licence": "AccountName=ann;AccountKey=planted;EndpointSuffix=host"},
    {"storage_options": {"connection_string": "AccountName=${secret:A};AccountKey=planted"}},
    {"storage_options": {"client_kwargs": {"cookies": {"user": "planted"}}}},
    {"storage_options": {"client_kwargs": {"auth": ["ann", "planted"]}}},
    {"storage_options": {"client_kwargs": {"headers": {"X-Auth": "planted"}}}},
    {"storage_options": {"client_kwargs": {"headers": {"X-Any-Header": "planted"}}}},
    {"storage_options": {"pat": "planted"}},
    {"storage_options": {"auth": ["ann", "planted"]}},
    {"storage_options": {"pin": 77001234}},
    {"storage_options": {"token": "planted"}},
    {"storage_options": {"secret": "planted${secret:PW}"}},
    {"storage_options": {"secret": "planted = ${secret:PW}"}},
    {"storage_options": {"anything": "planted https://${secret:PW}/x"}},
    {"storage_options": {"connection_string": "a${secret:PW};b=planted"}},
    {"storage_options": {"client_kwargs": {"headers": {"Cookie": "sid=planted; t=${secret:PW}"}}}},
    {"storage_options": {"anything": "planted"}},
    {"storage_options": {"password": "planted"}},
    {"storage_options": {"secret": "planted"}},
    {"storage_options": {"account_key": "planted"}},
    {"storage_options": {"sas_token": "planted"}},
    {"storage_options": {"connection_string": "planted"}},
    {"storage_options": {"client_kwargs": {"headers": {"Authorization": "Bearer planted"}}}},
    {"storage_options": {"client_kwargs": {"headers": {"X-Api-Key": "planted"}}}},
    {"storage_options": {"anything": "ghp_plantedplantedplantedplantedplanted"}},
    {"storage_options": {"anything": "-----BEGIN RSA PRIVATE KEY-----\nplanted"}},
]


@pytest.mark.parametrize("options", LITERALS, ids=str)
def test_literal_secret_is_refused_with_its_line(layout: Layout, options: dict[str, Any]) -> None:
    put_source(layout, **options)
    with pytest.raises(
        UserError, match=r"^conf/data/mine\.yaml:\d+: fetch\.source\.\S+ (contains|may be) a password"
    ) as caught:
        compose(layout, ["data=mine"])
    assert "${secret:NAME}" in str(caught.value)
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize("where", ["params.yaml", "command line"])
def test_literal_tracking_address_is_refused(layout: Layout, where: str) -> None:
    address = "http://ann:plan@ted@host:5000"
    if where == "params.yaml":
        layout.params.write_text(f"{layout.params.read_text()}\nruntime: {{tracking_uri: '{address}'}}\n")
    with pytest.raises(UserError, match=rf"^{where}.*: runtime.tracking_uri: contains") as caught:
        compose(layout, [] if where == "params.yaml" else [f"runtime.tracking_uri='{address}'"])
    assert "ted" not in str(caught.value)


HARMLESS = [
    {"files": {"all": "https://host:8080/a%40b/x.csv"}},
    {"files": {"all": "https://host:8080/@ann/x.csv"}},
    {"files": {"all": "https://host/a@b/x.csv?revision=@2"}},
    {"files": {"all": "hf://datasets/ann/reviews@main/x.csv"}},
    {"files": {"all": "C:\\data\\a@b.csv"}},
    {"files": {"all": "https://ann:${secret:PW}@host/x.csv?sig=${secret:SIG}"}},
    {"storage_options": {"token": "anon", "connection_string": "AccountName=ann;AccountKey=${secret:KEY}"}},
    {"storage_options": {"client_kwargs": {"headers": {"Authorization": "Bearer ${secret:T}", "User-Agent": "me"}}}},
    {"storage_options": {"config_kwargs": {"read_timeout": 5, "signature_version": "s3v4"}, "port": 22}},
    {"licence": "see http://host: a letter to ann@host; all rights reserved"},
    {"files": {"all": "s3://bucket/a@b:c.csv"}},
    {"files": {"all": "sftp://ann@host/x.csv"}},
    {"files": {"all": "https://host/x.csv?page=2&lang=en"}},
    {"files": {"all": "data/own/pass@word.csv"}},
    {"storage_options": {"anon": True, "region": "eu", "endpoint_url": "https://s3.host", "username": "ann"}},
    {"licence": "see https://host/licence#token-of-thanks"},
]


@pytest.mark.parametrize("options", HARMLESS, ids=str)
def test_address_without_a_secret_is_accepted(layout: Layout, options: dict[str, Any]) -> None:
    put_source(layout, **options)
    assert compose(layout, ["data=mine"]).fetch.source.items() >= options.items()


def test_no_shipped_configuration_is_taken_for_a_secret(layout: Layout) -> None:
    for path in (layout.conf / "experiment").glob("*.yaml"):
        assert find_literal(compose(layout, [f"experiment={path.stem}"]).model_dump(mode="json")) is None


def test_references_are_kept(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PW", "API_TOKEN", "OTHER", "PLACE"):
        monkeypatch.setenv(name, f"value-of-{name}")
    put_source(
        layout,
        files={"train": "https://ann:${secret:PW}@host/x.csv", "test": "https://host/?t=${oc.env:OTHER}"},
        storage_options={"user": "${oc.env:OTHER}", "token": "${oc.env:API_TOKEN}"},
        licence="${oc.env:PLACE}",
    )
    text = resolved.to_yaml(compose(layout, ["data=mine"]))
    assert text.count("value-of-") == 1  # the licence: an ordinary setting may come from the environment as before
    for reference in ("ann:${secret:PW}@", "?t=${secret:OTHER}", "user: ${secret:OTHER}", "token: ${secret:API_TOKEN}"):
        assert reference in text


def test_reveal_takes_any_character(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PW", "p@s/s:w#rd?&=%")
    monkeypatch.setenv("ADDRESS", "https://u:p@host/x")
    monkeypatch.setenv("HOST_PORT", "host:80")
    address = reveal("https://ann:${secret:PW}@${secret:HOST_PORT}/x", "here")
    assert without_login(address) == ("https://host:80/x", "ann", "p@s/s:w#rd?&=%")
    assert reveal({"a": ["${secret:PW}", 1], "b": "${secret:ADDRESS}"}, "here") == {
        "a": ["p@s/s:w#rd?&=%", 1],
        "b": "https://u:p@host/x",
    }
    monkeypatch.delenv("PW")
    with pytest.raises(UserError, match=r"^here: needs the environment variable PW, which is not set\. .*export PW="):
        reveal("${secret:PW}", "here")


@pytest.mark.parametrize(
    ("address", "login"),
    [
        ("http://ann:p@ss@host:5000/a", ("http://host:5000/a", "ann", "p@ss")),
        ("http://ann:p%40ss@host", ("http://host", "ann", "p@ss")),
        ("http://ann:p/s#s@host/a", ("http://host/a", "ann", "p/s#s")),
        ("http://ann:12/p@host", ("http://host", "ann", "12/p")),
        ("http://ann:12?p@host", ("http://host", "ann", "12?p")),
        ("http://host:5000/@b", ("http://host:5000/@b", "", "")),
        ("http://host/a@b", ("http://host/a@b", "", "")),
        ("http://[::1]:5000", ("http://[::1]:5000", "", "")),
        ("sqlite:////home/a@b:c/x.db", ("sqlite:////home/a@b:c/x.db", "", "")),
    ],
)
def test_login_is_split_off(address: str, login: tuple[str, str, str]) -> None:
    assert without_login(address) == login


def test_messages_show_no_login_and_no_hidden_value() -> None:
    assert redacted("error at http://ann:p@ss@host/a") == "error at http://ann:***@host/a"
    assert redacted("postgresql://ann:x@h/db, https://tok@h") == "postgresql://ann:***@h/db, https://***@h"
    assert redacted("at http://ann:12/p@host") == "at http://ann:***@host"
    assert redacted("http://host/a@b and ann:${secret:PW}@h") == "http://host/a@b and ann:${secret:PW}@h"
    hide("hidden v@lue")
    assert str(UserError("bad hidden v@lue", where="hidden%20v%40lue", fix="no")) == "***: bad ***. no."
