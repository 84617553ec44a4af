"""Small suites in the format of lm-evaluation-harness, with their data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHOICE = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {train: train.jsonl, test: test.jsonl}}
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: " "
fewshot_delimiter: " "
num_fewshot: 2
metric_list:
  - {metric: acc}
  - {metric: acc_norm}
"""
EXACT = """
task: exact
dataset_path: json
dataset_kwargs: {data_files: {test: test.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{said}}"
generation_kwargs: {until: ["thanks"], max_gen_toks: 5}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {data_files: {test: test.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
GROUP = "group: all_of_it\ntask: [colours, exact, rolling]\n"
WORDS = ["red", "green", "blue"]
ASKED = ["who are you", "name three colours", "you are a mill", "thanks", "i am a name who", "are you a mill who am i"]


def write_suite(folder: Path, said: list[str] | None = None) -> Path:
    """Write the tasks and their data; `said` are the expected generations. Return the group's file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"colours": CHOICE, "exact": EXACT, "rolling": ROLLING, "suite": GROUP}.items():
        (folder / f"{name}.yaml").write_text(text)
    rows: list[dict[str, Any]] = []
    for number, asked in enumerate(ASKED * 2):
        choices = [*WORDS[number % 3 :], *WORDS[: number % 3], "thanks you"]
        rows.append({"question": asked, "choices": choices, "answer": number % 4, "text": f"{asked} red " * 9})
        rows[-1]["said"] = said[number] if said else "red"
    for name, part in {"train": rows[:5], "test": rows}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder / "suite.yaml"
