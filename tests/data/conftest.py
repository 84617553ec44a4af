"""A small project for the data stages: a word tokenizer, files, and how to run them."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from textmill.config.layout import Layout
from textmill.config.sections.prepare import PrepareConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.data.prepare import prepare
from textmill.data.prepared import Prepared

TASK = {"_target_": "textmill.tasks.text_classification.TextClassification"}
COLUMNS = {"text": "text", "label": "label"}
WORDS = ["the", "a", "film", "plot", "was", "is", "good", "bad", "long", "short", "very", "never", "actor", "scene"]


@dataclass
class DataProject:
    """A folder with fetched files and a tokenizer, on which `prepare` can run."""

    root: Path
    layout: Layout = field(init=False)

    def __post_init__(self) -> None:
        self.layout = Layout(self.root)
        (self.root / "dvc.yaml").touch()
        pretrained = self.layout.pretrained
        pretrained.mkdir(parents=True)
        vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(pretrained / "tokenizer.json"))
        (pretrained / "config.json").write_text("{}")
        (pretrained / "tokenizer_config.json").write_text("{}")

    def raw(self, name: str, content: str | bytes) -> Path:
        """Put a fetched file at `SPLIT/FILE`."""
        path = self.layout.raw / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def rows(self, name: str, rows: list[tuple[str, str]]) -> Path:
        """Put a CSV of texts and labels at `SPLIT/FILE`."""
        path = self.raw(name, "")
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
        return path

    def prepare(
        self,
        *,
        columns: Mapping[str, Any] = COLUMNS,
        task: Mapping[str, Any] = TASK,
        workers: int | None = None,
        **options: Any,
    ) -> Prepared:
        """Run `prepare`; `read` options may be given beside the section's own."""
        read = {"columns": dict(columns), **options.pop("read", {})}
        config = PrepareConfig.model_validate({"task": dict(task), "read": read, **options})
        prepare(config, RuntimeConfig(workers=workers), self.layout)
        return Prepared(self.layout.prepared)

    @property
    def rejects(self) -> list[dict[str, str]]:
        """The rows of `rejects.csv`."""
        with (self.layout.prepared / "rejects.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataProject:
    """An empty data project."""
    monkeypatch.chdir(tmp_path)
    return DataProject(tmp_path)


@pytest.fixture
def many_rows() -> Callable[[int], list[tuple[str, str]]]:
    """Makes rows of two classes that no two are alike in."""

    def make(count: int) -> list[tuple[str, str]]:
        return [
            (
                f"film {index * 7919 % 100_003} was seen {index} times by {index * 31} people",
                "good" if index % 2 else "bad",
            )
            for index in range(count)
        ]

    return make


@pytest.fixture
def whole(project: DataProject) -> Callable[[], pd.DataFrame]:
    """Gives all prepared rows with their split."""

    def read() -> pd.DataFrame:
        found = Prepared(project.layout.prepared)
        return pd.concat([found.frame(name).assign(split=name) for name in ("train", "validation", "test")])

    return read


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "textmill")
