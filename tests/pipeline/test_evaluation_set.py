"""Versions are judged on their own test rows, from DVC's cache, the workspace or the remote."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.project import NEGATIVE, PLACES, POSITIVE, SUBJECTS, Project

from textmill.config.layout import Layout
from textmill.config.sections.evaluate import EvaluateConfig
from textmill.config.sections.export import ExportConfig
from textmill.config.sections.gate import DifferenceConfig, GateConfig
from textmill.config.sections.train import TrainConfig
from textmill.files import folder_digests
from textmill.registry.runs.store import open_client

pytestmark = pytest.mark.slow

GATE = """
gate:
  resamples: 200
  difference: {margin: 0.5}
  slices: {margin: 0.5}
  budgets: {latency: {ratio: 1000}, rows: 5, repeats: 1}
"""


def other_tokenizer(folder: Path) -> None:
    """The same network over a tokenizer that gives its words other ids."""
    from tokenizers import Tokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *reversed([*POSITIVE, *NEGATIVE, *SUBJECTS, *PLACES])]
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] = {word: index for index, word in enumerate(words)}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def two_tokenizers(built_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Version 1, version 2 with another tokenizer on the same rows, then other rows in the workspace."""
    project = Project(tmp_path_factory.mktemp("tokenizers") / "project")
    ignored = shutil.ignore_patterns("mlruns", "mlflow.db*")
    shutil.copytree(built_project.root, project.root, symlinks=True, ignore=ignored)
    with (project.root / "params.yaml").open("a") as file:
        file.write(GATE)
    project.run("dvc", "repro", "--force", "--downstream", "train")
    project.commit("Version 1")
    shutil.copytree(project.root / "tiny_bert", project.root / "other_bert")
    other_tokenizer(project.root / "other_bert")
    project.edit("conf/model/tiny.yaml", "./tiny_bert", "./other_bert")
    project.repro()
    project.commit("Version 2, with another tokenizer")
    project.edit("conf/data/tiny.yaml", "test: 0.3", "test: 0.3, seed: 5")
    project.repro("prepare")
    return project


@pytest.fixture
def versions(two_tokenizers: Project, tmp_path: Path) -> Project:
    """A copy of the test's own; artefacts stay where they are."""
    return Project(Path(shutil.copytree(two_tokenizers.root, tmp_path / "project", symlinks=True)))


def test_versions_with_other_tokenizers_are_judged_on_their_own_rows(versions: Project) -> None:
    """The workspace holds a third set of rows; neither promotion nor comparison reads it."""
    before = folder_digests(versions.root / "data/prepared")
    first = json.loads(versions.run("textmill", "promote", "1", "--json").stdout)
    assert first["outcome"] == "moved"
    second = json.loads(versions.run("textmill", "promote", "2", "--json").stdout)
    assert second["outcome"] == "moved", second["words"]
    sets = [decision["decision"]["evaluation_set"] for decision in (first, second)]
    assert sets[0] == sets[1]
    digests = [check["words"] for check in second["decision"]["checks"] if check["name"] == "digest"]
    assert len(digests) == 2
    assert all(sets[0]["sha256"][:12] in words for words in digests)
    overlap = next(check for check in second["decision"]["checks"] if check["name"] == "overlap")
    assert (overlap["status"], overlap["figures"]["rows"]) == ("pass", 0)
    compared = json.loads(versions.run("textmill", "compare", "1", "2", "--json").stdout)
    assert compared["how"] == "Both predicted the 72 rows of the test split now, with the graphs that serve."
    assert compared["digests"]["test"][0] != compared["digests"]["test"][1]  # other token ids
    assert compared["digests"]["test rows"] == [sets[0]["sha256"]] * 2
    assert folder_digests(versions.root / "data/prepared") == before


def test_version_with_other_rows_than_the_champion_needs_unseen_ones(versions: Project) -> None:
    versions.run("textmill", "promote", "1")
    versions.repro()
    unclear = versions.run("textmill", "promote", "3", "--json", check=False)
    assert unclear.returncode == 4, unclear.stderr
    found = json.loads(unclear.stdout)
    numbers = r"\d+ of 72 rows of the test split of version 3 are unseen \(version 1 has seen \d+\)"
    assert re.match(numbers + r", 100 are required: \d+ are missing; ", found["words"]), found["words"]
    today, proven = found["decision"]["unseen"]
    assert 0 < today["seen"]["version 1"] == 72 - today["unseen"]
    assert proven["seen"].keys() == {"version 3"}


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def test_data_comes_from_the_remote_when_the_cache_lacks_it(versions: Project, tmp_path: Path) -> None:
    versions.run("dvc", "remote", "add", "--default", "store", str(tmp_path / "remote"))
    lock = versions.root / "dvc.lock"
    present = lock.read_text()
    lock.write_text(versions.run("git", "show", "HEAD~1:dvc.lock").stdout)
    versions.run("dvc", "push", "--quiet", "prepare")
    lock.write_text(present)
    cache = versions.root / ".dvc/cache/files/md5"
    shutil.rmtree(cache)
    promoted = versions.run("textmill", "promote", "1", "--dry-run", "--json")
    assert json.loads(promoted.stdout)["verdict"] == "pass"
    fetched = {path.relative_to(cache): path for path in cache.rglob("*") if path.is_file()}
    assert 0 < len(fetched) < 10, "only what the gate reads"
    for path in fetched.values():
        damage(path)
    promoted = versions.run("textmill", "promote", "1", "--dry-run", "--json")
    assert json.loads(promoted.stdout)["verdict"] == "pass"
    shutil.rmtree(cache)
    shutil.rmtree(tmp_path / "remote")
    assert_one_line(versions, "the DVC remote does not have them")


def test_data_that_is_nowhere_is_named_with_the_remedy(versions: Project) -> None:
    cache = versions.root / ".dvc/cache/files/md5"
    kept = Path(shutil.copytree(cache, versions.root / "kept"))
    shutil.rmtree(cache)
    assert_one_line(versions, "there is no DVC remote")
    shutil.copytree(kept, cache)
    listing = json.loads(prepared_listing(versions, cache).read_text())
    shard = next(entry["md5"] for entry in listing if entry["relpath"].startswith("test/"))
    damage(cache / shard[:2] / shard[2:])
    assert_one_line(versions, f"{cache / shard[:2] / shard[2:]} in DVC's cache is damaged")
    # In the workspace the rows of version 2 may still be; its own are found there
    shutil.rmtree(cache)
    versions.run("git", "checkout", "--quiet", "--force", "HEAD")
    shutil.rmtree(versions.root / "data/prepared")
    shutil.copytree(kept, cache)
    versions.run("dvc", "checkout", "--quiet", "--force", "prepare")
    shutil.rmtree(cache)
    promoted = versions.run("textmill", "promote", "2", "--dry-run", "--json")
    assert json.loads(promoted.stdout)["verdict"] == "pass"


def prepared_listing(project: Project, cache: Path) -> Path:
    """The list of files of version 1's prepared data."""
    import yaml

    lock: dict[str, Any] = yaml.safe_load(project.run("git", "show", "HEAD~1:dvc.lock").stdout)
    digest = lock["stages"]["prepare"]["outs"][0]["md5"]
    return cache / digest[:2] / digest[2:]


def assert_one_line(project: Project, says: str) -> None:
    done = project.run("textmill", "promote", "1", "--dry-run", check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "the test rows of tiny-reviews/1 are not available" in done.stderr
    assert says in done.stderr, done.stderr
    assert "Run `dvc pull`" in done.stderr
    assert re.search(r"check out commit \w{12} and run `dvc repro prepare`", done.stderr)


# -- language models ---------------------------------------------------------------------------


def test_language_models_with_other_tokenizers_are_compared_by_byte(tmp_path: Path) -> None:
    """Two models of 300 and of 270 tokens on the same plays; then by a metric that counts tokens."""
    from support import tiny_text

    from textmill.errors import UserError
    from textmill.registry.promotion.measuring import fetch_verified, measure

    root = tmp_path / "project"
    for size in (300, 270):
        version = register_plays(root, size)
    config = GateConfig.model_validate({"budgets": {"rows": 2, "repeats": 1}})
    with open_client(tiny_text.RUNTIME, Layout(root)) as client:
        versions = [fetch_verified(client.get_model_version("tiny-plays", number), Layout(root)) for number in "21"]
        assert version == "2"
        inputs = measure(versions, Layout(root), config)
        per_token = config.model_copy(update={"difference": DifferenceConfig(metric="loss")})
        with pytest.raises(UserError, match=r"version 2 and version 1 divide the texts into different tokens"):
            measure(versions, Layout(root), per_token)
    assert inputs.champion is not None
    assert inputs.champion.digest == inputs.digest == inputs.challenger.digest
    tables = inputs.challenger.predictions, inputs.champion.predictions
    assert len(tables[0]) == 6, "documents are cut into passages"
    assert (tables[0]["id"] == tables[1]["id"]).all()
    assert (tables[0]["targets"] < tables[1]["targets"]).sum() == 0
    assert (tables[0]["targets"] != tables[1]["targets"]).any()
    sizes = inputs.frame["text"].map(lambda text: len(text.encode()))
    for table in tables:
        assert (table["bytes"] == sizes).all(), "bits per byte count the same bytes"
    for table in tables:
        bits = table["nll"].sum() / math.log(2) / sizes.sum()
        assert measured_bits(inputs.metrics, table) == pytest.approx(bits, rel=1e-6)
        assert 0 < bits < 3


def measured_bits(metrics: Any, table: Any) -> float:
    from textmill.metrics.bootstrap import Bootstrap, intervals

    return intervals(table, metrics, Bootstrap(50, 0.9, 1))["bits_per_byte"].value


def register_plays(root: Path, vocabulary_size: int) -> str:
    """Prepare, train, export and register; DVC's cache keeps the prepared data."""
    from support import tiny_text

    from textmill.registry.runs.tracking import connect, stage_run
    from textmill.registry.versions import versions
    from textmill.stages import evaluate, export, train

    project = Project(root)
    shutil.rmtree(root / "data", ignore_errors=True)
    layout = tiny_text.prepared_project(root, tokenizer={"kind": "byte_bpe", "vocabulary_size": vocabulary_size})
    if not (root / ".git").is_dir():
        project.run("git", "init", "--quiet")
        project.run("dvc", "init", "--quiet")
        (root / ".gitignore").write_text("/data/\n/mlruns/\n/mlflow.db*\n")
    (root / "dvc.yaml").write_text("stages: {prepare: {cmd: 'true', outs: [data/prepared]}}\n")
    project.run("dvc", "commit", "--force", "--quiet")
    project.commit(f"{vocabulary_size} tokens")
    plugins = {"task": tiny_text.TASK, "model": tiny_text.MODEL}
    train.main(TrainConfig.model_validate(tiny_text.train_values(max_epochs=1)), tiny_text.RUNTIME, layout)
    measured = {"seed": 1, "resamples": 100, "min_slice": 5, **plugins}
    evaluate.main(EvaluateConfig.model_validate(measured), tiny_text.RUNTIME, layout)
    exported = {"title": "Tiny plays", "max_length": 32, **plugins}
    export.main(ExportConfig.model_validate(exported), tiny_text.RUNTIME, layout)
    connect(tiny_text.RUNTIME, layout)
    with stage_run("export", layout, tiny_text.RUNTIME, upstream=None, fingerprint=str(vocabulary_size)) as run:
        folder, examples = layout.exported / "model", layout.exported / "examples.json"
        return versions.register("tiny-plays", folder, examples, run.run_id, layout).version
