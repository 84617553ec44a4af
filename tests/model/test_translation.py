"""Translation through the stages: trained, measured beside its rivals, exported, registered, served."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sacrebleu
from support.tiny_pairs import MODEL, TASK, WORDS, pairs, prepared_project, run_stages
from support.tiny_text import RUNTIME
from typer.testing import CliRunner

from textmill.cli.main import app
from textmill.config.layout import Layout
from textmill.config.sections.register import RegisterConfig
from textmill.data.prepared import Prepared
from textmill.data.tokenizing import load_tokenizer
from textmill.errors import UserError
from textmill.files import read_json
from textmill.models.losses.likelihood import IGNORED
from textmill.predicting.loading import load_predictor
from textmill.predicting.text_generator import TextGenerator
from textmill.tasks.translation import Translation


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    rows: list[dict[str, Any]] = pairs(700)
    rows[5:5] = [
        {"text": "", "translation": "kano"},
        {"text": "a dog", "translation": None},
        {"text": "dog", "translation": "kano " * 40},
    ]
    layout = prepared_project(tmp_path_factory.mktemp("pairs") / "project", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run_stages(layout, TASK, MODEL)
    return layout


def test_pairs_that_are_no_use_are_rejected_with_row_and_reason(exported: Layout) -> None:
    lines = (exported.prepared / "rejects.csv").read_text().splitlines()[1:]
    found = [line.split(",")[1:4] for line in lines]
    assert [row for row, _, _ in found] == ["6", "7", "8"]
    assert found[0][1:] == ["text", "is empty"] and found[1][1:] == ["translation", "is empty"]
    assert "beyond 4 times" in lines[2]


def test_sources_and_targets_share_a_tokenizer_and_end_with_the_end(exported: Layout) -> None:
    prepared = Prepared(exported.prepared)
    tokenizer = load_tokenizer(prepared.tokenizer_folder)
    end = prepared.state["end_of_text"]
    frame = prepared.frame("test")
    for row in frame.to_dict("records"):
        for ids, text in ((row["input_ids"], row["text"]), (row["labels"], row["translation"])):
            assert ids[-1] == end and tokenizer.decode(list(ids[:-1])) == text
        assert row["length"] == len(row["input_ids"]) + len(row["labels"])
    assert len(tokenizer.encode(" granda").ids) == 1, "targets were read when the tokenizer was trained"


def test_a_text_in_the_language_of_the_other_is_rejected() -> None:
    import pandas as pd

    task = Translation.from_options(target_language="de", check_languages=True)
    english, german = "The dog runs across the green meadow.", "Der Hund rennt über die grüne Wiese."
    frame = pd.DataFrame({"text": [english, german, "OK", ""], "translation": [german, german, "OK", german]})
    found = [(reject.row, reject.column, reject.reason) for reject in task.check(frame, None)]
    assert found == [(1, "text", "is not in the language en"), (3, "text", "is empty")]


def test_collate_hides_padding_from_the_loss() -> None:
    task = Translation.from_options(target_language="de")
    batch = task.collate({"input_ids": [[5, 6, 0], [7, 0]], "labels": [[8, 0], [9, 4, 3, 0]]})
    assert batch["input_ids"].tolist() == [[5, 6, 0], [7, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[8, 0, IGNORED, IGNORED], [9, 4, 3, 0]]


def test_texts_beyond_the_length_are_cut_and_a_cut_target_has_no_end(exported: Layout) -> None:
    import pandas as pd

    prepared = Prepared(exported.prepared)
    task = Translation.from_options(**{name: value for name, value in TASK.items() if name != "_target_"})
    frame = pd.DataFrame({"text": ["dog " * 60], "translation": ["kano " * 60]})
    found = task.encode(frame, load_tokenizer(prepared.tokenizer_folder), prepared.state, 10)
    end = prepared.state["end_of_text"]
    assert len(found["input_ids"][0]) == len(found["labels"][0]) == 10
    assert found["input_ids"][0][-1] == end and end not in found["labels"][0]


def test_it_learns_and_stands_beside_translation_memory_and_copy(exported: Layout) -> None:
    import pandas as pd

    metrics = read_json(exported.evaluation / "metrics.json")
    assert list(metrics["test"]) == ["bleu", "chrf"]
    assert set(metrics["baselines"]) == {"translation_memory", "copy"}
    ours, memory, copy = (
        part["bleu"]["value"]
        for part in (metrics["test"], *(metrics["baselines"][name] for name in metrics["baselines"]))
    )
    assert ours > memory > copy
    predictions = pd.read_parquet(exported.evaluation / "predictions.parquet")
    whole = sacrebleu.corpus_bleu(predictions["prediction"].tolist(), [predictions["translation"].tolist()])
    assert ours == pytest.approx(whole.score, abs=1e-5)
    assert metrics["test"]["bleu"]["low"] < ours <= metrics["test"]["bleu"]["high"]
    report = (exported.evaluation / "report.html").read_text()
    assert "tok:13a" in report and "Translations" in report
    errors = pd.read_csv(exported.evaluation / "errors.csv")
    assert errors["chrf"].is_monotonic_increasing


def test_the_exported_folder_translates_as_it_did_at_export(exported: Layout) -> None:
    folder = exported.exported / "model"
    stored = read_json(exported.exported / "examples.json")
    writer = load_predictor(folder)
    assert isinstance(writer, TextGenerator)
    assert writer.predict(stored["inputs"]) == stored["outputs"]
    assert set(stored["outputs"][0]) == {"translation"}
    assert read_json(exported.exported / "metrics.json")["texts_agree"] >= 0.9
    assert "textmill predict" in (folder / "README.md").read_text()
    assert not list(folder.glob("*.onnx"))


def test_the_commands_translate_and_do_not_go_on(exported: Layout) -> None:
    folder = str(exported.exported / "model")
    runner = CliRunner()
    done = runner.invoke(app, ["predict", "a big dog runs", "--model", folder, "--json"])
    assert done.exit_code == 0, done.output
    [answer] = json.loads(done.output)
    assert set(answer["translation"].split()) <= set(WORDS.values())
    wrong = runner.invoke(app, ["generate", "a dog", "--model", folder])
    assert isinstance(wrong.exception, UserError) and "textmill predict" in str(wrong.exception)
    for value, reason in (
        ("  ", "empty"),
        ({"txt": "a"}, "there is no text among"),
        (3, "neither a text nor a record"),
    ):
        with pytest.raises(UserError, match=reason):
            load_predictor(exported.exported / "model").predict([value])


@pytest.mark.slow
def test_a_fresh_process_reproduces_it_before_it_is_registered(
    exported: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    from textmill.stages import register

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    register.main(RegisterConfig.model_validate({"task": TASK, "name": "tiny-pairs"}), RUNTIME, exported)
    assert read_json(exported.registered / "registered.json")["version"] in (1, "1")


def test_a_model_that_does_not_write_about_a_source_is_refused() -> None:
    from textmill.models.decoder_model import DecoderModel

    task = Translation.from_options(target_language="de")
    with pytest.raises(UserError, match="is not an encoder-decoder"):
        task.build_network(DecoderModel.from_options(), None, {"vocabulary_size": 9, "end_of_text": 0})
