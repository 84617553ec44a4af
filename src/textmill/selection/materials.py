"""The candidates' data: fetched once, prepared once for each tokenizer, by the pipeline's own rooms."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from textmill.config.layout import Layout
from textmill.data.prepare import prepare
from textmill.data.prepared import Prepared
from textmill.fetching.corpus import fetch_corpus
from textmill.fetching.pretrained import fetch_pretrained
from textmill.selection.candidates import Candidate


class Materials:
    """Gives each candidate `data/raw`, `data/pretrained` and `data/prepared` in its copy.

    Args:
        root: The folder of the copies; what candidates share lies beside them.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: dict[str, Path] = {}

    def prepared(self, candidate: Candidate) -> Prepared:
        """The prepared splits of a network, with its weights and tokenizer.

        Raises:
            UserError: Corpus or weights cannot be had, or do not fit the task.
        """
        config, layout = candidate.config, candidate.layout
        pretrained = config.fetch.model_dump_json(include={"pretrained", "pretrained_sha256"})
        self._share("raw", config.fetch.source, layout, lambda at: fetch_corpus(config.fetch, at))
        self._share("pretrained", pretrained, layout, lambda at: fetch_pretrained(config.fetch, at))
        parts = [config.fetch.source, config.prepare.model_dump_json()]
        parts += [pretrained] if config.prepare.tokenizer.kind == "pretrained" else []
        self._share("prepared", parts, layout, lambda at: prepare(config.prepare, config.runtime, at))
        return Prepared(layout.prepared)

    def words(self, candidate: Candidate, networks: Sequence[Candidate]) -> Prepared:
        """The prepared splits for a baseline, which sees words: those of a network, if there is one."""
        for network in networks:
            if network.layout.prepared.is_dir():
                return Prepared(network.layout.prepared)
        return self.prepared(candidate)

    def _share(self, name: str, key: object, layout: Layout, make: Callable[[Layout], None]) -> None:
        """Make `data/NAME` in the copy, unless one with the same key is there already."""
        digest = hashlib.sha256(f"{name} {key}".encode()).hexdigest()
        own = layout.root / "data" / name
        if digest in self._made:
            own.parent.mkdir(exist_ok=True)
            own.symlink_to(self._made[digest], target_is_directory=True)
            return
        make(layout)
        self._made[digest] = own
