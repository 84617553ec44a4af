"""A full disk at every place that a stage writes to: one line with the path and the space; old outputs whole."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.faults import record
from support.project import Project

from textmill.errors import UserError
from textmill.files import atomic_folder, atomic_write, folder_digests

STAGES = ["compose", "fetch", "prepare", "train", "evaluate", "export", "register"]
LINE = r"^textmill {stage}: error: (\S+): the disk is full: ([\d.,]+ MB) free, at least ([\d.,]+ MB) needed\. Free "


@contextmanager
def small_disk(folder: Path, spare: int) -> Iterator[None]:
    """Lay `folder` onto a disk of its own with `spare` bytes left."""
    size = sum(path.stat().st_size // 4096 * 4096 + 4096 for path in folder.rglob("*"))
    copy = folder.with_name(folder.name + ".copy")
    folder.rename(copy)
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size + spare + 65536}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        folder.rmdir()
        copy.rename(folder)
        pytest.skip("cannot mount a tmpfs here (needs root)")
    try:
        shutil.copytree(copy, folder, dirs_exist_ok=True)
        with (folder / "filler").open("wb", buffering=0) as filler:
            for _ in range(max(0, shutil.disk_usage(folder).free - spare) // 4096):
                filler.write(b"\0" * 4096)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def digests(folder: Path) -> dict[str, str]:
    return {path: digest for path, digest in folder_digests(folder).items() if path != "filler"}


def the_line(done: subprocess.CompletedProcess[str], stage: str) -> re.Match[str]:
    """The one line of the error, with path, free and needed space."""
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    found = re.findall(rf"^textmill {stage}: error: .*$", done.stderr, re.MULTILINE)
    assert len(found) == 1, done.stderr[-3000:]
    match = re.match(LINE.format(stage=stage), found[0])
    assert match, found[0]
    return match


@pytest.mark.slow
@pytest.mark.fault
def test_full_disk_under_the_outputs_of_each_stage_names_path_and_space(project: Project) -> None:
    data = project.root / "data"
    seen = ""
    with small_disk(data, 0):
        before = digests(data)
        for stage in STAGES:
            done = project.run("python", "-m", f"textmill.stages.{stage}", check=False)
            match = the_line(done, stage)
            assert match[1].startswith(str(data)), match[0]
            assert digests(data) == before
            assert not list(data.glob(".*partial*"))
            seen = match[0]
    record(
        "5 Disk full: outputs of the seven stages",
        seen=f"`{re.sub(r' /[^:]*/data', ' data', seen)}…`",
        kept="all earlier outputs, byte for byte; no partial folder",
        measured=f"{len(STAGES)} of {len(STAGES)} stages name the path and the space",
    )


@pytest.mark.slow
@pytest.mark.fault
def test_full_disk_under_the_checkpoints_names_path_and_space(project: Project) -> None:
    """With room for the best weights, and with room for hardly anything."""
    folder = project.root / ".dvc/tmp/textmill/checkpoints"
    trained = folder_digests(project.root / "data/trained")
    folder.mkdir(parents=True, exist_ok=True)
    overrides = ["train.max_epochs=50", "train.checkpoint_seconds=0.01"]
    for spare, file in ((150_000, ".partial.ckpt"), (30_000, "parts.json")):
        with small_disk(folder, spare):
            done = project.run("python", "-m", "textmill.stages.train", *overrides, check=False)
            match = the_line(done, "train")
            assert re.fullmatch(rf"{folder}/\w+/{file}", match[1]), match[0]
            assert not list(folder.rglob(file))
    assert folder_digests(project.root / "data/trained") == trained
    record(
        "5 Disk full: checkpoints",
        seen=f"`{re.sub(r' /[^:]*/(?=[^/]*: the disk)', ' …/checkpoints/…/', match[0])}…`",
        kept="earlier checkpoints and outputs; the partial file is deleted",
        measured="2 of 2 files named, with the space",
    )


@pytest.mark.slow
@pytest.mark.fault
def test_full_cache_of_dvc_names_path_and_space_and_the_output_can_be_committed(project: Project) -> None:
    cache = project.root / ".dvc/cache"
    project.edit("conf/experiment/tiny.yaml", "resamples: 100", "resamples: 120")
    with small_disk(cache, 40_000):  # enough for `compose`, not for the report
        done = project.run("dvc", "repro", "evaluate", check=False)
        match = the_line(done, "evaluate")
        assert match[1] == str(cache)
        assert "run `dvc commit --force evaluate`" in done.stderr
        assert (project.root / "data/evaluation/report.html").is_file()
        (cache / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=100m", str(cache)], check=True)
        project.run("dvc", "commit", "--force", "evaluate")
        assert "evaluate" not in project.run("dvc", "status").stdout
    record(
        "5 Disk full: the cache of DVC on another disk",
        seen=f"`{re.sub(r' /[^:]*/[.]dvc', ' .dvc', match[0])}…`",
        kept="the output of the stage, complete; `dvc commit` takes it once space is free",
        measured="1 of 1 named before DVC copies",
    )


@pytest.mark.slow
@pytest.mark.fault
def test_full_folder_of_temporary_files_stops_no_stage(project: Project, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    with small_disk(tmp_path / "tmp", 0):
        for stage in STAGES if os.environ.get("TEXTMILL_NIGHTLY") else ("prepare", "train"):
            project.run("python", "-m", f"textmill.stages.{stage}", env={"TMPDIR": str(tmp_path / "tmp")})
    record(
        "5 Disk full: `$TMPDIR`",
        seen="nothing: Python takes the next temporary folder",
        kept="everything",
        measured="every stage tried ended well",
    )


def test_written_file_and_folder_name_themselves_and_leave_the_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    target = tmp_path / "disk" / "out"
    with small_disk(tmp_path / "disk", 300_000):
        with atomic_folder(target) as folder:
            (folder / "earlier").write_text("whole")
        said = pytest.raises(
            UserError, match=rf"^{target}: the disk is full: [\d.]+ MB free, at least [\d.]+ MB needed"
        )
        with said, atomic_folder(target) as folder:
            for number in range(100):
                atomic_write(folder / f"{number}.txt", b"x" * 10_000)
        assert (target / "earlier").read_text() == "whole"
        with pytest.raises(UserError, match=rf"^{target}/big: .* at least 0.5 MB needed. Free at least 0\.\d MB there"):
            atomic_write(target / "big", b"x" * 500_000)
        assert sorted(path.name for path in target.iterdir()) == ["earlier"]
        assert sorted(path.name for path in target.parent.iterdir()) == ["filler", "out"]
