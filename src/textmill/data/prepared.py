"""Read what `prepare` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.errors import UserError
from textmill.files import read_json, sha256_folder

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SPLITS = ("train", "validation", "test")


class Prepared:
    """The folder `data/prepared`: a folder of shards for each split, state, statistics and tokenizer.

    Raises:
        UserError: The folder is missing or incomplete.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "state.json").is_file():
            raise UserError("no prepared data here", where=str(folder), fix="Run `dvc repro prepare`")
        self.folder = folder

    @cached_property
    def state(self) -> dict[str, Any]:
        """The task's state, fitted to the training split."""
        return dict(read_json(self.folder / "state.json"))

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """Counts of rows, duplicates, rejected rows, labels and lengths."""
        return dict(read_json(self.folder / "statistics.json"))

    @property
    def tokenizer_folder(self) -> Path:
        """The folder with the tokenizer's files, such as `tokenizer.json`."""
        return self.folder / "tokenizer"

    @property
    def kept_tokens(self) -> list[int] | None:
        """The ids that a reduced vocabulary keeps of the pretrained one, in the order of the new ids; None for all."""
        from textmill.data.tokenizing import KEPT

        path = self.folder / KEPT
        return list(read_json(path)) if path.is_file() else None

    def split(self, name: str) -> pa.Table:
        """Return the rows: `id`, text and target columns, `words`, `source` and the encoded columns.

        The table is memory-mapped: a column is read from disk when it is used.
        """
        from textmill.data.shards import open_split

        return open_split(self.folder / name)

    def frame(self, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the split, or some of its columns, as a data frame in memory."""
        table = self.split(name)
        frame: pd.DataFrame = (table if columns is None else table.select(list(columns))).to_pandas()
        return frame

    def digest(self, name: str) -> str:
        """Return the SHA-256 of the split's files."""
        return sha256_folder(self.folder / name)
