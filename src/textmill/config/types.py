"""Field types that several sections share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from textmill.config.plugins import TARGET, renamed

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
"""A share between 0 and 1, both included."""

IS_PLUGIN = "plugin"


def _with_present_name(spec: dict[str, Any]) -> dict[str, Any]:
    """Replace an old class path by the current one: runs from before and after a move are comparable."""
    return spec | {TARGET: renamed(spec[TARGET])} if isinstance(spec.get(TARGET), str) else spec


PluginSpec = Annotated[dict[str, Any], IS_PLUGIN, AfterValidator(_with_present_name)]
"""A plugin's options with its class under `_target_`; `schema` validates them with the class."""

OptionalPluginSpec = Annotated[dict[str, Any] | None, IS_PLUGIN]
"""A plugin's options, or None."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 digest in lower-case hexadecimal."""
