"""What a newcomer meets first: progress lines, hints, prompts and answers."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from textmill.cli import generate, report, summary
from textmill.config.layout import Layout
from textmill.errors import UserError
from textmill.evaluation.brief import write_brief, write_pdf
from textmill.evaluation.measurements import Measurements
from textmill.files import write_json
from textmill.metrics.bootstrap import Interval
from textmill.tasks.instruction_tuning import InstructionTuning
from textmill.tasks.language_modelling import LanguageModelling
from textmill.text.occlusion import shown_gains, without_each_word
from textmill.training import progress


def test_progress_line_shows_the_mean_speed_since_the_last_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter([100.0, 100.0, 104.0, 111.0, 112.0, 121.0])
    monkeypatch.setattr("textmill.training.progress.time.monotonic", lambda: next(clock))
    lines = progress.PlainProgress()
    with caplog.at_level(logging.INFO, "textmill"):
        lines.begin(total=100, done=10)
        for done, tokens in ((11, 5_000), (12, 5_100), (20, 6_100), (21, 60_000), (30, 61_100)):
            lines.advance(done, 0.5, tokens)
    speeds = [match[1] for line in caplog.messages if (match := re.search(r"([\d,]+) tokens/s", line))]
    assert speeds == ["100", "5,500"]  # tokens of an earlier run do not count, nor is one step a speed


class Echo:
    """A generator that answers with a fixed text."""

    def __init__(self, task: Any) -> None:
        self.task = task

    def stream(self, prompt: str, options: Any) -> Any:
        yield from ("It is ", "blue.")


@pytest.mark.parametrize(
    ("task", "shown"), [(InstructionTuning, "Sky?\n\nIt is blue.\n"), (LanguageModelling, "Sky?It is blue.\n")]
)
def test_generate_separates_an_answer_from_its_prompt_but_not_a_continuation(
    task: Any, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    between = "\n\n" if task.answers_prompt else ""
    generate._stream(Echo(task), "Sky?", between, None)  # type: ignore[arg-type]
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("task", "inputs", "command"),
    [
        ("text_classification.TextClassification", [{"text": "It's fine"}], "textmill predict 'It'\"'\"'s fine'"),
        (
            "semantic_search.SemanticSearch",
            [{"text_a": "a", "text_b": "b"}],
            'textmill predict \'{"text_a": "a", "text_b": "b"}\'',
        ),
        ("translation.Translation", [{"text": "x" * 300}, {"text": "A dog runs."}], "textmill predict 'A dog runs.'"),
        ("language_modelling.LanguageModelling", [{"text": "To be"}], "textmill generate 'To be'"),
        ("text_classification.TextClassification", [{"text": "x" * 300}], "textmill predict --file FILE"),
    ],
)
def test_hint_of_summary_fits_the_task_with_an_input_of_its_own(
    tmp_path: Any, task: str, inputs: list[dict[str, str]], command: str
) -> None:
    layout = Layout(tmp_path)
    write_json(layout.exported / "model/textmill.json", {"task": {"_target_": f"textmill.tasks.{task}"}})
    write_json(layout.exported / "examples.json", {"inputs": inputs})
    assert summary._command(layout) == command


def test_promoted_version_is_no_challenger_in_summary() -> None:
    now: dict[str, Any] = {"problem": None, "aliases": {"challenger": "2", "champion": "2"}}
    text = summary._standing({"name": "films", "version": "2"}, now)
    assert "alias champion." in text and "challenger" not in text
    now["aliases"]["challenger"] = "3"
    assert "alias champion." in summary._standing({"name": "films", "version": "2"}, now)


def test_decision_has_the_main_metric_and_the_lead_over_the_strongest_baseline() -> None:
    def metrics(value: float) -> dict[str, Interval]:
        return {"loss": Interval(value, value - 0.1, value + 0.1)}

    measured = Measurements(
        main="loss",
        test=metrics(1.0),
        baselines={"weak": metrics(3.0), "strong": metrics(1.5)},
        difference={"weak": metrics(-2.0), "strong": metrics(-0.5)},
        slices=[],
        higher_is_better={"loss": False},
    )
    assert measured.decision() == pytest.approx(
        {
            "loss": 1.0,
            "loss_low": 0.9,
            "loss_high": 1.1,
            "lead_over_baseline": 0.5,
            "lead_over_baseline_low": 0.4,
            "lead_over_baseline_high": 0.6,
        }
    )


def test_first_page_says_in_one_sentence_how_good_the_model_is(tmp_path: Any) -> None:
    evaluation = SimpleNamespace(
        measurements=Measurements(
            main="weighted_f1",
            test={"weighted_f1": Interval(0.845, 0.828, 0.863)},
            baselines={"tfidf": {"weighted_f1": Interval(0.752, 0.731, 0.773)}},
            difference={"tfidf": {"weighted_f1": Interval(0.093, 0.072, 0.115)}},
            slices=[],
            higher_is_better={"weighted_f1": True},
        ),
        task=SimpleNamespace(name="text_classification"),
        model=SimpleNamespace(name="pretrained_encoder"),
        rows={"train": 8483, "validation": 530, "test": 4},
        warnings=["The label $x$ is never predicted."],
        predictions=pd.DataFrame({"label": ["a", "a", "b", "b"], "prediction": ["a", "b", "b", "b"]}),
        training={"train_seconds": 264.0, "samples_per_second": 65.0},
    )
    brief = write_brief(evaluation, "Reviews & films", 0.95)  # type: ignore[arg-type]
    assert brief["Quality"] == (
        "Its weighted F1 is 0.845 (95 % interval 0.828 to 0.863). That is better than the strongest baseline, TF-IDF "
        "(0.752): lead +0.093 (95 % interval +0.072 to +0.115)."
    )
    assert brief["Errors"] == (
        "The label $x$ is never predicted. 1 of 4 answers are wrong. "
        "The most frequent error is b where a is right (1 rows)."
    )
    assert "4.4 minutes" in brief["Cost"]
    for name in ("one.pdf", "two.pdf"):
        write_pdf(tmp_path / name, "Reviews & films", brief, {})
    assert (tmp_path / "one.pdf").read_bytes().startswith(b"%PDF-")
    assert (tmp_path / "one.pdf").read_bytes() == (tmp_path / "two.pdf").read_bytes()


def test_report_without_a_display_prints_its_path(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="there is no report yet"):
        report.report()
    (tmp_path / "data/evaluation").mkdir(parents=True)
    (tmp_path / "data/evaluation/report.pdf").touch()
    report.report(pdf=True)
    assert capsys.readouterr().out.strip() == str(tmp_path / "data/evaluation/report.pdf")


def test_words_of_a_text_are_left_out_one_by_one_in_any_script() -> None:
    assert without_each_word("The film,  not good", 3) == (
        ["The", "film,", "not"],
        ["film, not good", "The not good", "The film, good"],
    )
    assert without_each_word("好电影", 9) == (["好", "电", "影"], ["电影", "好影", "好电"])
    assert without_each_word("one", 9) == ([], [])
    assert shown_gains(["a", "b", "c"], [0.1, -0.5, 0.3], 2) == "b -0.50, c +0.30"
