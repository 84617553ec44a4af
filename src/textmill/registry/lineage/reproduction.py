"""Rebuild a version from its commit, in a temporary worktree and store, and compare it with the registered one."""

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
from typing import IO

from textmill.config import resolved
from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.files import atomic_write, read_json, sha256_folder
from textmill.processes import end_family
from textmill.registry.lineage.dvc_cache import Cache, share_cache
from textmill.registry.lineage.lineage import Origin
from textmill.registry.lineage.repository import LOCK, Repository

log = logging.getLogger("textmill")

_DATA = ("compose", "fetch", "prepare")
_TRAIN = "train"
_MEASURED = ("evaluate", "export")
_FIGURES = ("test/", "baseline/", "difference/", "export/")
_ERROR_LINES = 3
_STOP_SECONDS = 20


@dataclass(frozen=True)
class ReproducedMetric:
    """A metric of the registered version and of its reproduction, or None where that lacks it."""

    name: str
    registered: float
    reproduced: float | None


@dataclass(frozen=True)
class Reproduction:
    """The result of a reproduction.

    Attributes:
        commit: The commit that was checked out.
        ran: Stages that ran; outputs of the others came from DVC's cache.
        figures: All metrics of the run's evaluation and export.
        same_weights: Whether the trained weights are bit-identical.
    """

    commit: str
    ran: list[str]
    figures: list[ReproducedMetric]
    same_weights: bool

    def differing(self, tolerance: float) -> list[ReproducedMetric]:
        """Return the metrics that are missing or differ by more than the tolerance, an absolute value."""
        return [
            metric
            for metric in self.figures
            if metric.reproduced is None
            or not math.isclose(metric.registered, metric.reproduced, rel_tol=0, abs_tol=tolerance)
        ]


def reproduce(origin: Origin, layout: Layout, *, force: bool = False, allow_dirty: bool = False) -> Reproduction:
    """Rebuild the version from its commit: data and, without `force`, weights come from DVC's cache.

    Outputs missing in the cache are pulled from DVC's remote, or else recomputed. Evaluation and export
    always run. Everything happens in a temporary git worktree with its own store, removed in any case.
    Project, cache and registry do not change. `force` trains again; `allow_dirty` uses the commit although
    there were uncommitted changes.

    Raises:
        UserError: The commit is missing or incomplete, the run no longer exists, or a stage fails.
    """
    commit = _commit(origin, allow_dirty=allow_dirty)
    if origin.run is None:
        raise UserError(f"its run {origin.run_id} is no longer in {origin.store}", where=origin.name)
    with _worktree(origin.repository, commit) as (root, temporary):
        checkout = _Checkout(root, temporary, layout)
        if origin.lock is not None:
            atomic_write(root / LOCK, origin.lock.text)
        checkout.share_cache()
        ran = [stage for stage in _DATA if checkout.restore_or_run(stage, origin)]
        checkout.remove_tracking_uri()
        if force or not checkout.restore(_TRAIN, origin):
            checkout.run(_TRAIN)
            ran.append(_TRAIN)
        for stage in _MEASURED:
            checkout.run(stage)
        metrics = checkout.metrics()
        weights = sha256_folder(Layout(root).trained / "model")
    registered = {
        key: float(value) for key, value in sorted(origin.run.data.metrics.items()) if key.startswith(_FIGURES)
    }
    reproduced = [ReproducedMetric(name, value, metrics.get(name)) for name, value in registered.items()]
    if not reproduced:
        raise UserError("its run has no metrics to compare with", where=origin.run_id)
    return Reproduction(commit, [*ran, *_MEASURED], reproduced, weights == origin.tag("weights_sha256"))


def _commit(origin: Origin, *, allow_dirty: bool) -> str:
    commit = origin.source_commit or (origin.commit if allow_dirty else None)
    if origin.commit is None:
        raise UserError("the version was made outside git: there is no commit to check out", where=origin.name)
    if commit is None:
        fix = "Use --allow-dirty to try the commit without the changes"
        changes = f"commit {origin.commit[:12]} had uncommitted changes, and no later commit contains their dvc.lock"
        raise UserError(changes, where=origin.name, fix=fix)
    if not origin.repository.has_commit(commit):
        raise UserError(f"commit {commit[:12]} is not in this repository", where=origin.name, fix="Run `git fetch`")
    return commit


# -- the worktree ------------------------------------------------------------------------------


@contextmanager
def _worktree(repository: Repository, commit: str) -> Iterator[tuple[Path, Path]]:
    """Create a temporary checkout; yield its project folder and a temporary folder; remove both on exit."""
    temporary = Path(tempfile.mkdtemp(prefix="textmill-reproduce-"))
    interrupt = signal.getsignal(signal.SIGINT)
    checkout = temporary / "worktree"
    prefix = (repository.git("rev-parse", "--show-prefix") or "").strip()
    try:
        if repository.git("worktree", "add", "--detach", "--quiet", str(checkout), commit) is None:
            raise UserError(f"git cannot check out {commit[:12]} into a worktree", where=str(checkout))
        yield checkout / prefix, temporary
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the removal
        repository.git("worktree", "remove", "--force", str(checkout))
        shutil.rmtree(temporary, ignore_errors=True)
        repository.git("worktree", "prune")
        signal.signal(signal.SIGINT, interrupt)


@dataclass(frozen=True)
class _Checkout:
    """The checkout `root`, a `temporary` folder for store and logs, and the project itself."""

    root: Path
    temporary: Path
    project: Layout

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the stages: this interpreter, the checkout's code, temporary store and home."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_EXP", "DVC_ROOT"))
        }
        source = self.root / "src"
        paths = [str(source)] if source.is_dir() else []
        paths += [kept["PYTHONPATH"]] if kept.get("PYTHONPATH") else []
        return kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}",
            "PYTHONPATH": os.pathsep.join(paths),
            "MLFLOW_TRACKING_URI": self.store,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DVC_NO_ANALYTICS": "1",
            "TEXTMILL_HOME": str(self.temporary / "home"),
        }

    @property
    def store(self) -> str:
        """Address of the temporary store."""
        return f"sqlite:///{self.temporary / 'home' / 'mlflow.db'}"

    def share_cache(self) -> None:
        """Use the project's DVC cache, remotes and downloads."""
        share_cache(self.project.root, self.root)
        state = Layout(self.temporary / "home").state
        state.parent.mkdir(parents=True, exist_ok=True)
        if (downloads := self.project.state / "downloads").is_dir():
            state.mkdir()
            (state / downloads.name).symlink_to(downloads)

    def restore_or_run(self, stage: str, origin: Origin) -> bool:
        """Restore the outputs of a stage from cache or remote, else run it; return whether it ran."""
        if self.restore(stage, origin):
            return False
        for entry in self._entry(stage, origin).get("deps", []):
            self._copy_user_files(entry["path"])
        self.run(stage)
        return True

    def restore(self, stage: str, origin: Origin) -> bool:
        """Restore the outputs of a stage from the cache or the remote; return False if they are not there."""
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

    def remove_tracking_uri(self) -> None:
        """Remove the configured tracking store, which would override the environment's."""
        path = Layout(self.root).resolved
        content = resolved.load(path.read_text(encoding="utf-8"))
        content.setdefault("runtime", {})["tracking_uri"] = None
        atomic_write(path, resolved.dump(content))

    def run(self, stage: str) -> None:
        """Run one stage unconditionally, without adding its outputs to the cache.

        Raises:
            UserError: It fails; the error contains its last lines of output.
        """
        log.info("%s ...", stage)
        output = self.temporary / f"{stage}.log"
        with output.open("w", encoding="utf-8") as file:
            status = self._dvc("repro", "--single-item", "--force", "--no-commit", stage, output=file)
        if status:
            lines = [line for line in output.read_text(encoding="utf-8").splitlines() if line.strip()]
            errors = [line for line in lines if ": error: " in line] or lines
            raise UserError(f"the stage fails in the checkout: {' / '.join(errors[-_ERROR_LINES:])}", where=stage)

    def metrics(self) -> dict[str, float]:
        """Return the metrics that the stages logged to the temporary store."""
        import mlflow

        run_id = read_json(Layout(self.root).exported / "run.json")["run_id"]
        return dict(mlflow.MlflowClient(self.store).get_run(run_id).data.metrics)

    def _entry(self, stage: str, origin: Origin) -> Mapping[str, Sequence[Mapping[str, str]]]:
        return origin.lock.stages.get(stage, {}) if origin.lock is not None else {}

    def _copy_user_files(self, path: str) -> None:
        """Copy a user's untracked data; files known to DVC are restored as of the commit."""
        source, target = self.project.root / path, self.root / path
        if not source.is_dir() or not Repository(self.project.root).ignores(f"{path}/file"):
            return
        notes = {note.relative_to(target): note.read_bytes() for note in target.rglob("*.dvc")}
        shutil.copytree(source, target, dirs_exist_ok=True)
        for name, content in notes.items():
            (target / name).write_bytes(content)
        if tracked := [str(note.relative_to(self.root)) for note in target.rglob("*.dvc")]:
            self._dvc("fetch", *tracked)
            self._dvc("checkout", "--force", *tracked)

    def _dvc(self, *arguments: str, output: IO[str] | None = None) -> int:
        """Run DVC in the checkout and return its exit status; an exception here ends DVC too."""
        sink = subprocess.DEVNULL if output is None else output
        command = [sys.executable, "-m", "dvc", *arguments]
        # In a session of its own, so that the stage started by DVC can be ended too.
        process = subprocess.Popen(
            command, cwd=self.root, env=self.environment, stdout=sink, stderr=sink, start_new_session=True
        )
        try:
            return process.wait()
        except BaseException:
            # The stage marks its run as ended before its store is removed.
            end_family(process, _STOP_SECONDS)
            raise
