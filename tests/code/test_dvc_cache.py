"""DVC's cache as Textmill reads it, in a real repository with a remote."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from textmill.errors import UserError
from textmill.files import sha256_folder
from textmill.registry.lineage.dvc_cache import Cache, file_md5, folder_md5, share_cache


def dvc(root: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "--quiet", *arguments], cwd=root, check=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a folder and a file in its cache and in a remote; other tests get copies of it."""
    root = tmp_path_factory.mktemp("dvc") / "project"
    for name, text in {"data/a.txt": "a", "data/deep/b.txt": "b", "data/deep.txt": "c", "one.txt": "one"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    dvc(root, "init", "--no-scm")
    dvc(root, "remote", "add", "--default", "store", "../store")
    dvc(root, "add", "data", "one.txt")
    dvc(root, "push")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "project"


@pytest.fixture
def cache(root: Path) -> Cache:
    return Cache.of(root)


def output(root: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((root / f"{name}.dvc").read_text())["outs"][0]
    return found


def test_cache_is_found(root: Path, cache: Cache) -> None:
    assert cache.root == root
    assert cache.folder == root / ".dvc/cache/files/md5"
    assert cache.has_remote
    assert cache.object("abcdef") == cache.folder / "ab" / "cdef"
    dvc(root, "remote", "remove", "store")
    assert not Cache.of(root).has_remote


def test_folder_without_repository_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no DVC repository") as caught:
        Cache.of(tmp_path)
    assert caught.value.where == str(tmp_path)


def test_outputs_are_listed_and_read(root: Path, cache: Cache) -> None:
    data, one = output(root, "data"), output(root, "one.txt")
    assert cache.entries(one) == {"": file_md5(root / "one.txt")}
    listed = {name: file_md5(root / "data" / name) for name in ("a.txt", "deep/b.txt", "deep.txt")}
    assert cache.entries(data) == listed
    assert folder_md5(listed.items()) == data["md5"]
    assert folder_md5(reversed(list(listed.items()))) == data["md5"]
    assert cache.sha256_of_folder(data) == sha256_folder(root / "data")
    assert cache.sha256_of_folder(data, "deep") == sha256_folder(root / "data/deep")
    found = cache.file_in(data, "deep/b.txt")
    assert found is not None
    assert found.read_text() == "b"
    assert cache.file_in(one, "") == cache.object(one["md5"])
    assert cache.file_in(data, "missing.txt") is None
    assert cache.problem(data) is None
    assert cache.problem(one) is None


def harm(file: Path) -> None:
    file.chmod(0o644)
    file.write_text("other")


def test_changed_objects_are_named(root: Path, cache: Cache) -> None:
    data, one = output(root, "data"), output(root, "one.txt")
    file = cache.file_in(data, "deep/b.txt")
    assert file is not None
    assert not cache.is_damaged(data["md5"])
    assert not cache.is_damaged(one["md5"])
    harm(file)
    assert cache.problem(data) == (f"data/deep/b.txt was changed in the cache ({file})", False)
    file.unlink()
    assert not cache.is_damaged(file.parent.name + file.name), "missing is not damaged"
    assert cache.problem(data) == ("data/deep/b.txt is not in the cache", True)
    assert cache.file_in(data, "deep/b.txt") is None
    assert cache.sha256_of_folder(data) is None
    harm(cache.object(one["md5"]))
    assert cache.problem(one) == (f"one.txt was changed in the cache ({cache.object(one['md5'])})", False)
    harm(cache.object(data["md5"]))
    assert cache.problem(data) == ("data: its file list was changed in the cache", False)
    cache.object(data["md5"]).unlink()
    assert cache.problem(data) == ("data is not in the cache", True)
    assert cache.entries(data) is None
    assert cache.file_in(data, "a.txt") is None
    assert cache.sha256_of_folder(data, "deep") is None


def test_missing_and_damaged_objects_are_fetched(root: Path, cache: Cache) -> None:
    data, one = output(root, "data"), output(root, "one.txt")
    digests = [data["md5"], *(cache.entries(data) or {}).values(), one["md5"]]
    harm(cache.object(digests[1]))
    cache.object(digests[2]).unlink()
    cache.object(digests[-1]).unlink()
    cache.fetch([*digests, digests[-1]])
    assert cache.problem(data) is None
    assert cache.problem(one) is None
    cache.fetch(digests)


def test_remote_that_lacks_or_fails_is_told(root: Path, cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    one = output(root, "one.txt")["md5"]
    level = logging.getLogger("dvc").level
    for folder in (cache.folder, root.parent / "store/files/md5"):
        (folder / one[:2] / one[2:]).unlink()
    with pytest.raises(UserError, match=r"^the DVC remote does not have them\.$"):
        cache.fetch([one])
    assert caplog.records == [], "one line, not DVC's list too"
    dvc(root, "remote", "modify", "store", "url", "ssh://nobody@localhost:1/nowhere")
    # The error is that dvc-ssh is missing, or one of ssh itself
    with pytest.raises(UserError, match=r"^the DVC remote fails \((?!None)[^X\n]{5,200}\)\.$"):
        cache.fetch([one])
    assert logging.getLogger("dvc").level == level


def test_checkout_uses_cache_and_remotes_of_the_project(root: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "elsewhere/checkout"
    checkout.mkdir(parents=True)
    dvc(checkout, "init", "--no-scm")
    dvc(root, "config", "core.checksum_jobs", "3")
    dvc(root, "config", "cache.type", "copy")
    share_cache(root, checkout)
    assert Cache.of(checkout).folder == Cache.of(root).folder
    from dvc.repo import Repo

    with Repo(str(checkout)) as repo:
        assert Path(repo.config["remote"]["store"]["url"]) == root.parent / "store"
        assert repo.config["core"]["remote"] == "store"
        assert repo.config["core"]["checksum_jobs"] == 3
        assert repo.config["cache"]["type"] == ["copy"]
    assert "store" not in (checkout / ".dvc/config").read_text(), "the commit's own configuration stays"
