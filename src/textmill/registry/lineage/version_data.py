"""Find the prepared data that a version was made with, whatever the workspace holds now."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config.layout import Layout
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.registry.lineage.dvc_cache import Cache, file_md5
from textmill.registry.lineage.lineage import Origin, origin_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_PREPARED = "data/prepared"
_STATE = "state.json"


class UnavailableError(UserError):
    """Data of a version that is in no place where it could be."""


@contextmanager
def prepared_data(version: ModelVersion, layout: Layout, splits: Sequence[str]) -> Iterator[Prepared]:
    """Yield the state and the named splits of the data that a version was made with.

    They come from DVC's cache, from `data/prepared` if that is the same data, or from DVC's remote, in this
    order. Nothing is copied: the folder has links to the objects of the cache. Every split has the digest
    that the version's tags record.

    Raises:
        UnavailableError: The data is in none of these places; the error says what each of them holds.
    """
    with tempfile.TemporaryDirectory(prefix="textmill-data-") as temporary:
        yield _find(origin_of(version, layout), layout, splits, Path(temporary))


def _find(origin: Origin, layout: Layout, splits: Sequence[str], temporary: Path) -> Prepared:
    expected = {split: origin.data.get(split) for split in splits}
    places: list[Callable[[], Prepared]] = [lambda: Prepared(layout.prepared)]
    reasons: list[str] = []
    output = origin.lock.outputs.get(_PREPARED) if origin.lock is not None else None
    if output is None:
        reasons.append("no dvc.lock with its digest was found")
    else:
        places.insert(0, lambda: _cached(layout, output, splits, temporary / "cache"))
        places.append(lambda: _fetched(layout, output, splits, temporary / "remote"))
    for place in places:
        try:
            prepared = place()
            differing = [split for split in splits if prepared.digest(split) != expected[split]]
        except (UserError, OSError) as error:
            reasons.append(str(error).rstrip("."))
            continue
        if not differing:
            return prepared
        reasons.append(_damage(prepared.folder) or f"{layout.prepared} holds other {' and '.join(differing)} rows")
    commit = f"check out commit {origin.source_commit[:12]} and run" if origin.source_commit else "run"
    raise UnavailableError(
        f"the {' and '.join(splits)} rows of {origin.name} are not available ({'; '.join(dict.fromkeys(reasons))})",
        where=_PREPARED,
        fix=f"Run `dvc pull` where a DVC remote has them, or {commit} `dvc repro prepare`",
    )


def _cached(layout: Layout, output: dict[str, Any], splits: Sequence[str], folder: Path) -> Prepared:
    cache = Cache.of(layout.root)
    _link(cache, _objects(cache, output, splits), folder)
    return Prepared(folder)


def _fetched(layout: Layout, output: dict[str, Any], splits: Sequence[str], folder: Path) -> Prepared:
    """Fetch missing and damaged objects from the remote."""
    cache = Cache.of(layout.root)
    if not cache.has_remote:
        raise UserError("there is no DVC remote")
    cache.fetch([str(output["md5"])])
    cache.fetch(list(_objects(cache, output, splits).values()))
    return _cached(layout, output, splits, folder)


def _objects(cache: Cache, output: dict[str, Any], splits: Sequence[str]) -> dict[str, str]:
    """Return the files of the splits and the state: relative path -> MD5."""
    entries = cache.entries(output)
    if entries is None:
        raise UserError("DVC's cache does not have them")
    chosen = {path: md5 for path, md5 in entries.items() if path == _STATE or path.split("/")[0] in splits}
    missing = {split for split in splits if not any(path.startswith(f"{split}/") for path in chosen)}
    if missing or _STATE not in chosen:
        raise UserError("its dvc.lock does not name them")
    return chosen


def _link(cache: Cache, objects: dict[str, str], folder: Path) -> None:
    """Link the files below `folder` to the objects of the cache; the caller checks the digest of each split."""
    for path, digest in objects.items():
        if not cache.object(digest).is_file():
            raise UserError("DVC's cache does not have them")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(cache.object(digest))


def _damage(folder: Path) -> str | None:
    """Return the first linked object of the cache whose MD5 is not its name, as a clause; None without one."""
    for link in sorted(path for path in folder.rglob("*") if path.is_symlink()):
        object_ = link.readlink()
        if file_md5(object_) != object_.parent.name + object_.name:
            return f"{object_} in DVC's cache is damaged"
    return None
