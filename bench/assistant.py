"""One chat model for five applications: before and after tuning, beside specialists and baselines; prints Markdown.

`python -m bench.assistant` runs `experiment=assistant` up to the export in a throw-away project. `--project FOLDER`
measures a project in which it has run. `--rows` limits the test rows of each application, `--squad` asks that many
questions of SQuAD 2.0 too. `--specialists FOLDER` has exported specialists in folders of the applications' names;
those that are missing are quoted from docs/benchmarks.md, where they were measured on their whole test split.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.applications import ROOT, SHARED
from bench.semantic import STAGES, run

if TYPE_CHECKING:
    import pandas as pd

METRICS = {
    "translation": "chrf",
    "summaries": "rougeL",
    "questions": "f1",
    "reviews": "weighted_f1",
    "matches": "mean_reciprocal_rank",
}
QUOTED = {
    "translation": (r"\| catalogues en-de \| encoder-decoder", 3),
    "summaries": (r"\| docstrings \| MiniLM with a new decoder", 4),
    "questions": (r"\| `question_answering` \| MiniLM", 2),
    "reviews": (r"\| \*\*fine-tuned, mean of 3", 1),
}
"""Row of docs/benchmarks.md, and the cell of the metric in it."""
SQUAD = SHARED / "squad2/dev-v2.0.json"
TEXTS = 40
TIMED = 6


@dataclass(frozen=True)
class Application:
    """An application's task, its test rows as the assistant has them, its state, and the fitted baselines."""

    name: str
    asking: Any
    evaluator: Any
    frame: pd.DataFrame
    state: dict[str, Any]
    baselines: dict[str, Callable[[pd.DataFrame], pd.DataFrame]]

    @property
    def metric(self) -> Any:
        """The metric of the table."""
        return next(each for each in self.evaluator.metrics(self.state) if each.name == METRICS[self.name])


def applications(project: Path, rows: int | None, only: Sequence[str]) -> list[Application]:
    """The applications of a project; rows, splits and baselines are those of each one's own experiment."""
    import pandas as pd

    from textmill.config.compose import compose
    from textmill.config.layout import Layout
    from textmill.data.conversations import ConversationsConfig, read_fields, split_rows
    from textmill.data.words import word_splitter
    from textmill.evaluation.evaluator import evaluator_of
    from textmill.tasks.examples.asking import Asking

    source = dict(compose(Layout(ROOT), ["experiment=assistant"]).fetch.source)
    del source["_target_"]
    found = []
    for name, one in ConversationsConfig.model_validate(source).applications.items():
        if name not in only:
            continue
        own = split_rows(one.experiment, ROOT)
        evaluator = evaluator_of(own.task)
        state = own.state
        frame = pd.DataFrame(read_fields(project / f"data/raw/files/test/{name}.jsonl"))
        whole = own.splits["test"].to_pandas()
        missing = set(frame["id"]) - set(whole["id"])
        assert not missing, f"{name}: {len(missing)} rows are none of the specialist's test split"
        frame = _part(frame, one.together, rows)
        config = compose(Layout(ROOT), [f"experiment={_experiment(name)}"])
        split = word_splitter(config.prepare.words)
        train, validation, frame = (
            each.assign(words=split(each[list(own.task.text_columns)].agg(" ".join, axis=1).tolist()))
            for each in (own.splits["train"].to_pandas(), own.splits["validation"].to_pandas(), frame)
        )
        fitted = evaluator.baselines(train, validation, state, config.evaluate.baselines, config.evaluate.seed)
        asking = Asking(own.task, state, one.prompt, one.most_characters)
        found.append(Application(name, asking, evaluator, frame, state, fitted))
    return found


def _experiment(name: str) -> str:
    import yaml

    text = (ROOT / "conf/data/assistant.yaml").read_text(encoding="utf-8")
    options = yaml.safe_load(text)["fetch"]["source"]["applications"][name]["experiment"]
    return str(options).removeprefix("${experiment:").removesuffix("}")


def _part(frame: pd.DataFrame, together: str | None, rows: int | None) -> pd.DataFrame:
    """At most `rows` rows, drawn at random, since a table may be sorted by label; a group is drawn whole."""
    if rows is None or len(frame) <= rows:
        return frame
    if together is None:
        return frame.sample(n=rows, random_state=0).sort_index()
    groups = frame[together].drop_duplicates().sample(frac=1, random_state=0)
    sizes = frame[together].value_counts()[groups].cumsum()
    return frame[frame[together].isin(sizes.index[sizes <= rows])]


def interval(found: Any, digits: int, sign: str = "") -> str:
    """An interval as a cell."""
    return f"{found.value:{sign}.{digits}f} [{found.low:{sign}.{digits}f}, {found.high:{sign}.{digits}f}]"


def quoted(name: str) -> str:
    """The specialist's committed figure, or a dash."""
    if name not in QUOTED:
        return "not measured"
    row, cell = QUOTED[name]
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    line = next((line for line in page.splitlines() if re.match(row, line)), None)
    return f"{line.split('|')[cell + 1].strip(' *')} (quoted)" if line else "not measured"


def measure(one: Application, models: dict[str, Any], specialists: Path | None) -> list[str]:
    """The rows of the table of one application."""
    from textmill.evaluation.evaluator import predict_rows
    from textmill.evaluation.evaluators.asked import predictions_of
    from textmill.metrics.bootstrap import Bootstrap, intervals, paired_test
    from textmill.predicting.asked import ask
    from textmill.predicting.loading import load_predictor

    metric, bootstrap = one.metric, Bootstrap(1000, 0.95, 0)
    digits = 1 if metric.name in ("chrf", "rougeL") else 3
    tables: dict[str, pd.DataFrame] = {}
    seconds: dict[str, float] = {}
    for title, model in models.items():
        started = time.perf_counter()
        outputs = ask(model, one.asking, one.frame)
        seconds[title] = (time.perf_counter() - started) / len(one.frame)
        tables[title] = predictions_of(one.evaluator, outputs, one.frame, one.state)
        print(f"{one.name}, {title}: {seconds[title]:.2f} s a row", file=sys.stderr, flush=True)
    exported = specialists / one.name if specialists else None
    if exported is not None and exported.is_dir():
        tables["specialist"] = predict_rows(load_predictor(exported), one.frame)
    tables |= {name: predict(one.frame) for name, predict in one.baselines.items()}
    after = tables["after tuning"]
    lines = []
    for title, table in tables.items():
        value = intervals(table, [metric], bootstrap)[metric.name]
        gain = (
            "" if title == "after tuning" else interval(paired_test(after, table, metric, bootstrap).gain, digits, "+")
        )
        cost = f"{seconds[title]:.2f}" if title in seconds else ""
        lines.append(
            f"| {one.name}, {metric.name}, {len(table)} rows | {title.replace('_', ' ')} | {interval(value, digits)} "
            f"| {gain} | {cost} |"
        )
    if "specialist" not in tables:
        lines.insert(2, f"| {one.name}, {metric.name} | specialist, its whole test split | {quoted(one.name)} | | |")
    return lines


def requests(found: Sequence[Application], model: Any) -> list[str]:
    """Time of single requests, one after the other."""
    from textmill.predicting.asked import ask

    lines = []
    for one in found:
        times = []
        for row in range(min(TIMED, len(one.frame))):
            started = time.perf_counter()
            ask(model, one.asking, one.frame.iloc[row : row + 1])
            times.append(1000 * (time.perf_counter() - started))
        lines.append(f"| {one.name} | {statistics.median(times):.0f} | {max(times):.0f} |")
    return lines


def forgetting(models: dict[str, Any]) -> str:
    """Loss on paragraphs of Wikipedia, and its paired relative change."""
    import torch

    from textmill.models.losses.likelihood import mean_cross_entropy

    articles = json.loads(SQUAD.read_text(encoding="utf-8"))["data"]
    texts = [article["paragraphs"][0]["context"] for article in articles][:TEXTS]
    sums = {}
    for title, model in models.items():
        each = []
        for text in texts:
            ids = torch.tensor([model.tokenizer.encode(text, add_special_tokens=False).ids])
            with torch.inference_mode():
                states = model.model.hidden_states(ids[:, :-1]).states
                nll = mean_cross_entropy(states, model.model.output_weight, ids[:, 1:])[1]
            each.append((float(nll.sum()), ids.size(1) - 1))
        sums[title] = np.array(each)
    draws = np.random.default_rng(0).integers(len(texts), size=(2000, len(texts)))
    before, after = (sums[title][:, 0] for title in ("before tuning", "after tuning"))
    tokens = sums["before tuning"][:, 1]
    changes = 100 * (after[draws].sum(axis=1) / before[draws].sum(axis=1) - 1)
    low, high = np.percentile(changes, [2.5, 97.5])
    change = 100 * (after.sum() / before.sum() - 1)
    return (
        f"Loss on {len(texts)} paragraphs of Wikipedia ({int(tokens.sum())} tokens), in nats per token: "
        f"{before.sum() / tokens.sum():.4f} before, {after.sum() / tokens.sum():.4f} after tuning, "
        f"a change of {change:+.2f} % [{low:+.2f}, {high:+.2f}]. Goal: at most +2 %."
    )


def squad(models: dict[str, Any], rows: int) -> list[str]:
    """F1 on questions of SQuAD 2.0 of its specialist's test split, with and without an answer."""
    from textmill.config.compose import compose
    from textmill.config.layout import Layout
    from textmill.data.conversations import ExperimentConfig, split_rows
    from textmill.evaluation.evaluator import evaluator_of
    from textmill.evaluation.evaluators.asked import predictions_of
    from textmill.metrics.bootstrap import Bootstrap, intervals
    from textmill.predicting.asked import ask
    from textmill.tasks.examples.asking import Asking

    config = compose(Layout(ROOT), ["experiment=squad2"])
    own = split_rows(ExperimentConfig(source=config.fetch.source, prepare=config.prepare), ROOT)
    frame = own.splits["test"].to_pandas().sample(n=rows, random_state=0).reset_index(drop=True)
    evaluator, asking = evaluator_of(own.task), Asking(own.task, own.state, most_characters=1500)
    names = ("f1", "f1/with answer", "f1/without answer")
    lines = ["| model | F1 | F1, answerable | F1, unanswerable |", "|---|---:|---:|---:|"]
    for title, model in models.items():
        table = predictions_of(evaluator, ask(model, asking, frame), frame, own.state)
        found = intervals(table, evaluator.metrics(own.state), Bootstrap(1000, 0.95, 0))
        lines.append(f"| {title}, {rows} rows | " + " | ".join(interval(found[name], 3) for name in names) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", type=Path)
    parser.add_argument("--specialists", type=Path)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--squad", type=int, default=0)
    parser.add_argument("--only", default=",".join(METRICS), help="applications, separated by commas")
    options = parser.parse_args()
    if options.project is None:
        with tempfile.TemporaryDirectory() as name:
            show(run("assistant", Path(name) / "project", stages=(*STAGES, "export")), options)
    else:
        show(options.project, options)


def show(project: Path, options: argparse.Namespace) -> None:
    """Print the tables of a project."""
    from textmill.predicting.asked import load_chat

    found = applications(project, options.rows, options.only.split(","))
    models = {
        "before tuning": load_chat(project / "data/pretrained"),
        "after tuning": load_chat(project / "data/exported/model"),
    }
    print("| application, metric | model | value | after tuning is better by | s a row, in batches |")
    print("|---|---|---:|---:|---:|")
    for one in found:
        print("\n".join(measure(one, models, options.specialists)), flush=True)
    parameters = sum(each.numel() for each in models["after tuning"].model.parameters())
    print(f"\nA request alone, of the tuned model ({parameters / 1e6:.0f} million parameters, float32, PyTorch):\n")
    print("| application | median of 6, ms | longest, ms |\n|---|---:|---:|")
    print("\n".join(requests(found, models["after tuning"])), flush=True)
    if SQUAD.is_file():
        print(f"\n{forgetting(models)}", flush=True)
        if options.squad:
            print("\nSQuAD 2.0, rows of the test split of `squad2`, which no tuning has seen:\n")
            print("\n".join(squad(models, options.squad)))
    history = project / "data/trained/metrics.json"
    if history.is_file():
        print(f"\nTraining: {history.read_text().strip()}")
    print("\nWith 95 % bootstrap intervals over rows; those of a difference are of paired draws.")


if __name__ == "__main__":
    main()
