"""Make conversations from the rows of other experiments, split as these split them."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from textmill.config.section import Section
from textmill.config.sections.prepare import PrepareConfig
from textmill.config.types import PluginSpec
from textmill.data.encoding import learn_state
from textmill.data.first_pass import FirstPass
from textmill.data.parallel import Engine
from textmill.data.passages import find_shared
from textmill.data.prepared import SPLITS
from textmill.data.rejected_rows_file import RejectedRowsFile
from textmill.data.selection import select
from textmill.fetching.sources.base import Provenance, Source
from textmill.fetching.sources.local import write_rows
from textmill.tasks.base import State, Task
from textmill.tasks.examples.asking import Asking

log = logging.getLogger("textmill")

FIELDS = "fields"
"""Key of a row's values in the other experiment."""


class ExperimentConfig(Section):
    """An experiment's source and its options of `prepare`, as `${experiment:NAME}` gives them."""

    source: PluginSpec
    prepare: PrepareConfig


class ApplicationConfig(Section):
    """An application.

    Attributes:
        experiment: Its experiment, `${experiment:NAME}`.
        prompt: Wording of the question, with text columns in braces; None takes that of the task.
        most_characters: Characters of each text in the question.
        together: Column whose equal values stay together when rows are drawn, such as the query of a search.
        rows: Split -> largest number of rows, drawn from it; all of a split that is not named.
    """

    experiment: ExperimentConfig
    prompt: str | None = None
    most_characters: Annotated[int, Field(ge=20)] = 1000
    together: str | None = None
    rows: dict[str, Annotated[int, Field(ge=1)]] = {}


class ConversationsConfig(Section):
    """Options.

    Attributes:
        applications: Name, the value of the column `source` -> application.
        passage_words: Words in a row that no row of training or validation shares with a test row of any application.
        seed: Seed of the draws of rows.
    """

    applications: Annotated[dict[str, ApplicationConfig], Field(min_length=1)]
    passage_words: Annotated[int, Field(ge=6, le=100)] = 13
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class SplitRows:
    """The rows of an experiment after `prepare` cleaned, selected and split them.

    Attributes:
        splits: Split -> its rows, in their order: `id`, the task's columns, others that are mapped, `source`.
        state: The task's state, fitted to the training split.
        provenance: Origin of the corpus.
    """

    task: Task
    splits: dict[str, pa.Table]
    state: State
    provenance: Provenance


class ConversationsSource(Source):
    """Ask for the rows of several applications, and answer by their targets.

    Each application is fetched, cleaned, freed of duplicates and split as its own experiment does; then its rows
    become conversations. So its test rows are rows of the same split. Files: `SPLIT/APPLICATION.jsonl`.
    Columns: `messages`, `source` (the application) and `fields`, the row of the application.
    """

    Config: ClassVar[type[Section]] = ConversationsConfig
    config: ConversationsConfig

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Write the conversations of each application and split; see `Source.fetch`."""
        found = {name: split_rows(one.experiment, root) for name, one in self.config.applications.items()}
        tests = [one.splits["test"].select(list(one.task.text_columns)) for one in found.values()]
        for name, one in found.items():
            application = self.config.applications[name]
            asking = Asking(one.task, one.state, application.prompt, application.most_characters)
            for split, table in one.splits.items():
                if split != "test":
                    table = table.filter(pa.array(~self._shared(table.select(list(one.task.text_columns)), tests)))
                rows = self._drawn(table, application, split)
                write_rows(_conversations(rows, asking, name), destination / split / f"{name}.jsonl")
        origin, licence = (
            "; ".join(f"{name}: {value}" for name, one in found.items() if (value := getattr(one.provenance, key)))
            for key in ("origin", "licence")
        )
        return Provenance(origin, None, licence or None, None, "conversations were made from rows by templates")

    def _shared(self, table: pa.Table, tests: Sequence[pa.Table]) -> NDArray[np.bool_]:
        """Return a mask of the rows, shape (rows,), that share a passage with a test row of any application."""
        shared = np.zeros(table.num_rows, bool)
        for test in tests:
            pairs = find_shared(_chunks(test), _chunks(table), self.config.passage_words, None)
            shared[pairs[:, 1]] = True
        if shared.any():
            log.info("fetch: %d row(s) left out, which share a passage with a test row", shared.sum())
        return shared

    def _drawn(self, table: pa.Table, application: ApplicationConfig, split: str) -> pa.Table:
        """Return rows drawn by a hash of their values, or of `together`, in their order."""
        most = application.rows.get(split)
        if most is None or table.num_rows <= most:
            return table
        columns = [application.together] if application.together else table.column_names
        keys = (json.dumps(row, sort_keys=True) for row in table.select(columns).to_pylist())
        hashes = [hashlib.sha256(f"{self.config.seed} {key}".encode()).hexdigest() for key in keys]
        counts = Counter(hashes)
        order = sorted(counts)
        totals = np.cumsum([counts[each] for each in order])
        kept = set(order[: max(1, int((totals <= most).sum()))])
        return table.filter(pa.array([each in kept for each in hashes]))


def split_rows(experiment: ExperimentConfig, root: Path) -> SplitRows:
    """Fetch a corpus and split it as the stage `prepare` of its experiment does.

    Raises:
        UserError: The corpus cannot be fetched, read or split.
    """
    config, task = experiment.prepare, Task.build(experiment.prepare.task)
    with tempfile.TemporaryDirectory() as name:
        raw, staged = Path(name) / "raw", Path(name) / "staged"
        for folder in (raw / "files", staged):
            folder.mkdir(parents=True)
        provenance = Source.build(experiment.source).fetch(raw / "files", root)
        with RejectedRowsFile(Path(name) / "rejects.csv") as rejected, Engine() as engine:
            reader = FirstPass(config, task, rejected)
            with reader.staging(staged) as staging:
                first_pass = reader.run(raw / "files", staging, engine)
                split = select(config, task, first_pass, staging, raw, engine).split
                state = learn_state(task, staging, split)
                whole = pa.concat_tables([chunk.select(reader.columns) for _, chunk in staging.chunks()])
    rows = {name: whole.filter(pa.array(split == number)) for number, name in enumerate(SPLITS)}
    return SplitRows(task, rows, state, provenance)


def _conversations(table: pa.Table, asking: Asking, name: str) -> Iterator[dict[str, Any]]:
    for row in table.to_pylist():
        yield {"messages": asking.conversation(row, answered=True), "source": name, FIELDS: row}


def _chunks(table: pa.Table) -> Any:
    """Return the rows, each as one text, as `find_shared` reads them."""
    texts = ["\n".join(text or "" for text in row.values()) for row in table.to_pylist()]
    return lambda: iter([(np.arange(len(texts)), [texts])])


def read_fields(path: Path) -> list[Mapping[str, Any]]:
    """Return the rows of the application from a file of conversations."""
    return [json.loads(line)[FIELDS] for line in path.read_text(encoding="utf-8").split("\n") if line]
