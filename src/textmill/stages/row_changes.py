"""Count how the rows of a folder of data changed, from the old and the new files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from textmill.files import DIGESTS

_TABLES = (".arrow", ".parquet")
_LINES = (".csv", ".jsonl", ".tsv", ".txt")
_NAMED = 5
_COMPARED_BYTES = 256 << 20
"""Of larger data the rows are counted only: a comparison holds all of them in memory."""

Files = Mapping[str, tuple[str, Path]]
"""Path within the folder -> MD5 and the file that holds the content."""


def describe(old: Files, new: Files) -> str:
    """Return in words what changed: rows of tables, lines of text files, names of other files; empty if nothing."""
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name, ("",))[0] != new.get(name, ("",))[0]]
    names = [name for name in names if Path(name).name != DIGESTS]
    if not all(file.is_file() for files in (old, new) for name, (_, file) in files.items() if name in names):
        return "content changed, and is not in DVC's cache"
    kinds = {name: Path(name).suffix for name in names}
    tables = [name for name in names if kinds[name] in _TABLES]
    parts = [_table_changes(old, new, folder, tables) for folder in sorted({_folder(name) for name in tables})]
    parts += [_line_changes(old, new, name) for name in names if kinds[name] in _LINES]
    others = [name for name in names if kinds[name] not in (*_TABLES, *_LINES)]
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        parts.append(f"files changed: {', '.join(others[:_NAMED])}{more}")
    return "; ".join(parts)


def _table_changes(old: Files, new: Files, folder: str, names: Iterable[str]) -> str:
    inside = [name for name in names if _folder(name) == folder]
    if _are_large(old, new, inside):
        counts = (sum(_open(name, files[name][1]).num_rows for name in inside if name in files) for files in (old, new))
        return f"{folder or 'table'}: {' → '.join(f'{count:,}' for count in counts)} rows"
    before, after = (
        [row for name in inside if name in files for row in _rows(name, files[name][1])] for files in (old, new)
    )
    by_content = _differing(Counter(repr(row[1]) for row in before), Counter(repr(row[1]) for row in after))
    ids, other_ids = dict(before), dict(after)
    if None not in ids.keys() | other_ids.keys():
        shared = ids.keys() & other_ids.keys()
        changed = sum(ids[key] != other_ids[key] for key in shared)
        by_id = len(other_ids) - len(shared), len(ids) - len(shared), changed
        # Ids that count rows all move when a row is put in before them
        by_content = by_id if sum(by_id) <= 2 * sum(by_content) else by_content
    return f"{folder or 'table'}: {_words(*by_content)}"


def _rows(name: str, file: Path) -> Iterator[tuple[Any, Any]]:
    """Yield the id of each row, None where it has none, and its other values."""
    for row in _open(name, file).to_pylist():
        yield row.pop("id", None), row


def _open(name: str, file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = pa.memory_map(str(file))
    return pq.read_table(source) if name.endswith(".parquet") else pa.ipc.open_file(source).read_all()


def _are_large(old: Files, new: Files, names: Iterable[str]) -> bool:
    sizes = (files[name][1].stat().st_size for files in (old, new) for name in names if name in files)
    return sum(sizes) > _COMPARED_BYTES


def _line_changes(old: Files, new: Files, name: str) -> str:
    if _are_large(old, new, [name]):
        return f"{name}: content changed"
    counts = []
    for files in (old, new):
        lines: Counter[Any] = Counter()
        if name in files:
            with files[name][1].open("rb") as file:
                lines.update(line.rstrip(b"\r\n") for line in file)
        counts.append(lines)
    return f"{name}: {_words(*_differing(*counts))}"


def _differing(old: Counter[Any], new: Counter[Any]) -> tuple[int, int, int]:
    """Rows added, removed and changed; a row gone and another one new are one changed row."""
    added, removed = (new - old).total(), (old - new).total()
    changed = min(added, removed)
    return added - changed, removed - changed, changed


def _words(added: int, removed: int, changed: int) -> str:
    counts = ((added, "added"), (removed, "removed"), (changed, "changed"))
    told = [f"{count:,} {'row' if count == 1 else 'rows'} {what}" for count, what in counts if count]
    return ", ".join(told) or "order of rows changed"


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
