"""Compose `conf/` and `params.yaml` into `data/resolved.yaml`, checked once for all stages, and digest their code."""

from __future__ import annotations

import sys

import yaml

from textmill.config import resolved
from textmill.config.layout import find_layout
from textmill.files import atomic_write
from textmill.processes import only_writer
from textmill.stages.reasons import COMPOSE, note
from textmill.stages.runner import run_program
from textmill.stages.seals import seal_outputs

_HEADER = "# Made by the stage `compose`: a digest of the code that each stage can reach, see docs/reruns.md.\n"


def main() -> None:
    """Make `data/resolved.yaml` and `data/code.yaml`."""
    from textmill.config.code import Code
    from textmill.config.compose import compose

    layout = find_layout()
    with only_writer(layout.writing / f"{COMPOSE}.lock", f"the output of {COMPOSE} in {layout.root}"):
        config = compose(layout, sys.argv[1:])
        note(COMPOSE, layout, {})  # after composing, which refuses literal secrets: it logs the values that changed
        code = Code(layout).stages(config.model_dump(mode="json", by_alias=True))
        resolved.write(layout.resolved, config)
        atomic_write(layout.code, _HEADER + yaml.safe_dump({stage: found.digest for stage, found in code.items()}))
        seal_outputs(COMPOSE, layout)


if __name__ == "__main__":
    run_program(COMPOSE, main)
