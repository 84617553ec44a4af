"""Data of the candidates: fetched once, prepared once for each tokenizer."""

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


class CandidateData:
    """Creates `data/raw`, `data/pretrained` and `data/prepared` of each candidate, shared where equal.

    Args:
        store: Folder that keeps them for other processes and later calls; None keeps them in the candidates' folders.
    """

    def __init__(self, store: Path | None = None) -> None:
        self._folders: dict[str, Path] = {}
        self._store = store

    def prepare_network(self, candidate: Candidate) -> Prepared:
        """Return the prepared splits of a network, and fetch its weights and tokenizer.

        Raises:
            UserError: Corpus or weights cannot be fetched, or do not fit the task.
        """
        config, layout = candidate.config, candidate.layout
        source = config.fetch.model_dump_json(include={"source", "teacher"})
        pretrained = config.fetch.model_dump_json(include={"teacher", "pretrained", "pretrained_sha256"})
        self._share("raw", source, layout, lambda at: fetch_corpus(config.fetch, at))
        self._share("pretrained", pretrained, layout, lambda at: fetch_pretrained(config.fetch, at))
        parts = [source, config.prepare.model_dump_json()]
        parts += [pretrained] if config.prepare.tokenizer.kind == "pretrained" else []
        self._share("prepared", parts, layout, lambda at: prepare(config.prepare, config.runtime, at))
        return Prepared(layout.prepared)

    def prepare_baseline(self, candidate: Candidate, networks: Sequence[Candidate]) -> Prepared:
        """Return the prepared splits for a baseline: those of any network, since it uses words, not tokens."""
        for network in networks:
            if network.layout.prepared.is_dir():
                return Prepared(network.layout.prepared)
        return self.prepare_network(candidate)

    def _share(self, name: str, key: object, layout: Layout, create: Callable[[Layout], None]) -> None:
        """Create `data/NAME`, or link to the one that was created with the same key."""
        digest = hashlib.sha256(f"{name} {key}".encode()).hexdigest()
        own = layout.root / "data" / name
        if digest in self._folders:
            own.parent.mkdir(exist_ok=True)
            own.symlink_to(self._folders[digest], target_is_directory=True)
            return
        if self._store is None:
            create(layout)
            self._folders[digest] = own
            return
        from filelock import FileLock

        kept = self._store / f"{name}-{digest[:16]}"
        self._store.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{kept}.lock"):
            if not kept.is_dir():
                create(layout)
                own.rename(kept)
        self._folders[digest] = kept
        own.parent.mkdir(exist_ok=True)
        own.symlink_to(kept, target_is_directory=True)
