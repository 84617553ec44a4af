"""Repositories as people have them: odd paths, no git, a cache of links, a user without name or home, ASCII."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.faults import record, rounds
from support.project import Project, inherited_environment
from support.serving import served

pytestmark = [pytest.mark.slow, pytest.mark.fault]

ODD = "größe 100% %41 #1 '中文' ?x=1&y"
NAMELESS = ("unshare", "--user", "--map-user=12345", "--map-group=12345")


@dataclass
class Place:
    """Where and as whom the pipeline runs.

    Attributes:
        root: The project's folder.
        outside: The test's own folder, in which the project lies.
        prefix: What starts its commands, to change the user.
        environment: Changes to the environment; None removes a variable.
    """

    root: Path
    outside: Path
    prefix: tuple[str, ...] = ()
    environment: dict[str, str | None] = field(default_factory=dict)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        environment = {**inherited_environment(), **self.environment}
        kept = {name: value for name, value in environment.items() if value is not None}
        done = subprocess.run([*self.prefix, *command], cwd=self.root, env=kept, capture_output=True, timeout=900)
        assert b"Traceback" not in done.stderr, (command, done.stderr.decode(errors="replace")[-3000:])
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr.decode(errors="replace")[-3000:])
        return done


Change = Callable[[Place], None]


def odd_path(place: Place) -> None:
    target = place.root.parent / ODD / "project"
    target.parent.mkdir()
    place.root = place.root.rename(target)


def larger_repository(place: Place) -> None:
    """The project is a subfolder, and a worktree of it is used."""
    large = place.root.parent / "large"
    inside = large / "tools" / "reviews"
    inside.parent.mkdir(parents=True)
    shutil.rmtree(place.root / ".git")
    place.root.rename(inside)
    for command in (
        ("init", "--quiet", "--initial-branch=main"),
        ("add", "--all"),
        ("commit", "--quiet", "-m", "All"),
        ("worktree", "add", "--quiet", "-b", "other", str(large.parent / "another tree")),
    ):
        subprocess.run(["git", *command], cwd=large, check=True)
    tree = large.parent / "another tree" / "tools" / "reviews"
    for ignored in ("data", ".dvc/cache", ".dvc/tmp"):  # what git does not carry into a worktree
        shutil.copytree(inside / ignored, tree / ignored, symlinks=True, dirs_exist_ok=True)
    place.root = tree


def no_git(place: Place) -> None:
    shutil.rmtree(place.root / ".git")
    place.run("dvc", "config", "--local", "core.no_scm", "true")  # as `make repro` does


def shared_cache_of_links(place: Place) -> None:
    shared = place.outside / "shared cache"  # `dvc config` itself takes ASCII only
    shutil.move(place.root / ".dvc/cache", shared)
    place.run("dvc", "config", "--local", "cache.type", "symlink")
    place.run("dvc", "config", "--local", "cache.dir", str(shared))
    place.run("dvc", "checkout", "--relink")
    assert (place.root / "data/exported/model/model.onnx").is_symlink()


def nobody(place: Place) -> None:
    """A number without a name and without a home, as in many containers."""
    if not subprocess.run([*NAMELESS, "true"], capture_output=True).returncode:  # where user namespaces are allowed
        place.prefix = NAMELESS
    place.environment |= dict.fromkeys(("HOME", "USER", "LOGNAME", "USERNAME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"))


def ascii_output(place: Place) -> None:
    place.environment |= {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"}


ALONE: dict[str, tuple[Change, ...]] = {
    "a path with spaces, #, %, ? and other letters": (odd_path,),
    "a worktree of a larger repository": (larger_repository,),
    "a shared cache of symbolic links": (shared_cache_of_links,),
    "no name, no home": (nobody,),
    "ASCII output": (ascii_output,),
}
TOGETHER: dict[str, tuple[Change, ...]] = {
    "all at once, with git": (larger_repository, odd_path, shared_cache_of_links, nobody, ascii_output),
    "no git": (no_git,),
}
# One by one only at night. CI begins with the stage `register`: the others were run by the fixture.
CASES = TOGETHER | (ALONE if rounds(0, 1) else {})


@pytest.mark.parametrize("name", CASES)
def test_project_in_such_a_place_runs_from_data_to_serving(name: str, project: Project, tmp_path: Path) -> None:
    binaries = f"{Path(shutil.which('dvc') or '').parent}{os.pathsep}{os.environ['PATH']}"
    place = Place(project.root, tmp_path, environment={"PATH": binaries})
    for change in CASES[name]:
        change(place)
    if rounds(0, 1):
        place.run("dvc", "repro", "--force")
    else:
        place.run("dvc", "repro", "--force", "--single-item", "register")
    place.run("textmill", "summary")
    place.run("textmill", "promote")
    verified = json.loads(place.run("textmill", "verify", "1", "--json", check=False).stdout)
    broken = [link for link in verified["links"] if link["status"] == "broken"]
    assert not broken, broken
    assert {"artifact", "run", "dvc.lock", "data"} <= {
        link["name"] for link in verified["links"] if link["status"] == "holds"
    }, verified
    place.run("textmill", "lineage", "1")
    [answer] = json.loads(place.run("textmill", "predict", "ein schöner Film", "--json").stdout)
    assert answer["input"] == "ein schöner Film"
    place.run("textmill", "predict", "ein schöner Film", "--model", "models:/tiny-reviews@champion")
    with served(place.root, tmp_path / "log") as server:  # the champion, by its alias
        server.until("serving tiny-reviews version 1")
    assert "Traceback" not in server.log.read_text()
    beside = sorted(path.name for path in tmp_path.iterdir())
    record(
        f"13 {name}",
        seen="the pipeline and all commands as anywhere",
        kept="all outputs",
        measured=f"{'dvc repro' if rounds(0, 1) else 'register'}, summary, promote, verify, lineage, predict, serve",
        folders=len(beside),
    )


def test_dvc_without_git_says_what_to_do(project: Project) -> None:
    shutil.rmtree(project.root / ".git")
    done = project.run("textmill", "why", check=False)
    assert "core.no_scm" in done.stderr
    assert "Traceback" not in done.stderr
