"""Fetch what `textmill serve --capture` wrote: inputs with the right answers of users and of `textmill label`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from textmill.config.section import Section
from textmill.errors import UserError, first_line
from textmill.fetching.sources.base import Provenance, Source

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("textmill")

LABELS = "labels"
"""Folder of the rows that `textmill label` stored: inputs with right answers, which no server removes."""

_OWN = ("request", "position", "time", "asked", "model", "version", "answer")


class CapturedSourceConfig(Section):
    """Options.

    Attributes:
        folder: Folder of `textmill serve --capture`, relative to the project's.
        answer: Column of the rows that gets the right answer.
        licence: Licence of the rows.
    """

    folder: Annotated[str, Field(min_length=1)]
    answer: Annotated[str, Field(min_length=1)] = "label"
    licence: str | None = None


class CapturedSource(Source):
    """Join captured inputs with their feedback; the last answer to an input counts."""

    Config: ClassVar[type[Section]] = CapturedSourceConfig
    config: CapturedSourceConfig

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Write `destination/all/captured.jsonl`, ordered by time; see `Source.fetch`."""
        folder = root / self.config.folder
        labelled = captured_rows(folder / LABELS, right=True)
        right = {
            (row["request"], row["position"]): json.loads(row["answer"])
            for row in sorted([*captured_rows(folder / "feedback", right=True), *labelled], key=lambda row: row["time"])
        }
        right = {key: answer for key, answer in right.items() if answer is not None}  # None: a row to remove
        if not right:
            fix = "Start `textmill serve --capture` with this folder, and POST right answers to /feedback"
            raise UserError("no feedback yet", where=str(folder), fix=f"{fix}, or use `textmill label`")
        inputs = {
            key: row
            for row in [*({**row, "time": row["asked"]} for row in labelled), *captured_rows(folder / "requests")]
            if (key := (row["request"], row["position"])) in right
        }
        if lost := len(right) - len(inputs):
            log.warning("fetch: %d answers are to requests that were removed from %s", lost, folder)
        rows = sorted(inputs.items(), key=lambda item: (item[1]["time"], item[0]))
        (destination / "all").mkdir()
        with (destination / "all/captured.jsonl").open("w", encoding="utf-8") as file:
            for key, row in rows:
                texts = {name: value for name, value in row.items() if name not in _OWN and value is not None}
                own = {"time": row["time"].isoformat(), "served_by": f"{row['model']}/{row['version']}"}
                file.write(json.dumps(texts | own | {self.config.answer: right[key]}, ensure_ascii=False) + "\n")
        served = sorted({f"{row['model']}/{row['version']}" for _, row in rows})
        made = f"{len(rows)} inputs to {', '.join(served)}, with their right answers"
        return Provenance(f"captured:{self.config.folder}", None, self.config.licence, None, made)


def captured_rows(folder: Path, *, right: bool = False) -> list[dict[str, Any]]:
    """Return the rows of all Parquet files in the folders of days below a folder; `right`: their answers are JSON.

    Raises:
        UserError: A file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*/*.parquet")):
        try:
            table = pq.read_table(path)
            _check(table)
            found = table.to_pylist()
            for row in found if right else ():
                json.loads(row.get("answer"))
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError("not a Parquet file", where=str(path), fix="Remove it") from error
        except (TypeError, ValueError) as error:
            what = f"no file of `textmill serve --capture` ({first_line(error)})"
            raise UserError(what, where=str(path), fix="Remove it") from error
        rows += found
    return rows


def _check(table: pa.Table) -> None:
    """Raise TypeError if a column that `serve --capture` writes is missing, has another type, or empty cells."""
    import pyarrow as pa

    needed = {"request", "position", "time"}
    if missing := needed - set(table.schema.names):
        raise TypeError(f"no column {min(missing)!r}")
    time = table.schema.field("time").type
    if not pa.types.is_timestamp(time) or time.tz is None:
        raise TypeError("the column 'time' has no times with a time zone")
    if any(table.column(name).null_count for name in needed):
        raise TypeError("empty cells")
