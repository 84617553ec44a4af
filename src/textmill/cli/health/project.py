"""Check what lies in the project: outputs, DVC's cache, leftovers of killed stages."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.cli.health.finding import Finding, Health
from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.files import read_optional

if TYPE_CHECKING:
    from mlflow import MlflowClient

_OLD_DAYS = 30


def check_outputs(layout: Layout) -> Health:
    """Look for each output of `dvc.lock` in the folder."""
    outputs, problem = _locked(layout)
    if problem:
        return Health("outputs", problem.what, [problem])
    findings = []
    for output in outputs:
        path = layout.root / output["path"]
        if path.is_symlink() and not path.exists():
            what = f"{output['path']} is a link to {path.readlink()}, which does not exist"
        elif not path.exists():
            what = f"{output['path']} of the stage {output['stage']} is missing"
        else:
            continue
        remedy = (
            f"Run `dvc checkout --force {output['path']}`, or `dvc repro {output['stage']}` if the cache has lost it"
        )
        findings.append(Finding(what, remedy, _dvc(layout, "checkout", "--force", output["path"])))
    return Health("outputs", f"{len(outputs)} outputs of dvc.lock", findings)


def check_cache(layout: Layout) -> Health:
    """Read every object of DVC's cache that `dvc.lock` names, and compare its MD5."""
    from textmill.registry.lineage.dvc_cache import Cache

    outputs, _ = _locked(layout)
    try:
        cache = Cache.of(layout.root)
    except UserError as error:
        return Health("cache", "none", [Finding(error.what, f"Run `dvc init` in {layout.root}")])
    findings = []
    for output in outputs:
        try:
            problem = cache.problem(output)
        except (OSError, ValueError) as error:
            problem = f"{output['path']} cannot be read from the cache ({error})", False
        if problem is None:
            continue
        what, missing = problem
        again = f"`dvc repro --force {output['stage']}`"
        if missing:
            path = layout.root / output["path"]
            fetch = "`dvc fetch`, or " if cache.has_remote else ""
            commit = _dvc(layout, "commit", "--force", output["stage"]) if _is_as_locked(path, output) else None
            findings.append(Finding(what, f"Run {fetch}{again}, or `dvc commit {output['stage']}`", commit))
        else:
            remedy = f"Run `dvc checkout` or {again}: DVC deletes a damaged object when it checks it"
            findings.append(Finding(what, remedy, _drop_damaged(layout, cache, output)))
    return Health("cache", f"{cache.folder}, {len(outputs)} outputs as recorded", findings)


def check_leftovers(layout: Layout, client: MlflowClient | None) -> Health:
    """Look for partial outputs of stages that ended, and for checkpoints that no training will use."""
    findings = []
    working = stages_at_work(layout)
    partial = [path for path in (layout.root / "data").glob(".*.partial-*") if not working]
    if partial:
        what = f"{len(partial)} partial outputs of killed stages, such as {partial[0]} ({_size(partial)})"
        findings.append(Finding(what, f"Delete {layout.root / 'data'}/.*.partial-*", _delete(partial)))
    unfinished = [folder for folder in layout.checkpoints.glob("*") if folder.is_dir() and not working]
    useless = [folder for folder in unfinished if _is_over(folder, client)]
    if useless:
        what = f"{len(useless)} folders of checkpoints whose training has ended ({_size(useless)})"
        findings.append(Finding(what, f"Delete {', '.join(map(str, useless[:3]))}", _delete(useless)))
    old = [folder for folder in unfinished if folder not in useless and _age_days(folder) > _OLD_DAYS]
    if old:
        what = f"{len(old)} unfinished trainings of over {_OLD_DAYS} days ago ({_size(old)})"
        findings.append(Finding(what, f"Run `dvc repro` with their settings, or delete {old[0]}"))
    kept = len(unfinished) - len(useless)
    others = "to delete" if findings else "none"
    return Health("leftovers", f"{kept} unfinished trainings that can continue" if kept else others, findings)


def stages_at_work(layout: Layout) -> list[int]:
    """Return the processes that run a stage of this project."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command = " ".join(process.info["cmdline"] or [])
        cwd = process.info["cwd"]
        if "textmill.stages." in command and cwd and Path(cwd).is_relative_to(layout.root):
            found.append(process.pid)
    return found


def _locked(layout: Layout) -> tuple[list[dict[str, Any]], Finding | None]:
    """Return the outputs of `dvc.lock`, each with its stage, or why it cannot be read."""
    import yaml

    lock = layout.root / "dvc.lock"
    if not lock.is_file():
        return [], None
    try:
        stages = (yaml.safe_load(lock.read_text(encoding="utf-8")) or {})["stages"]
        outputs = [{**out, "stage": name} for name, stage in stages.items() for out in stage.get("outs", [])]
        return [output for output in outputs if output["md5"] and output["path"]], None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())[:120]
        return [], Finding(f"dvc.lock cannot be read ({line})", "Run `git checkout dvc.lock`, then `dvc repro`")


def _is_as_locked(path: Path, output: dict[str, Any]) -> bool:
    """Return whether the folder has the output as `dvc.lock` records it, so that the cache can take it back."""
    from textmill.registry.lineage.dvc_cache import file_md5, folder_md5

    if path.is_dir():
        files = [(one.relative_to(path).as_posix(), file_md5(one)) for one in path.rglob("*") if one.is_file()]
        return bool(folder_md5(files) == output["md5"])
    return path.is_file() and file_md5(path) == output["md5"]


def _drop_damaged(layout: Layout, cache: Any, output: dict[str, Any]) -> Any:
    """Return the repair of a damaged object: delete it, and restore it from the folder where that is whole."""
    from textmill.registry.lineage.dvc_cache import file_md5

    def repair() -> None:
        listing = cache.object(str(output["md5"]))
        damaged = [listing] if f"{file_md5(listing)}.dir" != str(output["md5"]) and listing.suffix == ".dir" else []
        if not damaged:
            objects = {digest: cache.object(digest) for digest in (cache.entries(output) or {}).values()}
            damaged = [file for digest, file in objects.items() if file.is_file() and file_md5(file) != digest]
        path = layout.root / output["path"]
        for file in damaged:
            file.unlink()
        if not _is_as_locked(path, output):
            raise UserError(
                f"deleted it; {output['path']} is not whole either", fix=f"Run `dvc repro {output['stage']}`"
            )
        _dvc(layout, "commit", "--force", output["stage"])()

    return repair


def _is_over(folder: Path, client: MlflowClient | None) -> bool:
    """Return whether a folder has no checkpoint, or its run has ended well or was deleted."""
    from textmill.registry.runs.store import find_active_run

    if not list(folder.glob("step-*.json")):
        return time.time() - folder.stat().st_mtime > 60
    run_id = read_optional(folder / "run.json").get("run_id")
    if client is None or run_id is None:
        return False
    run = find_active_run(client, str(run_id))
    return run is None or run.info.status == "FINISHED"


def _dvc(layout: Layout, *arguments: str) -> Any:
    def run() -> None:
        done = subprocess.run(["dvc", *arguments, "--quiet"], cwd=layout.root, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["dvc failed"]
            raise UserError(lines[0].removeprefix("ERROR: ")[:200])

    return run


def _delete(paths: list[Path]) -> Any:
    def run() -> None:
        for path in paths:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return run


def _size(paths: list[Path]) -> str:
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def _age_days(folder: Path) -> float:
    return (time.time() - max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))) / 86400
