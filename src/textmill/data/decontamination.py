"""Read held-out texts and find the training rows that share a passage with one of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from textmill.config.sections.prepare import HeldOutConfig, ReadConfig
from textmill.data.mapping import as_text
from textmill.data.parallel import Engine
from textmill.data.passages import Chunks, find_shared
from textmill.data.reading import read_rows
from textmill.errors import UserError


def held_out_texts(config: HeldOutConfig, raw: Path) -> Chunks:
    """Return the texts of all columns of the files `RAW/held_out/NAME/*/*`, as one text column.

    Raises:
        UserError: There are no such files; when read: a file is empty or lacks a column.
    """
    folder = raw / "held_out" / config.name
    paths = sorted(path for path in folder.glob("*/*") if path.is_file())
    if not paths:
        fix = f"Set fetch.held_out.{config.name} to a source, and run `dvc repro fetch`"
        raise UserError(f"no held-out texts {config.name!r}", where="prepare.decontaminate", fix=fix)
    read = ReadConfig(format=config.format, header=config.header, columns={name: name for name in config.columns})

    def chunks() -> Iterator[tuple[NDArray[np.int64], list[list[str]]]]:
        start = 0
        for path in paths:
            label = f"data/raw/held_out/{config.name}/{path.parent.name}/{path.name}"
            for rows in read_rows(path, label, read, config.columns):
                values = (as_text(value) for name in config.columns for value in rows.columns[name])
                texts = [text for text in values if text is not None]
                yield start + np.arange(len(texts)), [texts]
                start += len(texts)

    return chunks


def contaminated(config: HeldOutConfig, raw: Path, rows: Chunks, engine: Engine | None) -> NDArray[np.int64]:
    """Return the rows that share `config.words` words in a row with a held-out text, or all of a shorter one.

    Args:
        config: The held-out texts.
        raw: The folder `data/raw`.
        rows: The training rows; their columns count as one text.
        engine: Computes the chunks; None computes them in this thread.
    """

    def joined() -> Iterator[tuple[NDArray[np.int64], list[list[str]]]]:
        for positions, columns in rows():
            yield positions, [["\n".join(values) for values in zip(*columns, strict=True)]]

    pairs = find_shared(held_out_texts(config, raw), joined, config.words, engine)
    found: NDArray[np.int64] = np.unique(pairs[:, 1])
    return found
