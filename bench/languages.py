"""Files in other languages: what `textmill init` proposes for them without a word of settings, beside TF-IDF.

`python -m bench.languages` writes one CSV a language, of sentences of the package chatterbot-corpus (BSD) with the
topic as label, in throw-away projects. `--only japanese,spanish` names some.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from bench.applications import shown
from bench.semantic import ROOT, STAGES

PACKAGE = "chatterbot-corpus==1.3.3"
SHA256 = "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154"
LANGUAGES = ("japanese", "spanish", "ukrainian")
LEAST = 20
"""Rows of the smallest topic that is taken."""


def sentences(language: str, folder: Path) -> list[tuple[str, str]]:
    """Return the different sentences of a language with their topics."""
    from textmill.config.layout import Layout
    from textmill.fetching.sources.archives import open_archive
    from textmill.fetching.sources.package_index import download

    rows: dict[str, str] = {}
    with open_archive(download(PACKAGE, SHA256, "wheel", Layout(ROOT))) as archive:
        names = [name for name in archive.names if f"/{language}/" in name and name.endswith(".yml")]
        archive.extract(names, folder)
    for path in sorted(folder.glob("*.yml")):
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            for turn in turns:
                rows.setdefault(" ".join(str(turn).split()), path.stem)
    topics = list(rows.values())
    return [(text, topic) for text, topic in rows.items() if topics.count(topic) >= LEAST]


def measure(language: str, folder: Path) -> None:
    """Print the row of a language."""
    (folder / "corpus").mkdir()
    rows = sentences(language, folder / "corpus")
    project = folder / "project"
    shutil.copytree(ROOT / "conf", project / "conf")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(ROOT / name, project / name)
    (project / "data/own").mkdir(parents=True)
    with (project / f"data/own/{language}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("sentence", "topic"), *rows])
    environment = {**os.environ, "TEXTMILL_HOME": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{project}/mlflow.db"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=project, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        sys.stderr.write(done.stdout)
        return done.stdout

    said = run("textmill", "init", f"data/own/{language}.csv", "--yes")
    found = next(line for line in said.splitlines() if line.startswith("Languages:")).removeprefix("Languages: ")
    for stage in STAGES:
        run(
            sys.executable,
            "-m",
            f"textmill.stages.{stage}",
            *([f"experiment={language}"] if stage == "compose" else []),
        )
    figures: dict[str, Any] = json.loads((project / "data/evaluation/figures.json").read_text())
    model = yaml.safe_load((project / f"conf/experiment/{language}.yaml").read_text())["defaults"]
    chosen = next(entry["override /model"] for entry in model if "override /model" in entry)
    baselines = figures["baselines"]
    best = max(baselines, key=lambda name: baselines[name]["weighted_f1"]["value"])
    cells = [found.rstrip("."), f"{len(rows)}, {len({topic for _, topic in rows})} topics", chosen]
    cells += [shown(figures["test"]["weighted_f1"], 3), f"{best} {shown(baselines[best]['weighted_f1'], 3)}"]
    cells += [shown(figures["difference"][best]["weighted_f1"], 3, "+")]
    print(f"| {language} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(LANGUAGES), help="folders of the package, separated by commas")
    print(
        "| file | found | rows | proposed | weighted F1 | best baseline | difference |\n|---|---|---|---|---|---|---|"
    )
    for language in parser.parse_args().only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            measure(language, Path(folder))
    print("\nTest split, one seed, with 95 % bootstrap intervals; the difference is paired.")


if __name__ == "__main__":
    main()
