"""A version made again from its commit, in a worktree and a store of its own, and held against the registered one."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from textmill.config import resolved
from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.files import atomic_write, read_json, sha256_folder
from textmill.processes import end_family
from textmill.registry.lineage.dvc_cache import Cache, lend_cache
from textmill.registry.lineage.lineage import Origin
from textmill.registry.lineage.repository import LOCK, Repository

log = logging.getLogger("textmill")

_DATA = ("compose", "fetch", "prepare")
_TRAIN = "train"
_MEASURED = ("evaluate", "export")
_FIGURES = ("test/", "baseline/", "difference/", "export/")
_LINES_OF_ERROR = 3
_PATIENCE_SECONDS = 20


@dataclass(frozen=True)
class Figure:
    """A metric of the version beside the same of its reproduction."""

    name: str
    registered: float
    reproduced: float | None

    def same(self, tolerance: float) -> bool:
        """Whether the two differ by no more than the tolerance, in the metric's own unit."""
        if self.reproduced is None:
            return False
        return math.isclose(self.registered, self.reproduced, rel_tol=0, abs_tol=tolerance)


@dataclass(frozen=True)
class Reproduction:
    """What came out.

    Attributes:
        commit: That was checked out.
        ran: The stages that were computed anew; the outputs of the others came from DVC's cache.
        figures: Every metric that the version's run has of its evaluation and export.
        same_weights: Whether the trained weights are the same to the bit.
    """

    commit: str
    ran: list[str]
    figures: list[Figure]
    same_weights: bool

    def differing(self, tolerance: float) -> list[Figure]:
        """The metrics that did not come out as they were."""
        return [figure for figure in self.figures if not figure.same(tolerance)]


def reproduce(origin: Origin, layout: Layout, *, force: bool = False, allow_dirty: bool = False) -> Reproduction:
    """Make the version again from its commit: its data and, without `force`, its weights from DVC's cache.

    What is not in the cache is pulled from DVC's remote, else made anew. Evaluation and export are
    always computed. Everything happens in a temporary git worktree with a store of its own, which
    are removed whatever happens; neither the project, its cache nor its registry change.

    Args:
        origin: The version.
        layout: The project.
        force: Train again, too.
        allow_dirty: Go on from the commit although there were uncommitted changes.

    Raises:
        UserError: The commit is not here or does not hold everything, the run is gone, or a stage fails.
    """
    commit = _commit(origin, allow_dirty=allow_dirty)
    if origin.run is None:
        raise UserError(f"its run {origin.run_id} is not in {origin.store} any more", where=origin.name)
    with _stopped_by_signals(), _worktree(origin.repository, commit) as (root, temporary):
        place = _Place(root, temporary, layout)
        if origin.lock is not None:
            atomic_write(root / LOCK, origin.lock.text)
        place.share_cache()
        ran = [stage for stage in _DATA if place.provide(stage, origin)]
        place.disconnect()
        if force or not place.take_from_cache(_TRAIN, origin):
            place.run(_TRAIN)
            ran.append(_TRAIN)
        for stage in _MEASURED:
            place.run(stage)
        found = place.metrics()
        weights = sha256_folder(Layout(root).trained / "model")
    registered = {
        key: float(value) for key, value in sorted(origin.run.data.metrics.items()) if key.startswith(_FIGURES)
    }
    figures = [Figure(name, value, found.get(name)) for name, value in registered.items()]
    if not figures:
        raise UserError("its run has no figures to compare with", where=origin.run_id)
    return Reproduction(commit, [*ran, *_MEASURED], figures, weights == origin.tag("weights_sha256"))


def _commit(origin: Origin, *, allow_dirty: bool) -> str:
    commit = origin.source_commit or (origin.commit if allow_dirty else None)
    if origin.commit is None:
        raise UserError("the version was made outside git, so there is nothing to check out", where=origin.name)
    if commit is None:
        fix = "Give --allow-dirty to try from the bare commit"
        changes = f"commit {origin.commit[:12]} had uncommitted changes, and no later commit has their dvc.lock"
        raise UserError(changes, where=origin.name, fix=fix)
    if not origin.repository.has_commit(commit):
        raise UserError(f"commit {commit[:12]} is not in this repository", where=origin.name, fix="Run `git fetch`")
    return commit


# -- the worktree ------------------------------------------------------------------------------


@contextmanager
def _worktree(repository: Repository, commit: str) -> Iterator[tuple[Path, Path]]:
    """The project's folder in a checkout of its own, and a temporary folder beside it; both go at the end."""
    temporary = Path(tempfile.mkdtemp(prefix="textmill-reproduce-"))
    interrupt = signal.getsignal(signal.SIGINT)
    checkout = temporary / "worktree"
    prefix = (repository.git("rev-parse", "--show-prefix") or "").strip()
    try:
        if repository.git("worktree", "add", "--detach", "--quiet", str(checkout), commit) is None:
            raise UserError(f"git cannot check {commit[:12]} out into a worktree", where=str(checkout))
        yield checkout / prefix, temporary
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it
        repository.git("worktree", "remove", "--force", str(checkout))
        shutil.rmtree(temporary, ignore_errors=True)
        repository.git("worktree", "prune")
        signal.signal(signal.SIGINT, interrupt)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM end the block by an exception, as Ctrl-C does, so that it is cleaned up after."""

    def stop(signum: int, _frame: FrameType | None) -> None:
        sys.exit(128 + signum)

    kept = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)


@dataclass(frozen=True)
class _Place:
    """The checkout `root`, a `temporary` folder for everything that outlives a stage, and the project itself."""

    root: Path
    temporary: Path
    project: Layout

    @property
    def environment(self) -> dict[str, str]:
        """For the stages: this interpreter, the checkout's code, a store and a home that are thrown away."""
        found = {
            key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_EXP", "DVC_ROOT"))
        }
        source = self.root / "src"
        paths = [str(source)] if source.is_dir() else []
        paths += [found["PYTHONPATH"]] if found.get("PYTHONPATH") else []
        return found | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{found.get('PATH', '')}",
            "PYTHONPATH": os.pathsep.join(paths),
            "MLFLOW_TRACKING_URI": self.store,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DVC_NO_ANALYTICS": "1",
            "TEXTMILL_HOME": str(self.temporary / "home"),
        }

    @property
    def store(self) -> str:
        """Address of the store that is thrown away."""
        return f"sqlite:///{self.temporary / 'home' / 'mlflow.db'}"

    def share_cache(self) -> None:
        """Let the checkout use the project's cache and remotes, and the home its downloads."""
        lend_cache(self.project.root, self.root)
        state = Layout(self.temporary / "home").state
        state.parent.mkdir(parents=True, exist_ok=True)
        if (downloads := self.project.state / "downloads").is_dir():
            state.mkdir()
            (state / downloads.name).symlink_to(downloads)

    def provide(self, stage: str, origin: Origin) -> bool:
        """Have the outputs of a stage, from cache or remote; else run it. Gives whether it ran."""
        if self.take_from_cache(stage, origin):
            return False
        for entry in self._entry(stage, origin).get("deps", []):
            self._bring_own_files(entry["path"])
        self.run(stage)
        return True

    def take_from_cache(self, stage: str, origin: Origin) -> bool:
        """Check the outputs of a stage out of the cache, pulled from the remote before if need be."""
        outputs = self._entry(stage, origin).get("outs", [])
        if not outputs:
            return False
        cache = Cache.of(self.root)
        paths = [out["path"] for out in outputs]
        if self._is_missing(cache, outputs) and not (
            cache.has_remote and self._dvc("fetch", *paths) == 0 and not self._is_missing(cache, outputs)
        ):
            return False
        return self._dvc("checkout", "--force", *paths) == 0

    @staticmethod
    def _is_missing(cache: Cache, outputs: Sequence[Mapping[str, str]]) -> bool:
        return any(cache.problem(dict(out)) for out in outputs)

    def disconnect(self) -> None:
        """Take the configured tracking store out, which would come before the environment's."""
        path = Layout(self.root).resolved
        content = resolved.load(path.read_text(encoding="utf-8"))
        content.setdefault("runtime", {})["tracking_uri"] = None
        atomic_write(path, resolved.dump(content))

    def run(self, stage: str) -> None:
        """Run one stage, whatever DVC thinks of it, and keep nothing of it in the cache.

        Raises:
            UserError: It fails; the last lines it wrote are told.
        """
        log.info("%s ...", stage)
        output = self.temporary / f"{stage}.log"
        with output.open("w", encoding="utf-8") as file:
            status = self._dvc("repro", "--single-item", "--force", "--no-commit", stage, output=file)
        if status:
            lines = [line for line in output.read_text(encoding="utf-8").splitlines() if line.strip()]
            told = [line for line in lines if ": error: " in line] or lines
            raise UserError(f"the stage fails there: {' / '.join(told[-_LINES_OF_ERROR:])}", where=stage)

    def metrics(self) -> dict[str, float]:
        """What the stages logged to the store that is thrown away."""
        import mlflow

        run_id = read_json(Layout(self.root).exported / "run.json")["run_id"]
        return dict(mlflow.MlflowClient(self.store).get_run(run_id).data.metrics)

    def _entry(self, stage: str, origin: Origin) -> Mapping[str, Sequence[Mapping[str, str]]]:
        return origin.lock.stages.get(stage, {}) if origin.lock is not None else {}

    def _bring_own_files(self, path: str) -> None:
        """A user's own files: what `dvc add` noted, in the commit or since, else as they lie in the project now."""
        source, target = self.project.root / path, self.root / path
        if not source.is_dir() or not Repository(self.project.root).ignores(f"{path}/file"):
            return
        notes = {note.relative_to(target): note.read_bytes() for note in target.rglob("*.dvc")}
        shutil.copytree(source, target, dirs_exist_ok=True)
        for name, content in notes.items():
            (target / name).write_bytes(content)
        if noted := [str(note.relative_to(self.root)) for note in target.rglob("*.dvc")]:
            self._dvc("fetch", *noted)
            self._dvc("checkout", "--force", *noted)

    def _dvc(self, *arguments: str, output: IO[str] | None = None) -> int:
        """Run DVC in the checkout; it ends with us. Gives its exit status."""
        sink = subprocess.DEVNULL if output is None else output
        command = [sys.executable, "-m", "dvc", *arguments]
        # A session of its own, so that the stage below DVC can be ended with it
        process = subprocess.Popen(
            command, cwd=self.root, env=self.environment, stdout=sink, stderr=sink, start_new_session=True
        )
        try:
            return process.wait()
        except BaseException:
            # The stage below DVC ends its run in the store first: only then may the store go
            end_family(process, _PATIENCE_SECONDS)
            raise
