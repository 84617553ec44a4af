"""The `register` section: the model's name in the registry."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from textmill.config.section import Section
from textmill.config.types import PluginSpec


class RegisterConfig(Section):
    """The name under which the exported model is registered."""

    task: PluginSpec
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
