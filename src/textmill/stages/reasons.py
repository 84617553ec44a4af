"""Compare the inputs of a stage with those in `dvc.lock`: why it ran last, and why it will run."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from textmill.config import differences
from textmill.config.differences import Difference
from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.files import read_optional, write_json

if TYPE_CHECKING:
    from textmill.registry.lineage.dvc_cache import Cache
    from textmill.stages.row_changes import Files

log = logging.getLogger("textmill")

COMPOSE = "compose"
_LOCK = "dvc.lock"
_RAW = "data/raw"
_RESOLVED, _CODE = "data/resolved.yaml", "data/code.yaml"
_HASHED_BYTES = 64 << 20
_IGNORED = re.compile(r"(^|/)(__pycache__|[^/]*\.egg-info)/|\.pyc$")  # as in .dvcignore
_UNKNOWN = "the old content is not in DVC's cache"
_TOLD = 3
_NOT_IN_LOCK = Difference("other", "dvc.lock", "it never ran here")
_BY_HAND = Difference("other", "command", "it was started by hand")
_NOTHING = Difference("output", "outs", "no input changed: its output was missing or changed, or --force was given")


@dataclass(frozen=True)
class Last:
    """The last run of a stage in this folder.

    Attributes:
        time: When it began, in seconds since 1970.
        reasons: In words, the most telling first.
    """

    time: float
    reasons: list[Difference]


class _Yaml12(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as DVC writes it: `off` is a text and `1e-08` a number."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith((":bool", ":float"))]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Yaml12.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(true|false)$"), list("tf"))
_NUMBER = re.compile(r"[-+]?(\d+\.\d*|\.?\d+)(e[-+]?\d+)?$|[-+]?\.inf$|\.nan$", re.IGNORECASE)
_Yaml12.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


class Lock:
    """The inputs and outputs with which each stage ran, as `dvc.lock` has them."""

    def __init__(self, root: Path) -> None:
        path = root / _LOCK
        try:
            content = yaml.load(path.read_bytes(), Loader=_Yaml12) if path.is_file() else None  # safe  # nosec B506
            self.stages: dict[str, Any] = (content or {}).get("stages") or {}
            self.outputs = {out["path"]: out for entry in self.stages.values() for out in entry.get("outs", [])}
            self.producers = {out["path"]: name for name, entry in self.stages.items() for out in entry.get("outs", [])}
        except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
            fix = "Solve its merge conflict, or restore it with `git checkout dvc.lock`"
            raise UserError("not a lock file as DVC writes it", where=str(path), fix=fix) from error

    def parameters(self, stage: str, file: str) -> dict[str, Any]:
        """The values from a file with which a stage ran."""
        return (self.stages[stage].get("params") or {}).get(file) or {}


def note(stage: str, layout: Layout, section: Mapping[str, Any]) -> None:
    """Log why a stage that begins now runs, and keep it for `textmill why`. Reads no large file.

    Args:
        stage: Its name.
        layout: The project.
        section: The stage's configuration as plain values; not used for `compose`.
    """
    lock = Lock(layout.root)
    if os.environ.get("DVC_STAGE", "").rpartition(":")[2] != stage or sys.argv[1:]:
        reasons = [_BY_HAND]
    elif stage not in lock.stages:
        reasons = [_NOT_IN_LOCK]
    else:
        digests = yaml.safe_load(layout.code.read_text(encoding="utf-8")) if layout.code.is_file() else {}
        reasons = [*_inputs(stage, lock, section, digests.get(stage), layout), *_data(stage, lock, layout)]
    reasons = reasons or [_NOTHING]
    write_json(layout.reasons / f"{stage}.json", {"time": time.time(), "reasons": [asdict(each) for each in reasons]})
    more = f"; and {len(reasons) - _TOLD} more, see `textmill why {stage}`" if len(reasons) > _TOLD else ""
    if reasons != [_BY_HAND]:
        log.info("%s: runs because %s%s", stage, "; ".join(each.text for each in reasons[:_TOLD]), more)


def last(stage: str, layout: Layout) -> Last | None:
    """Return when and why a stage last began in this folder, its data counted in rows; None when it never did."""
    record = read_optional(layout.reasons / f"{stage}.json")
    if not record:
        return None
    lock = Lock(layout.root)
    return Last(record["time"], [_counted(Difference(**each), lock, layout) for each in record["reasons"]])


def upcoming(layout: Layout) -> dict[str, list[Difference]]:
    """Return why each stage will run at the next `dvc repro`; stages that are up to date have no reason.

    `conf/` is composed and the code digested in memory; no stage runs.

    Raises:
        UserError: The configuration is wrong, or DVC cannot tell the state of the data.
    """
    from textmill.config.code import STAGES, Code
    from textmill.config.compose import compose

    sections = compose(layout).model_dump(mode="json", by_alias=True)
    code = Code(layout).stages(sections)
    lock, status = Lock(layout.root), _status(layout)
    found: dict[str, list[Difference]] = {}
    for stage in (COMPOSE, *STAGES):
        reasons = found[stage] = []
        if stage not in lock.stages:
            reasons.append(_NOT_IN_LOCK)
            continue
        digest = code[stage].digest if stage in code else None
        reasons += _inputs(stage, lock, sections.get(stage, {}), digest, layout)
        moving: dict[str, list[str]] = {}
        for dep in lock.stages[stage].get("deps", []):
            path, producer = dep["path"], lock.producers.get(dep["path"])
            if producer and found[producer]:
                moving.setdefault(producer, []).append(path)
            elif path in status.get(stage, {}).get("changed deps", {}):
                reasons.append(Difference("data", path, f"{path} changed{_rows_now(dep, lock, layout)}"))
        for producer, paths in moving.items():
            reasons.append(Difference("stage", producer, f"{producer} will run and may change {' and '.join(paths)}"))
        for path, state in status.get(stage, {}).get("changed outs", {}).items():
            words = "was modified" if state == "modified" else "is missing"
            reasons.append(Difference("output", path, f"its output {path} {words}"))
    return found


def _inputs(
    stage: str, lock: Lock, section: Mapping[str, Any], digest: str | None, layout: Layout
) -> Iterator[Difference]:
    """Parameters, functions and packages that are not as the stage's entry in the lock has them."""
    if stage == COMPOSE:
        now = yaml.safe_load(layout.params.read_text(encoding="utf-8")) or {}
        yield from differences.parameters(lock.parameters(stage, layout.params.name), now)
        return
    yield from differences.parameters(lock.parameters(stage, _RESOLVED).get(stage) or {}, section, stage)
    before = lock.parameters(stage, _CODE).get(stage)
    if before == digest:
        return
    old, new = (read_optional(layout.state / "code" / f"{each}.json") for each in (before, digest))
    if old and new:
        yield from differences.code(old, new)
    else:
        what = (
            f"the details of the earlier code ({before[:12]}) are not on this machine" if before else "none was known"
        )
        yield Difference("function", "code", f"its code changed; {what}", before, digest)


def _data(stage: str, lock: Lock, layout: Layout) -> Iterator[Difference]:
    """Data that changed since the stage's entry was written, by what the lock says of the stages before it."""
    for dep in lock.stages[stage].get("deps", []):
        path = dep["path"]
        now = lock.outputs[path]["md5"] if path in lock.outputs else _digest(layout.root / path, dep)
        if now != dep["md5"] and stage == "fetch" and _RAW in lock.outputs:
            # The user's own files are not in DVC's cache; what the stage takes of them is
            yield Difference("data", _RAW, f"{path} changed", lock.outputs[_RAW]["md5"])
        elif now != dep["md5"]:
            yield Difference("data", path, f"{path} changed", dep["md5"], now)


def _status(layout: Layout) -> dict[str, dict[str, Any]]:
    """What DVC finds changed: stage -> `changed deps` and `changed outs` -> path -> state."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo(str(layout.root)) as repo:
            listed = repo.status()
    except LockError as error:
        # Of a stage that runs, the error names the process; the file of the other lock names who asked last.
        holder = re.search(r"PID (\d+)", str(error)) or re.match(r"\s*(\d+)", _read(layout.root / ".dvc/tmp/lock"))
        what = f"DVC is at work here{f' (process {holder[1]})' if holder else ''}"
        raise UserError(what, where=str(layout.root), fix="Ask again when it has ended") from error
    except DvcException as error:
        without = "Run `git init`, or work without git: `dvc config --local core.no_scm true`"
        fix = without if "not a git repository" in str(error) else None
        raise UserError(f"DVC cannot tell what changed ({error})", where=str(layout.root), fix=fix) from error
    found: dict[str, dict[str, Any]] = {}
    for stage, parts in listed.items():
        for part in parts:
            if isinstance(part, dict):
                for kind, paths in part.items():
                    found.setdefault(stage, {}).setdefault(kind, {}).update(paths)
    return found


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


# -- data ------------------------------------------------------------------------------------------


def _rows_now(dep: Mapping[str, Any], lock: Lock, layout: Layout) -> str:
    """How the data of a dependency differs from the old one, in rows."""
    from textmill.registry.lineage.dvc_cache import Cache, file_md5
    from textmill.stages.row_changes import describe

    cache, path = Cache.of(layout.root), layout.root / dep["path"]
    new = {name: (file_md5(file), file) for name, file in _files(path)}
    if dep["path"] in lock.outputs:
        old = _cached(cache, dep)
        return f": {describe(old, new) if old is not None else _UNKNOWN}"
    # No stage made these files; the cache has what `fetch` took from them, under the same name
    taken = {Path(name).name: entry for name, entry in (_cached(cache, lock.outputs.get(_RAW)) or {}).items()}
    known = {name: entry for name, entry in new.items() if Path(name).name in taken}
    rows = describe({name: taken[Path(name).name] for name in known}, known)
    return f": {rows}" if rows else ""


def _counted(reason: Difference, lock: Lock, layout: Layout) -> Difference:
    """The same reason with its rows counted, where it is about data in DVC's cache."""
    if reason.kind != "data" or reason.name not in lock.outputs:
        return reason
    from textmill.registry.lineage.dvc_cache import Cache
    from textmill.stages.row_changes import describe

    cache = Cache.of(layout.root)
    old = _cached(cache, {"md5": reason.old})
    new = _cached(cache, {"md5": reason.new or lock.outputs[reason.name]["md5"]})
    told = describe(old, new) if old is not None and new is not None else _UNKNOWN
    return replace(reason, text=f"{reason.text}: {told or 'content is the same'}")


def _cached(cache: Cache, output: Mapping[str, Any] | None) -> Files | None:
    entries = cache.entries(dict(output)) if output else None
    return {name: (md5, cache.object(md5)) for name, md5 in entries.items()} if entries is not None else None


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """The files that DVC counts to a dependency."""
    if path.is_file():
        yield "", path
    for file in path.rglob("*"):
        name = file.relative_to(path).as_posix()
        if file.is_file() and not _IGNORED.search(name):
            yield name, file


def _digest(path: Path, dep: Mapping[str, Any]) -> str | None:
    """DVC's digest of data that no stage made: None where it differs in size, the old one where it is large."""
    from textmill.registry.lineage.dvc_cache import file_md5, folder_md5

    files = list(_files(path))
    size = sum(file.stat().st_size for _, file in files)
    if size != dep.get("size", size) or len(files) != dep.get("nfiles", len(files)):
        return None
    if size > _HASHED_BYTES:
        return str(dep["md5"])
    return file_md5(path) if path.is_file() else folder_md5((name, file_md5(file)) for name, file in files)
