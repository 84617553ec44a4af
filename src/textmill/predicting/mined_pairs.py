"""Mine candidates for re-ranking: the documents that a search gives for each query of a corpus of pairs."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from textmill.config.section import Section
from textmill.config.types import PluginSpec
from textmill.errors import UserError
from textmill.fetching.sources.base import Provenance, Source
from textmill.fetching.sources.local import places, write_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROWS_AT_ONCE = 512
_SATURATION, _LENGTH_WEIGHT = 1.2, 0.75


class MinedPairsConfig(Section):
    """Options: where the pairs come from, and who searches.

    Attributes:
        pairs: A source of JSON Lines, each with a query and its document.
        query: Field of the query.
        document: Field of the document.
        encoder: Folder with an exported model that answers a text by its vector, relative to the project; None: BM25.
        depth: Documents of each query of validation and test.
        negatives: Documents of each training query that are not its own, drawn from the first `pool`.
        pool: Documents from which the negatives are drawn.
        queries: Largest number of training queries, drawn at random; None takes all.
        seed: Seed of the draws.
    """

    pairs: PluginSpec
    query: str
    document: str
    encoder: str | None = None
    depth: Annotated[int, Field(ge=2)] = 10
    negatives: Annotated[int, Field(ge=1)] = 4
    pool: Annotated[int, Field(ge=1)] = 30
    queries: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0


class MinedPairsSource(Source):
    """Search the documents of each split for each of its queries, and write a row for each pair of both.

    Columns: `query`, `document`, `relevant` (1 for the query's own document), `first_rank` in the search, `source`.
    The own document is always there. In training, negatives are drawn from the hardest ones (Karpukhin et al. 2020).
    """

    Config: ClassVar[type[Section]] = MinedPairsConfig
    config: MinedPairsConfig

    def fetch(self, destination: Path, root: Path) -> Provenance:
        """Write the rows of every split; see `Source.fetch`.

        Raises:
            UserError: A split has too few documents, or there is no such encoder.
        """
        config = self.config
        with tempfile.TemporaryDirectory() as name:
            provenance = Source.build(config.pairs).fetch(Path(name), root)
            for folder in sorted(Path(name).iterdir()):
                records = [
                    json.loads(line) | {"source": path.stem}
                    for path in sorted(folder.glob("*.jsonl"))
                    for line in path.read_text(encoding="utf-8").split("\n")
                    if line
                ]
                write_rows(self._rows(records, root, folder.name), destination / folder.name / "pairs.jsonl")
        who = f"the model in {config.encoder}" if config.encoder else "BM25"
        return replace(provenance, made=f"documents for each query were found by {who}")

    def _rows(self, records: Sequence[dict[str, Any]], root: Path, split: str) -> Iterator[dict[str, Any]]:
        config = self.config
        if len(records) <= config.negatives:
            raise UserError(f"the split {split!r} has {len(records)} pairs", fix="Add pairs, or lower negatives")
        queries, documents = ([str(record[name]) for record in records] for name in (config.query, config.document))
        draw = random.Random(f"{config.seed} {split}")
        chosen = list(range(len(records)))
        if split == "train" and config.queries is not None and config.queries < len(chosen):
            chosen = sorted(draw.sample(chosen, config.queries))
        score = _by_vectors(_find(config.encoder, root), documents) if config.encoder else _by_words(documents)
        for start in range(0, len(chosen), _ROWS_AT_ONCE):
            part = chosen[start : start + _ROWS_AT_ONCE]
            for row, scores in zip(part, score([queries[row] for row in part]), strict=True):
                order = np.argsort(-scores, kind="stable")
                rank = {document: place for place, document in enumerate(order.tolist(), start=1)}
                if split == "train":
                    pool = [other for other in order[: config.pool + 1].tolist() if other != row]
                    found = sorted(draw.sample(pool, min(config.negatives, len(pool))), key=rank.__getitem__)
                else:
                    found = [other for other in order[: config.depth].tolist() if other != row]
                for other in (row, *found):
                    text = {"query": queries[row], "document": documents[other], "source": records[row]["source"]}
                    yield {**text, "relevant": int(other == row), "first_rank": rank[other]}


def _find(name: str, root: Path) -> Path:
    for place in places(root):
        if (place / name).is_dir():
            return place / name
    fix = "Export a model of sentence vectors, and copy data/exported/model there"
    raise UserError("no such folder", where=f"fetch.source.encoder: {name}", fix=fix)


def _by_vectors(folder: Path, documents: Sequence[str]) -> Any:
    """Return a function from queries to the cosines of all documents, shape (queries, documents)."""
    from textmill.predicting.loading import load_predictor

    predictor = load_predictor(folder)

    def vectors(texts: Sequence[str]) -> NDArray[np.float64]:
        answers = predictor.predict(list(texts))
        if "embedding" not in answers[0]:
            fix = "Give a model that answers a text by its embedding"
            raise UserError("its answer to a text is not a vector", where=str(folder), fix=fix)
        return np.array([answer["embedding"] for answer in answers])

    columns = vectors(documents).T
    return lambda queries: vectors(queries) @ columns


def _by_words(documents: Sequence[str]) -> Any:
    from textmill.metrics.retrieval import bm25

    search = bm25(_SATURATION, _LENGTH_WEIGHT)
    return lambda queries: search(queries, documents)
