"""How every stage starts and ends: its configuration, its clock, its one-line errors."""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from textmill.config.layout import Layout, find_layout
from textmill.config.schema import PipelineConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.errors import one_line_errors
from textmill.processes import (
    end_on_signals,
    end_with_starter,
    exit_on_signals,
    is_first_process,
    is_launched,
    only_writer,
)
from textmill.stages.reasons import note
from textmill.stages.seals import check_inputs, seal_outputs

log = logging.getLogger("textmill")

Main = Callable[[Any, RuntimeConfig, Layout], None]


def run_stage(stage: str, main: Main) -> None:
    """Run a stage as a program: `python -m textmill.stages.STAGE [HYDRA_OVERRIDE ...]`.

    Without overrides the section comes from `data/resolved.yaml`; with overrides `conf/` and
    `params.yaml` are composed again with them, for a run by hand.
    """

    def program() -> None:
        layout = find_layout()
        if is_launched():  # the process that launched it holds the lock, and checks inputs and output
            config = _configuration(layout, sys.argv[1:])
            main(config.section(stage), config.runtime, layout)
            return
        with only_writer(layout.writing / f"{stage}.lock", f"the output of {stage} in {layout.root}"):
            config = _configuration(layout, sys.argv[1:])
            if is_first_process():
                note(stage, layout, config.section(stage).model_dump(mode="json", by_alias=True))
            check_inputs(stage, layout)
            main(config.section(stage), config.runtime, layout)
            seal_outputs(stage, layout)

    run_program(stage, program)


def run_program(name: str, program: Callable[[], None]) -> None:
    """Run `program` with logging, a clock and one-line errors.

    Ends the process with status 1 after an error that the user can correct, 130 after Ctrl-C and 143
    after SIGTERM.
    """
    # Libraries make hundreds of thousands of objects that live to the end; to look through them again and
    # again took a fifth of the time of importing them.
    gc.set_threshold(200_000, 50, 1000)
    level = logging.INFO if is_first_process() else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    exit_on_signals()
    end_with_starter(name)
    started = time.perf_counter()
    try:
        with one_line_errors(f"textmill {name}"):
            program()
    except KeyboardInterrupt:
        print(f"textmill {name}: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        end_on_signals()
    gc.freeze()  # the end of the process would look through all of them once more
    if not is_launched():
        log.info("%s: done in %.1f s", name, time.perf_counter() - started)


def _configuration(layout: Layout, overrides: list[str]) -> PipelineConfig:
    from textmill.config import resolved

    if not overrides:
        return resolved.read(layout.resolved)
    from textmill.config.compose import compose

    return compose(layout, overrides)
