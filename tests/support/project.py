"""A throw-away project: tiny data, a tiny model, and how to run commands in it."""

from __future__ import annotations

import csv
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from support.covered import counts_pipelines

POSITIVE = ["wonderful", "great", "lovely", "delightful", "superb", "charming", "brilliant", "enjoyable"]
NEGATIVE = ["awful", "terrible", "boring", "dreadful", "poor", "clumsy", "tedious", "annoying"]
SUBJECTS = ["film", "story", "plot", "actor", "scene", "ending", "music", "dialogue", "camera", "script", "picture"]
PLACES = ["here", "today", "again", "overall", "really", "somehow", "throughout", "honestly", "mostly", "perhaps"]


LENIENT_GATE = """
gate:
  resamples: 200
  min_unseen: 20
  difference: {margin: 0.2}
  slices: {margin: 0.5}
  budgets: {latency: {ratio: 1000}, rows: 5, repeats: 1}
"""
"""A gate that a few rows and a busy machine can pass."""


def inherited_environment() -> dict[str, str]:
    """This process's environment without the store that MLflow noted in it when a test or a fixture opened one."""
    return {
        name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    }


@dataclass(frozen=True)
class Project:
    """A throw-away project, and how to run commands in it.

    Attributes:
        root: Its folder.
        own_code: Whether commands import the copy of the source below `root`, so that an edit of it counts.
    """

    root: Path
    own_code: bool = False

    def run(
        self, *command: str, check: bool = True, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of this environment in the project's root."""
        binaries = str(Path(sys.executable).parent)
        path = {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
        environment = {**inherited_environment(), **path, **(env or {})}
        if command[0] == "dvc" and not counts_pipelines():
            environment.pop("COVERAGE_PROCESS_CONFIG", None)
        if self.own_code:
            environment["PYTHONPATH"] = str(self.root / "src")
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=900)
        if check and done.returncode:
            raise AssertionError(f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def repro(self, *arguments: str) -> list[str]:
        """Run `dvc repro` and give the stages that really ran."""
        return stages_run(self.run("dvc", "repro", *arguments).stdout)

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace a text that must be there."""
        file = self.root / path
        text = file.read_text()
        assert old in text, f"{old!r} is not in {path}"
        file.write_text(text.replace(old, new))

    def commit(self, message: str) -> None:
        """Commit everything that git does not ignore."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)


def stages_run(output: str) -> list[str]:
    """The stages that a `dvc` output says it ran, in order."""
    return re.findall(r"Running stage '([a-z]+)'", output)


def write_reviews(path: Path, rows: int = 240) -> None:
    """A made-up CSV of reviews in which single words decide the sentiment."""
    chooser = random.Random(5)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for index in range(rows):
            positive = index % 2 == 0
            words = [chooser.choice(SUBJECTS) for _ in range(chooser.randint(3, 9))] + [chooser.choice(PLACES)]
            words += chooser.sample(POSITIVE if positive else NEGATIVE, 2)
            chooser.shuffle(words)
            writer.writerow([f"{' '.join(words)} {index}", "good" if positive else "bad"])


def write_tiny_bert(folder: Path) -> None:
    """A BERT of two layers with random weights and a word tokenizer, as transformers saves them."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: index for index, word in enumerate([*special, *POSITIVE, *NEGATIVE, *SUBJECTS, *PLACES])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)


DATA = """# @package _global_
fetch:
  source:
    _target_: textmill.fetching.sources.files.FilesSource
    files: {all: data/own/reviews.csv}
prepare:
  read:
    format: csv
    columns: {text: text, label: label}
  splits: {validation: 0.2, test: 0.3}
"""

EXPERIMENT = """# @package _global_
defaults:
  - override /data: tiny
  - override /model: tiny
name: tiny-reviews
train:
  max_epochs: 2
  optimizer:
    learning_rate: 0.01
evaluate:
  resamples: 100
export:
  int8_tolerance: 0.5
runtime:
  plan: false
"""


def build_project(root: Path, repository_root: Path) -> Project:
    """Lay a git and DVC repository at `root` with this checkout's pipeline and the tiny experiment."""
    project = Project(root)
    root.mkdir(parents=True)
    for name in ("conf", "src", ".dvc", "params.yaml", "dvc.yaml", ".dvcignore", ".gitignore", "constraints.txt"):
        source = repository_root / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "cache", "tmp")
            shutil.copytree(source, root / name, ignore=ignored)
        else:
            shutil.copy(source, root / name)
    (root / "data").mkdir()
    (root / "data/own").mkdir()
    shutil.copy(repository_root / "data/own/README.md", root / "data/own")
    write_reviews(root / "data/own/reviews.csv")
    write_tiny_bert(root / "tiny_bert")
    (root / "conf/data/tiny.yaml").write_text(DATA)
    model = (root / "conf/model/minilm.yaml").read_text()
    model = re.sub(r"(?m)^pretrained: .*$", "pretrained: ./tiny_bert", model)
    (root / "conf/model/tiny.yaml").write_text(re.sub(r"(?m)^pretrained_sha256: .*\n", "", model))
    (root / "conf/experiment/tiny.yaml").write_text(EXPERIMENT)
    project.edit("params.yaml", "experiment: movie_reviews", "experiment: tiny")
    project.run("git", "init", "--quiet", "--initial-branch=main")
    project.commit("A tiny project")
    return project
