"""The `runtime` section: what depends on the machine and must not change a result.

No stage lists it under `params:`, so changing it never runs a stage again.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from textmill.config.section import Section


class TrainerConfig(Section):
    """Lightning's own settings. `auto` lets the hardware decide."""

    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"
    num_nodes: Annotated[int, Field(ge=1)] = 1
    strategy: str = "auto"


class RuntimeConfig(Section):
    """Machine-local settings.

    Attributes:
        tracking_uri: MLflow's address; None means `$MLFLOW_TRACKING_URI`, else `mlflow.db` and
            `mlruns` in the project's home.
        workers: Processes for reading and tokenising; None means all cores.
        progress: `auto` draws a bar on a terminal and plain lines elsewhere.
    """

    trainer: TrainerConfig = TrainerConfig()
    tracking_uri: str | None = None
    tracking_experiment: str = "textmill"
    workers: Annotated[int, Field(ge=1)] | None = None
    progress: Literal["auto", "bar", "plain"] = "auto"
