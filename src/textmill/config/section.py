"""The base class of every configuration section."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the configuration; immutable, rejects unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, protected_namespaces=())
