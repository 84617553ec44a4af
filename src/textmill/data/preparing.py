"""From fetched files to clean, deduplicated, tokenised splits: the stage `prepare`."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config.layout import Layout
from textmill.config.sections.prepare import PrepareConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.data.encoding import SplitEncoder, learn_state, training_texts
from textmill.data.intake import Intaker
from textmill.data.pictures import Painter
from textmill.data.rejects import RejectFile
from textmill.data.report import statistics, write_report
from textmill.data.selection import select
from textmill.data.tokenizing import make_tokenizer
from textmill.errors import UserError
from textmill.files import atomic_folder, write_json

if TYPE_CHECKING:
    from textmill.tasks.base import Task

log = logging.getLogger("textmill")


def prepare(config: PrepareConfig, runtime: RuntimeConfig, layout: Layout) -> None:
    """Make `data/prepared` from `data/raw` and `data/pretrained`.

    Two passes over the text, in chunks, with what must be known of all rows kept as numbers on
    disk in between: memory does not grow with the text.

    Raises:
        UserError: A file is empty or lacks a column, too many rows are rejected, a class or a
            split has too few rows, or there is no tokenizer.
    """
    from textmill.tasks.base import Task

    if runtime.workers is not None:
        os.environ.setdefault("RAYON_NUM_THREADS", str(runtime.workers))
    task = Task.build(config.task)
    with atomic_folder(layout.prepared) as partial, Painter() as painter:
        with RejectFile(partial / "rejects.csv") as rejects, tempfile.TemporaryDirectory(dir=partial) as staged:
            report = _fill(config, task, layout, rejects, partial, Path(staged))
        write_json(partial / "statistics.json", report)
        write_report(report, partial / "report", partial / "rejects.csv", painter)
    counts = ", ".join(f"{name} {split['rows']}" for name, split in report["splits"].items())
    log.info(
        "prepare: %s; %d duplicates, %d rejected", counts, report["duplicates"]["total"], report["rejected"]["total"]
    )


def _fill(
    config: PrepareConfig, task: Task, layout: Layout, rejects: RejectFile, partial: Path, staged: Path
) -> dict[str, Any]:
    """Run both passes and give the statistics."""
    intaker = Intaker(config, task, rejects)
    with intaker.staging(staged) as staging:
        intake = intaker.run(layout.raw / "files", staging)
        _check_rejects(config, rejects, intake.rows, layout)
        selection = select(config, intake, staging, task.text_columns)
        texts = training_texts(task, staging, selection.split)
        tokenizer = make_tokenizer(config.tokenizer, texts, layout.pretrained, partial / "tokenizer")
        state = learn_state(task, staging, selection.split)
        state = task.bind_tokenizer(state, tokenizer, partial / "tokenizer")
        encoder = SplitEncoder(config, task, state, tokenizer)
        figures = encoder.run(staging, intake, selection, rejects, partial)
    _check_rejects(config, rejects, intake.rows, layout)
    write_json(partial / "state.json", state)
    return statistics(intake, selection, figures, rejects, config)


def _check_rejects(config: PrepareConfig, rejects: RejectFile, rows: int, layout: Layout) -> None:
    """Raise when more rows were rejected than allowed; the file of rejects is kept for a look."""
    if rejects.total <= config.max_rejected * rows:
        return
    rejects.flush()
    layout.state.mkdir(parents=True, exist_ok=True)
    kept = layout.state / "rejects.csv"
    shutil.copyfile(rejects.path, kept)
    raise UserError(
        f"{rejects.total} of {rows} rows are rejected ({rejects.examples[0]})",
        where="prepare.max_rejected",
        fix=f"At most {config.max_rejected:.0%} may be; all are listed in {kept}",
    )
