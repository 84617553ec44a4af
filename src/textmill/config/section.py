"""The base of every configuration section: closed, immutable, exact."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the configuration. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, protected_namespaces=())
