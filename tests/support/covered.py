"""The slow tests that count for coverage: to trace all of them takes half as long again."""

from __future__ import annotations

import os
from pathlib import PurePath

SLOW_FILES = frozenset(
    {
        "test_choose",
        "test_fault_doctor",
        "test_fault_tracking",
        "test_launch",
        "test_new_tasks",
        "test_remote",
        "test_reproduce",
        "test_team_server",
        "test_tune",
    }
)
"""Files whose processes count."""

PIPELINE_FILES = SLOW_FILES & {"test_fault_tracking", "test_launch", "test_new_tasks"}
"""Those of them in which the processes of `dvc` count too: the stages are the same in all of them."""

NOT_EVEN_THEIR_OWN = frozenset(
    {
        "test_assistant",
        "test_earlier_versions",
        "test_fault_training",
        "test_gpu_benchmark",
        "test_layers",
        "test_llama_cpp",
        "test_preference_tuning",
        "test_quality",
        "test_question_answering",
        "test_ranks",
        "test_resume",
        "test_routing_study",
        "test_sentence_pairs",
        "test_suites",
    }
)
"""Files of which not even the test's own process counts: they compute long with what short tests execute too."""


def counts_pipelines() -> bool:
    """Return whether the stages that the current test runs count."""
    file = os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")[0]
    stem = PurePath(file).stem
    return stem not in SLOW_FILES or stem in PIPELINE_FILES
