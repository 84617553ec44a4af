"""The stage `prepare`: make clean, deduplicated, tokenised splits from the fetched files."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textmill.config.layout import SEEN_FILE, START, Layout
from textmill.config.plugins import Plugin
from textmill.config.sections.prepare import PrepareConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.data.corrections import correct
from textmill.data.encoding import SplitEncoder, Teacher, learn_state, training_texts
from textmill.data.first_pass import FirstPass, FirstPassResult
from textmill.data.masking import masker
from textmill.data.parallel import Engine
from textmill.data.plots import PlotProcess
from textmill.data.prepared import SPLITS
from textmill.data.rejected_rows_file import RejectedRowsFile
from textmill.data.report import statistics, write_report
from textmill.data.selection import DROPPED, select
from textmill.data.shards import open_split
from textmill.data.tokenizing import make_tokenizer
from textmill.errors import UserError
from textmill.fetching.corpus import TEACHER
from textmill.files import atomic_folder, sha256_folder, write_json
from textmill.tasks.abilities import AddsColumns, CutsExamples, LearnsFromTeacher

if TYPE_CHECKING:
    from textmill.tasks.base import State, Task

log = logging.getLogger("textmill")


def prepare(config: PrepareConfig, runtime: RuntimeConfig, layout: Layout) -> None:
    """Make `data/prepared` from `data/raw` and `data/pretrained`.

    The text is read twice, in chunks. In between, only numbers about each row are kept, on disk,
    so that memory does not grow with the text.

    Raises:
        UserError: A file is empty or lacks a column, too many rows are rejected, a class or a
            split has too few rows, or there is no tokenizer.
    """
    from textmill.tasks.base import Task

    if runtime.workers is not None:
        os.environ.setdefault("RAYON_NUM_THREADS", str(runtime.workers))
    task = Task.build(config.task)
    with atomic_folder(layout.prepared) as partial, PlotProcess() as plots:
        with (
            RejectedRowsFile(partial / "rejects.csv", masker(config.mask)) as rejected,
            tempfile.TemporaryDirectory(dir=partial) as staged,
            _engine(config, runtime, layout) as engine,
        ):
            report = _fill(config, task, layout, rejected, partial, Path(staged), engine, runtime.trainer.accelerator)
        write_json(partial / "statistics.json", report)
        write_report(report, partial / "report", partial / "rejects.csv", plots)
    shutil.rmtree(layout.state / "prepare", ignore_errors=True)
    counts = ", ".join(f"{name} {split['rows']}" for name, split in report["splits"].items())
    if conflicts := report["duplicates"]["conflicting_targets"]:
        log.warning("prepare: %d texts occur with different targets; the row that is read first stays", conflicts)
    dropped = report["duplicates"]["total"], report["rejected"]["total"]
    log.info("prepare: %s; %d duplicates, %d rejected", counts, *dropped)


def _fill(
    config: PrepareConfig,
    task: Task,
    layout: Layout,
    rejected: RejectedRowsFile,
    partial: Path,
    staged: Path,
    engine: Engine,
    accelerator: str,
) -> dict[str, Any]:
    """Run both passes and return the statistics."""
    reader = FirstPass(config, task, rejected)
    with reader.staging(staged) as staging:
        first_pass = reader.run(layout.raw / "files", staging, engine)
        _check_rejected(config, rejected, first_pass.rows, layout)
        seen = layout.pretrained / START / SEEN_FILE
        selection = select(config, task, first_pass, staging, layout.raw, engine, seen if seen.is_file() else None)
        state = learn_state(task, staging, selection.split)
        corrections = correct(config, task, state, layout.raw, staging, first_pass, selection, rejected)
        texts = training_texts(task, staging, selection.split)
        tokenizer = make_tokenizer(config.tokenizer, texts, layout.pretrained, partial / "tokenizer")
        state = task.bind_tokenizer(state, tokenizer, partial / "tokenizer")
        encoder = SplitEncoder(config, task, state, tokenizer, _teacher(config, task, state, layout))
        counts = encoder.run(staging, first_pass, selection, rejected, partial, engine, corrections.labels)
    _check_rejected(config, rejected, first_pass.rows, layout, int((selection.overlapping != DROPPED).sum()))
    if isinstance(task, AddsColumns):
        from textmill.data.added_columns import add_columns

        add_columns(task, partial, layout.pretrained, state, accelerator)
    write_json(partial / "state.json", state)
    _tell_of_earlier_splits(config, first_pass)
    values = statistics(first_pass, selection, counts, rejected, config)
    if config.corrections is not None:
        values["corrections"] = {"labels": len(corrections.labels), "removed": corrections.removed}
    if isinstance(task, CutsExamples) and (packing := task.packing(open_split(partial / "train"))):
        values["packing"] = packing
    return values


def _teacher(config: PrepareConfig, task: Task, state: State, layout: Layout) -> Teacher | None:
    """Return the configured teacher with the model that `fetch` brought; None without one."""
    if config.teacher is None:
        return None
    if not isinstance(task, LearnsFromTeacher):
        fix = "Choose a task of one label for a text, or remove prepare.teacher"
        raise UserError(f"{task.name} does not learn from a teacher", where="prepare.teacher", fix=fix)
    folder = layout.raw / TEACHER
    if not folder.is_dir():
        fix = "Set fetch.teacher, and run `dvc repro fetch`"
        raise UserError("no teacher was fetched", where="prepare.teacher", fix=fix)
    teacher: Any = Plugin.build(config.teacher)
    teacher.open(folder, state["labels"])
    opened: Teacher = teacher
    return opened


def _engine(config: PrepareConfig, runtime: RuntimeConfig, layout: Layout) -> Engine:
    """Return the engine; all but threads keep the chunks that are finished, to go on after a kill.

    They belong to one state of settings, input and code; those of another are deleted.
    """
    finished = None
    if runtime.engine != "threads":
        inputs = (sha256_folder(folder) for folder in (layout.raw, layout.pretrained, Path(__file__).parent.parent))
        state = "\n".join([config.model_dump_json(), *inputs])
        finished = layout.state / "prepare" / hashlib.sha256(state.encode()).hexdigest()
        for other in finished.parent.glob("*"):
            if other != finished:
                shutil.rmtree(other)
        finished.mkdir(parents=True, exist_ok=True)
        if done := len(list(finished.iterdir())):
            log.info("prepare: continue from %d finished chunks", done)
    return Engine(runtime.engine, runtime.workers, finished)


def _tell_of_earlier_splits(config: PrepareConfig, first_pass: FirstPassResult) -> None:
    """Log how splits differ from those of earlier versions of Textmill, or will when rows are added."""
    splits = config.splits
    if first_pass.ungrouped:
        own = "each is a group of its own; versions before 27 November 2026 put them into one"
        log.info("prepare: %d row(s) have no %s: %s", first_pass.ungrouped, splits.group, own)
    if splits.method == "shuffled" and splits.by in ("content", "group") and len(first_pass.splits) < len(SPLITS):
        advice = "rows added later will move some old ones; `method: stable` moves none, after moving some once"
        log.info("prepare: splits are cut as by earlier versions (prepare.splits.method: shuffled): %s", advice)


def _check_rejected(
    config: PrepareConfig, rejected: RejectedRowsFile, rows: int, layout: Layout, overlapping: int = 0
) -> None:
    """Raise an error if too many rows were rejected; keep the file of rejected rows for inspection.

    Rows that overlap with an evaluated split, or that a filter of quality drops, do not count.
    """
    faulty = rejected.total - rejected.filtered - overlapping
    if faulty <= config.max_rejected * rows:
        return
    rejected.flush()
    layout.state.mkdir(parents=True, exist_ok=True)
    kept = layout.state / "rejects.csv"
    shutil.copyfile(rejected.path, kept)
    message = f"{faulty} of {rows} rows are rejected ({rejected.examples[0]})"
    fix = f"At most {config.max_rejected:.0%} are allowed; correct the rows listed in {kept}, or raise the limit"
    raise UserError(message, where="prepare.max_rejected", fix=fix)
