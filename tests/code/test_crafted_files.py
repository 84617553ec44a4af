"""Files crafted by an attacker: archives, pickles, YAML, templates and model folders, each told in one line."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import resource
import shutil
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from textmill.config import plugins, resolved
from textmill.config.compose import compose
from textmill.config.layout import Layout
from textmill.config.sections.fetch import FetchConfig
from textmill.errors import UserError
from textmill.fetching.pretrained import fetch_pretrained
from textmill.fetching.sources.archives import open_archive
from textmill.fetching.sources.parallel import ParallelSource
from textmill.files import read_json
from textmill.predicting.exported import read_specification, verify, write_manifest
from textmill.predicting.loading import load_predictor
from textmill.text import chat


class Ran:
    """A pickle that leaves a mark when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def one_line(problem: pytest.ExceptionInfo[UserError]) -> str:
    text = str(problem.value)
    assert "\n" not in text
    return text


# -- archives --------------------------------------------------------------------------------------


def write_tar(path: Path, *members: tarfile.TarInfo, content: bytes = b"planted") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))
    return path


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize("name", ["../../evil.txt", "/tmp/evil.txt", "a/../../evil.txt", "..", "/", "a\\..\\evil.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archive_member_stays_in_the_folder(tmp_path: Path, name: str, kind: str) -> None:
    if kind == "zip":
        path = tmp_path / "x.zip"
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr(zipfile.ZipInfo(name), "planted")
    else:
        path = write_tar(tmp_path / "x.tar.gz", tar_member(name))
    folder = tmp_path / "deep/down/folder"
    before = {each for each in tmp_path.rglob("*") if not each.is_relative_to(tmp_path / "deep")}
    with open_archive(path) as archive:
        try:
            archive.extract(archive.names, folder)
        except UserError as error:
            assert "\n" not in str(error)
    assert {each for each in tmp_path.rglob("*") if not each.is_relative_to(folder.parents[1])} == before
    assert all(each.is_file() for each in folder.iterdir())


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_archive_has_only_files(tmp_path: Path, kind: bytes) -> None:
    path = write_tar(tmp_path / "x.tar.gz", tar_member("link", kind, "/etc/passwd"), tar_member("file"))
    with open_archive(path) as archive:
        assert archive.names == ["file"]
    zipped = tmp_path / "x.zip"
    with zipfile.ZipFile(zipped, "w") as file:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    with open_archive(zipped) as archive:
        archive.extract(archive.names, tmp_path / "out")
    assert not (tmp_path / "out/link").is_symlink()


def test_archive_that_links_through_its_own_folder_writes_nothing_outside(tmp_path: Path) -> None:
    members = (tar_member("out", tarfile.SYMTYPE, str(tmp_path)), tar_member("out/planted"))
    with open_archive(write_tar(tmp_path / "x.tar.gz", *members)) as archive:
        archive.extract(archive.names, tmp_path / "folder")
    assert not (tmp_path / "planted").exists()
    assert (tmp_path / "folder/planted").read_bytes() == b"planted"


def zip_bomb(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped,
        zipped.open("zeros", "w", force_zip64=True) as file,
    ):
        for _ in range(400):
            file.write(bytes(1 << 20))


def tar_bomb(path: Path) -> None:
    with tarfile.open(path, "w:gz") as tar:
        member = tar_member("zeros")
        member.size = 300 << 20
        with (path.parent / "zeros").open("wb") as file:
            file.truncate(member.size)
        with (path.parent / "zeros").open("rb") as file:
            tar.addfile(member, file)


def sparse_bomb(path: Path) -> None:
    """A gigabyte by its header; nothing follows."""
    member = tar_member("zeros")
    member.size = 1 << 40
    path.write_bytes(gzip.compress(member.tobuf() + bytes(10240)))


def many_files(path: Path) -> None:
    empty = tar_member("x").tobuf()
    with gzip.open(path, "wb", 1) as file:
        for _ in range(7):
            file.write(empty * 10_000)


@pytest.mark.parametrize("write", [zip_bomb, tar_bomb, sparse_bomb, many_files])
def test_bomb_is_refused_before_it_unpacks(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "bomb"
    write(path)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(UserError, match="bomb: unpacks to more than 256 MiB") as caught, open_archive(path):
        pass
    one_line(caught)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
    assert time.monotonic() - started < 20


def test_bomb_inside_an_archive_is_refused(tmp_path: Path) -> None:
    zip_bomb(tmp_path / "inner.zip")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as outer:
        outer.write(tmp_path / "inner.zip", "inner.zip")
    with pytest.raises(UserError, match="unpacks to more than"), open_archive(tmp_path / "outer.zip", "inner.zip"):
        pass


def test_compressed_lines_that_unpack_to_a_bomb_are_refused(tmp_path: Path) -> None:
    for name in ("a.gz", "b.gz"):
        with gzip.open(tmp_path / name, "wb") as file:
            for _ in range(257):
                file.write(b"a" * (1 << 20))
    source = ParallelSource.from_options(files={"all": {"a": "a.gz", "b": "b.gz"}})
    (tmp_path / "dvc.yaml").touch()
    with pytest.raises(UserError, match="unpacks to more than 256 MiB"):
        source.fetch(tmp_path / "out", tmp_path)


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x.tar.xz", "x.tar.bz2"])
def test_damaged_archive_is_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr("a.txt", bytes(range(256)) * 500)
    else:
        with tarfile.open(path, f"w:{name.rpartition('.')[2]}") as tar:
            member = tar_member("a.txt")
            member.size = 128_000
            tar.addfile(member, io.BytesIO(bytes(range(256)) * 500))
    content = path.read_bytes()
    damages = [content[: len(content) // 2], b"", content[:-20]]
    for place in range(0, len(content), max(1, len(content) // 25)):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        damages.append(bytes(changed))
    for damaged in damages:
        path.write_bytes(damaged)
        try:
            with open_archive(path) as archive:
                for each in archive.names:
                    archive.open(each).read()
        except UserError as error:
            assert name in str(error) and "\n" not in str(error)


# -- pickles ---------------------------------------------------------------------------------------


def weights_folder(root: Path, weights: bytes, name: str = "model.safetensors") -> Path:
    folder = root / "weights"
    folder.mkdir()
    for each in ("config.json", "tokenizer.json"):
        (folder / each).write_text("{}")
    (folder / name).write_bytes(weights)
    return folder


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.ckpt", "a.npy", "a.pkl", "a.joblib", "a.PTH", "sub/a.pickle"])
def test_pickle_in_an_exported_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder, mark = tmp_path / "model", tmp_path / "ran"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(pickle.dumps(Ran(mark)))
    write_manifest(folder)
    with pytest.raises(UserError, match="a pickle can run any code and is refused") as caught:
        verify(folder)
    one_line(caught)
    assert not mark.exists()


def test_pickle_named_safetensors_is_not_loaded(tmp_path: Path) -> None:
    from torch import nn

    from textmill.predicting.weights import read_weights

    mark = tmp_path / "ran"
    folder = weights_folder(tmp_path, pickle.dumps(Ran(mark)))
    with pytest.raises(Exception, match=r"(?i)header|safetensor"):
        read_weights(nn.Linear(1, 1), folder)
    assert not mark.exists()


# -- pretrained weights ----------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Layout:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/dvc.yaml").touch()
    return Layout(tmp_path / "project")


def fetched(project: Layout, pretrained: str, sha256: str | None = None) -> dict[str, Any]:
    source = {"_target_": "textmill.fetching.sources.files.FilesSource", "files": {"all": "x.csv"}}
    fetch_pretrained(FetchConfig(source=source, pretrained=pretrained, pretrained_sha256=sha256), project)
    return dict(read_json(project.pretrained / "provenance.json"))


def test_pinned_weights_are_checked(project: Layout) -> None:
    folder = weights_folder(project.root, b"12345678")
    found = fetched(project, "./weights")
    assert set(found["files"]) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert fetched(project, "./weights", found["sha256"]) == found
    (folder / "model.safetensors").write_bytes(b"12345679")
    with pytest.raises(UserError, match=rf"^\./weights: its files have the digest \w+, {found['sha256']} is required"):
        fetched(project, "./weights", found["sha256"])
    assert read_json(project.pretrained / "provenance.json") == found


def test_weights_of_the_hub_have_commit_and_digest(project: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's own cache: the machine of a test has no network."""
    cache, commit = project.root / "hub", "a" * 40
    place = cache / "models--owner--name"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(commit)
    (place / "snapshots").mkdir()
    weights_folder(project.root, b"12345678").rename(place / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    found = fetched(project, "owner/name")
    assert (found["version"], len(found["sha256"]), len(found["files"])) == (commit, 64, 3)
    assert fetched(project, f"owner/name@{commit}", found["sha256"])["files"] == found["files"]
    with pytest.raises(UserError, match="is required"):
        fetched(project, "owner/name", "0" * 64)


# -- YAML ------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.fixture
def layout(tmp_path: Path, repository_root: Path) -> Layout:
    shutil.copytree(repository_root / "conf", tmp_path / "conf")
    shutil.copy(repository_root / "params.yaml", tmp_path)
    return Layout(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("x: !!python/object/apply:os.system ['touch {mark}']\n", "invalid YAML"),
        ("x: !!python/object/new:pathlib.Path ['{mark}']\n", "invalid YAML"),
        (LAUGHS, "its aliases expand to over a million values"),
        ("x: &x [*x]\n", "contains itself"),
        ("x: " + "[" * 20000 + "]" * 20000 + "\n", "nested too deeply"),
    ],
    ids=["apply", "new", "laughs", "itself", "deep"],
)
@pytest.mark.parametrize("file", ["params.yaml", "conf/model/minilm.yaml"])
def test_crafted_yaml_is_one_line(layout: Layout, tmp_path: Path, file: str, content: str, words: str) -> None:
    mark = tmp_path / "ran"
    path = layout.root / file
    path.write_text(path.read_text() + "\n" + content.replace("{mark}", str(mark)))
    started = time.monotonic()
    with pytest.raises(UserError, match=words) as caught:
        compose(layout)
    one_line(caught)
    assert not mark.exists()
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("content", [LAUGHS, "- 1", "x: !!python/name:os.system", "[" * 20000, "a: &a [*a]"])
def test_crafted_configuration_of_a_run_is_one_line(content: str) -> None:
    with pytest.raises(UserError) as caught:
        resolved.load(content)
    one_line(caught)


# -- templates -------------------------------------------------------------------------------------

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('touch MARK').read() }}",
    "{{ lipsum.__globals__['os'].system('touch MARK') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ (messages|attr('__class__')).__base__.__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{{ 1 / 0 }}",
    "{{ 1 + 'a' }}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% if %}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_chat_template_cannot_leave_its_sandbox(tmp_path: Path, template: str) -> None:
    mark = tmp_path / "ran"
    messages = [{"role": "user", "content": "Hello"}]
    try:
        text = chat.render(messages, template.replace("MARK", str(mark)), {}, ask=True)
    except UserError as error:
        assert "\n" not in str(error) and "the chat template rejects" in str(error)
    else:
        assert "<class" not in text and "root:" not in text and "__builtins__" not in text
    assert not mark.exists()
    assert messages == [{"role": "user", "content": "Hello"}]


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{{ '%2000000000d' % 1 }}",
    ],
    ids=["loops", "product", "doubling", "format"],
)
def test_chat_template_without_end_is_refused(template: str) -> None:
    with pytest.raises(UserError, match="folder: the chat template needs more than 5 s or 512 MiB") as caught:
        chat.try_template(template, {}, "folder")
    one_line(caught)
    chat.try_template("{% for message in messages %}{{ message.content }}{% endfor %}", {}, "folder")


# -- a folder that names classes -------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound model folder, and a module `planted` that leaves a mark when it is imported."""
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(plugins.TRUSTED, raising=False)
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


def specify(folder: Path, **changes: Any) -> None:
    from textmill.config.sections.prepare import CleaningConfig

    content = {
        "task": {"_target_": "textmill.tasks.text_classification.TextClassification"},
        "model": {"_target_": "textmill.models.pretrained_encoder.PretrainedEncoder"},
        "state": {},
        "max_length": 8,
        "cleaning": CleaningConfig().model_dump(mode="json"),
        "outputs": [],
        "graphs": {},
        **changes,
    }
    (folder / "textmill.json").write_text(json.dumps(content))
    write_manifest(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"task": {"_target_": "planted.Task"}},
        {"model": {"_target_": "planted.Model"}},
        {"model": {"_target_": "textmill.models.architecture.X", "router": {"_target_": "planted.Router"}}},
        {"task": {"_target_": "textmill.x.X", "parts": [{"deep": {"_target_": "planted.x.Y"}}]}},
    ],
    ids=["task", "model", "router", "nested"],
)
def test_folder_imports_nothing_that_is_not_trusted(folder: Path, changes: dict[str, Any]) -> None:
    specify(folder, **changes)
    for load in (read_specification, load_predictor):
        with pytest.raises(UserError, match=r"textmill\.json: names a class of the package 'planted'") as caught:
            load(folder)
        assert "TEXTMILL_PLUGINS=planted" in one_line(caught)
    assert not (folder.parent / "ran").exists()


def test_trusted_package_is_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specify(folder, task={"_target_": "planted.Task"})
    monkeypatch.setenv(plugins.TRUSTED, "other, planted")
    assert read_specification(folder).task == {"_target_": "planted.Task"}


@pytest.mark.parametrize("content", ["", "1", "{", "[" * 100_000, "\x00", "null"])
def test_crafted_manifest_is_one_line(folder: Path, content: str) -> None:
    specify(folder)
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json: the manifest is not readable") as caught:
        load_predictor(folder)
    one_line(caught)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"task": 1}', "null"])
def test_crafted_specification_is_one_line(folder: Path, content: str) -> None:
    (folder / "textmill.json").write_text(content)
    with pytest.raises(UserError, match=r"textmill\.json: not a valid") as caught:
        read_specification(folder)
    one_line(caught)
