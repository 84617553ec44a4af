"""Read and write `data/resolved.yaml`, the configuration that every stage reads."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from textmill.config.layout import find_layout
from textmill.config.plugins import packages_in, trust
from textmill.config.schema import PipelineConfig
from textmill.config.yaml_limits import require_bounded
from textmill.errors import UserError
from textmill.files import atomic_write

HEADER = "# Made by the stage `compose` from conf/ and params.yaml. Edit those, not this file.\n"
_DIGEST = re.compile(r"^# SHA-256 of the lines below: (\w{64})\n", re.MULTILINE)


def to_yaml(config: PipelineConfig) -> str:
    """Return the canonical text; sorted keys make it independent of order and comments in `conf/`."""
    return dump(config.model_dump(mode="json", by_alias=True))


def dump(content: dict[str, Any]) -> str:
    """Return the canonical text of plain sections."""
    return HEADER + yaml.safe_dump(content, sort_keys=True, allow_unicode=True, default_flow_style=False)


def load(text: str) -> dict[str, Any]:
    """Parse the plain sections of such a text, without validation.

    Raises:
        UserError: It is not YAML with sections, or expands to an unreasonable size.
    """
    try:
        require_bounded(text, "resolved.yaml")
        return dict(yaml.safe_load(text))
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise UserError("not a resolved configuration", where="resolved.yaml") from error


def write(path: Path, config: PipelineConfig) -> None:
    """Write the resolved configuration with its digest, by rename."""
    content = to_yaml(config)
    atomic_write(path, f"# SHA-256 of the lines below: {_sha256(content)}\n{content}")


def read(path: Path) -> PipelineConfig:
    """Read the resolved configuration. The packages of its plugins are trusted from then on.

    Raises:
        UserError: The file is missing or invalid, or differs from what `compose` wrote.
    """
    if not path.is_file():
        raise UserError("no resolved configuration yet", where=str(path), fix="Run `dvc repro compose`")
    try:
        text = path.read_text(encoding="utf-8")
        require_bounded(text, str(path))
        noted = _DIGEST.match(text)  # earlier code noted none
        if noted[1] != _sha256(text[noted.end() :]) if noted else not text.startswith(HEADER):
            fix = "Edit conf/ and params.yaml instead, then run `dvc repro --force compose`"
            raise UserError("changed or damaged after `compose` wrote it (digest differs)", where=str(path), fix=fix)
        values = yaml.safe_load(text)
        config = PipelineConfig.model_validate(values)
    except (ValidationError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            "not a resolved configuration any more", where=str(path), fix="Run `dvc repro --force compose`"
        ) from error
    trust(packages_in(values))
    return config


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def trust_project() -> None:
    """Trust the packages that the configuration names of the project in whose folder the process works, if any."""
    try:
        layout = find_layout()
    except UserError:
        return
    if layout.resolved.is_file():
        read(layout.resolved)
