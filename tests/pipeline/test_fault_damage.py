"""A flipped bit or a cut end in any file that one command writes and another reads: named before use."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from support.faults import record, rounds
from support.project import Project

# What a stage or a command reads, and who reads it first.
READERS = {
    "data/resolved.yaml": ["python", "-m", "textmill.stages.fetch"],
    "data/raw": ["python", "-m", "textmill.stages.prepare"],
    "data/pretrained": ["python", "-m", "textmill.stages.prepare"],
    "data/prepared": ["python", "-m", "textmill.stages.train"],
    "data/trained": ["python", "-m", "textmill.stages.evaluate"],
    "data/evaluation": ["python", "-m", "textmill.stages.export"],
    "data/exported": ["python", "-m", "textmill.stages.register"],
}


def flip(content: bytes) -> bytes:
    """One bit, anywhere."""
    place = random.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << random.randrange(8)]) + content[place + 1 :]


def cut(content: bytes) -> bytes:
    """A part of the end is missing."""
    return content[: random.randrange(len(content))]


@pytest.mark.slow
@pytest.mark.fault
def test_damaged_artefact_is_named_by_the_command_that_reads_it(project: Project) -> None:
    tried = 0
    line = ""
    for artefact, command in READERS.items():
        path = project.root / artefact
        files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
        files = [file for file in files if file.stat().st_size and file.name != "digests.json"]
        for file in random.sample(files, min(len(files), rounds(1, 1000))):
            for damage in (flip, cut):
                content, state = file.read_bytes(), file.stat()
                file.chmod(0o644)
                file.write_bytes(damage(content))
                os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # as a failing disk does it
                done = project.run(*command, check=False)
                said = f"{damage.__name__} of {file.relative_to(project.root)}: {done.stderr[-2000:]}"
                assert done.returncode == 1, said
                assert "Traceback" not in done.stderr, said
                errors = [each for each in done.stderr.splitlines() if ": error: " in each]
                assert len(errors) == 1, said
                assert str(file) in errors[0], said
                line = errors[0]
                file.write_bytes(content)
                tried += 1
    record(
        "6 Bit flip or truncation in any artifact",
        seen=f"`{line.replace(str(project.root) + os.sep, '')}`",
        kept="all other files; the command has written nothing",
        measured=f"{tried} of {tried} damages in files of {len(READERS)} artifacts were named by their reader",
    )


@pytest.mark.slow
def test_damaged_artefact_comes_back_by_the_remedy_that_the_error_names(project: Project) -> None:
    weights = project.root / "data/trained/model/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(flip(content))
    done = project.run("python", "-m", "textmill.stages.evaluate", check=False)
    assert "Delete data/trained and run `dvc checkout data/trained`" in done.stderr
    project.run("rm", "-r", "data/trained")
    project.run("dvc", "checkout", "data/trained")
    assert weights.read_bytes() == content
    assert project.repro() == []


def test_written_files_are_compared_with_their_digests(tmp_path: Path) -> None:
    from textmill.errors import UserError
    from textmill.files import require_intact, seal

    folder = tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a").write_text("a")
    require_intact(folder, "Do it again")  # an output of earlier code has no digests
    seal(folder)
    require_intact(folder, "Do it again")
    for damage, said in (
        (lambda: (folder / "deep" / "a").write_text("b"), r"deep/a: the file was changed or damaged .*Do it again"),
        (lambda: (folder / "deep" / "a").unlink(), "deep/a: the file is missing"),
        (lambda: (folder / "b").write_text(""), "out/b: the file was changed"),
        (lambda: (folder / "digests.json").write_text("{"), "digests.json: not a JSON object"),
    ):
        damage()
        with pytest.raises(UserError, match=said):
            require_intact(folder, "Do it again")
        (folder / "b").unlink(missing_ok=True)
        (folder / "deep" / "a").write_text("a")
