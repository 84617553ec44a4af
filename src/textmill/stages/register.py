"""Register the exported model as the challenger, after a fresh process has tried it."""

from __future__ import annotations

from textmill.config.layout import Layout
from textmill.config.sections.register import RegisterConfig
from textmill.config.sections.runtime import RuntimeConfig
from textmill.stages.runner import run_stage


def main(config: RegisterConfig, runtime: RuntimeConfig, layout: Layout) -> None:
    """Make `data/registered` and a version in the model registry from `data/exported`."""
    from textmill.registry.versions.register import register_exported

    register_exported(config, runtime, layout)


if __name__ == "__main__":
    run_stage("register", main)
