"""Name the base of sources for plugins written before 26 November 2026, which import it from here."""

from textmill.fetching.sources.base import Provenance, Source

__all__ = ["Provenance", "Source"]
