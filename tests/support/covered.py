"""The slow tests whose processes count for coverage: to trace those of all of them takes half as long again."""

from __future__ import annotations

SLOW_FILES = frozenset(
    {
        "test_choose",
        "test_drift",
        "test_fault_doctor",
        "test_fault_tracking",
        "test_growing_data",
        "test_launch",
        "test_lineage",
        "test_new_tasks",
        "test_remote",
        "test_reproduce",
        "test_team_server",
        "test_tune",
    }
)
