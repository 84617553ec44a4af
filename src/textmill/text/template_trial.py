"""Render a chat template within limits of time and memory: `python -m textmill.text.template_trial < TRIAL.json`."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from textmill.errors import UserError
from textmill.text import chat


def main() -> None:
    """Render a short conversation; print the problem, if the template raises one."""
    trial = json.load(sys.stdin)
    chat.render([], "", {}, ask=False)  # imports what the limits must not count
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + chat.TRIAL_BYTES, used + chat.TRIAL_BYTES))
    spent = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (spent + chat.TRIAL_SECONDS, spent + chat.TRIAL_SECONDS))
    try:
        chat.render(trial["messages"], trial["template"], trial["special"], ask=True)
    except UserError as error:
        sys.stdout.write(error.what)


if __name__ == "__main__":
    main()
