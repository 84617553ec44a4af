"""Multiple choice, exact match and perplexity of a model on 50 film reviews, beside lm-evaluation-harness alone.

`python -m bench.suites MODEL --weights FOLDER --reviews dev.tsv` writes the suite, runs `textmill evaluate` on it and
compares the log-likelihood of every request with that of the harness's own backend on the same weights.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = 50
SHOTS = 2
LABELS = ["negative", "positive"]
_DATA = """
dataset_path: json
dataset_kwargs: {data_files: {validation: examples.jsonl, test: rows.jsonl}}
test_split: test
"""
_ASKED = f"""
validation_split: validation
num_fewshot: {SHOTS}
doc_to_text: "Review: {{{{text}}}}\\nSentiment:"
"""
TASKS = {
    "reviews_choice": f"""task: reviews_choice{_DATA}{_ASKED}
output_type: multiple_choice
doc_to_choice: {LABELS}
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}]
""",
    "reviews_exact": f"""task: reviews_exact{_DATA}{_ASKED}
output_type: generate_until
doc_to_target: "{{{{name}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 3}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, ignore_punctuation: true}}
filter_list: [{{name: stripped, filter: [{{function: remove_whitespace}}, {{function: take_first}}]}}]
""",
    "reviews_texts": f"""task: reviews_texts{_DATA}
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
""",
}


def write_suite(reviews: Path, folder: Path) -> Path:
    """Write the tasks and their rows, drawn from a table of text and label (0 or 1); return the group's file."""
    with reviews.open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = [{"text": text.strip(), "label": int(label), "name": LABELS[int(label)]} for text, label in table]
    random.Random(0).shuffle(rows)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in {"rows": rows[:ROWS], "examples": rows[ROWS : ROWS + 10]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    (folder / "suite.yaml").write_text(f"group: reviews\ntask: [{', '.join(TASKS)}]\n", encoding="utf-8")
    return folder / "suite.yaml"


def main() -> None:
    """Print the command's table, its time, the harness's own time and the largest difference of a log-likelihood."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="exported folder")
    parser.add_argument("--weights", required=True, help="the same weights in a folder that transformers loads")
    parser.add_argument("--reviews", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        suite, requests = write_suite(options.reviews, Path(name)), Path(name) / "requests.jsonl"
        started = time.perf_counter()
        command = ["textmill", "evaluate", options.model, "--suite", str(suite), "--output", str(requests)]
        subprocess.run([str(Path(sys.executable).parent / command[0]), *command[1:]], check=True)
        print(f"  {time.perf_counter() - started:.0f} s for `textmill evaluate`, one request at a time")
        ours = [json.loads(line)["filtered_resps"] for line in requests.read_text().splitlines()]
        _compare(ours, options.weights, suite)


def _compare(ours: list[Any], folder: str, suite: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    from textmill.evaluation.suites import require_harness, run_suite

    require_harness()
    for batch in (8,):
        started = time.perf_counter()
        run = run_suite(suite, HFLM(folder, dtype="float32", device="cpu", batch_size=batch))
        theirs = [record["filtered_resps"] for record in run.requests]
        pairs = list(zip(_numbers(ours), _numbers(theirs), strict=True))
        difference = max(abs(one - other) for one, other in pairs)
        texts = [pair for pair in zip(ours, theirs, strict=True) if isinstance(pair[0][0], str)]
        same = sum(one == list(other) for one, other in texts)
        print(
            f"  harness alone, batches of {batch}: {time.perf_counter() - started:.0f} s; {len(pairs)} log-likelihoods "
            f"differ by at most {difference:.1e}; {same} of {len(texts)} generated texts are equal"
        )


def _numbers(answers: list[Any]) -> list[float]:
    flat = [each for row in answers for each in row if not isinstance(each, str)]
    return [float(each[0] if isinstance(each, list | tuple) else each) for each in flat]


if __name__ == "__main__":
    main()
