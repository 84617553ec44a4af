"""Conversations from other experiments: their test rows stay test rows, and the wording carries the targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.project import NEGATIVE, PLACES, POSITIVE, SUBJECTS
from support.tiny_questions import RUNTIME, prepared_project, squad
from support.tiny_questions import TASK as QUESTIONS

from textmill.config.compose import compose
from textmill.config.layout import Layout
from textmill.config.sections.prepare import PrepareConfig
from textmill.data.conversations import ConversationsSource, read_fields
from textmill.data.prepare import prepare
from textmill.data.prepared import Prepared
from textmill.errors import UserError
from textmill.tasks.base import Task
from textmill.tasks.examples.asking import REFUSAL, Asking
from textmill.text.chat import parse_messages

ROOT = Path(__file__).resolve().parents[2]
CLASSIFICATION = {"_target_": "textmill.tasks.text_classification.TextClassification"}
REVIEWS: dict[str, Any] = {
    "task": CLASSIFICATION,
    "read": {"format": "jsonl", "columns": {"text": "text", "label": "label"}},
    "tokenizer": {"kind": "character"},
}
ASKED: dict[str, Any] = {
    "task": QUESTIONS,
    "read": {
        "format": "squad",
        "columns": {"id": "id", "question": "question", "context": "context", "answers": "answers", "source": "title"},
    },
    "splits": {"by": "group", "group": "source", "validation": 0.25, "test": 0.25},
    "duplicates": {"near": False},
}


def write_reviews(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, subject in enumerate(SUBJECTS):
        for place in PLACES:
            for word, label in ((POSITIVE[number % 8], "good"), (NEGATIVE[number % 8], "bad")):
                rows.append({"text": f"The {subject} was {word} {place} {number}", "label": label})
    rows += [{**rows[0], "text": rows[0]["text"] + "!"}, rows[1]]  # a near and an exact duplicate
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def source_of(*names: str) -> dict[str, Any]:
    files = {"reviews": "own/reviews.jsonl", "questions": "own/squad.json"}
    prepares = {"reviews": REVIEWS, "questions": ASKED}
    return {
        name: {
            "experiment": {
                "source": {"_target_": "textmill.fetching.sources.files.FilesSource", "files": {"all": files[name]}},
                "prepare": prepares[name],
            }
        }
        for name in names
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_reviews(tmp_path / "own/reviews.jsonl")
    (tmp_path / "own/squad.json").write_text(json.dumps(squad()))
    return tmp_path


def test_conversations_test_rows_are_those_of_the_specialist(root: Path) -> None:
    applications = source_of("reviews", "questions")
    provenance = ConversationsSource.from_options(applications=applications).fetch(root / "out", root)
    assert "reviews" in provenance.origin and provenance.made is not None
    reviews = Layout(root / "reviews")
    write_reviews(reviews.raw / "files/all/reviews.jsonl")
    (reviews.root / "dvc.yaml").touch()
    prepare(PrepareConfig.model_validate(REVIEWS), RUNTIME, reviews)
    for name, layout in (("reviews", reviews), ("questions", prepared_project(root / "questions"))):
        columns = list(Task.build(applications[name]["experiment"]["prepare"]["task"]).text_columns)
        for split in ("train", "validation", "test"):
            specialist = Prepared(layout.prepared).frame(split, ["id", *columns])
            rows = read_fields(root / f"out/{split}/{name}.jsonl")
            own = {tuple(row[column] for column in ["id", *columns]) for row in rows}
            theirs = set(specialist.itertuples(index=False, name=None))
            assert own == theirs if split == "test" else own <= theirs, (name, split)
            assert own, (name, split)


def test_conversations_leave_out_a_training_row_that_another_application_tests(root: Path) -> None:
    applications = source_of("reviews", "questions")
    ConversationsSource.from_options(applications=applications).fetch(root / "out", root)
    contexts = [row["context"] for row in read_fields(root / "out/test/questions.jsonl")]
    context = max(contexts, key=len)
    (root / "own/more.jsonl").write_text(json.dumps({"text": f"{context} again", "label": "good"}) + "\n")
    for names, expected in ((("reviews",), True), (("reviews", "questions"), False)):
        applications = source_of(*names)
        applications["reviews"]["experiment"]["source"]["files"]["train"] = "own/more.jsonl"
        out = root / "_".join(names)
        ConversationsSource.from_options(applications=applications).fetch(out, root)
        texts = [row["text"] for row in read_fields(out / "train/reviews.jsonl")]
        assert any(context in text for text in texts) is expected


def test_conversations_rows_are_drawn_in_groups_and_alike_each_time(root: Path) -> None:
    applications = source_of("questions")
    applications["questions"] |= {"together": "context", "rows": {"train": 7, "test": 5}}
    for out in ("one", "two"):
        ConversationsSource.from_options(applications=applications).fetch(root / out, root)
    first, second = ((root / out / "train/questions.jsonl").read_text() for out in ("one", "two"))
    assert first == second
    rows = read_fields(root / "one/train/questions.jsonl")
    assert 0 < len(rows) <= 7
    whole = {"questions": source_of("questions")["questions"]}
    ConversationsSource.from_options(applications=whole).fetch(root / "whole", root)
    chosen = {row["context"] for row in rows}
    expected = [row for row in read_fields(root / "whole/train/questions.jsonl") if row["context"] in chosen]
    assert rows == expected, "whole groups, in their order"


@pytest.mark.parametrize(
    ("name", "options", "row", "answer"),
    [
        ("text_classification.TextClassification", {}, {"text": "A film.", "label": "good"}, "good"),
        (
            "translation.Translation",
            {"target_language": "de"},
            {"text": "Save {0}", "translation": "{0}\nsichern"},
            "{0} sichern",
        ),
        ("summarisation.Summarisation", {}, {"text": "Long text.", "summary": "Short."}, "Short."),
        (
            "question_answering.QuestionAnswering",
            {},
            {"question": "Which?", "context": "the axis", "answers": '[{"text": "axis", "start": 4}]'},
            "axis",
        ),
        ("question_answering.QuestionAnswering", {}, {"question": "Which?", "context": "x", "answers": None}, REFUSAL),
        ("re_ranking.ReRanking", {}, {"text_a": "sum", "text_b": "Adds.", "relevant": "1"}, "yes"),
    ],
)
def test_asking_words_each_task(name: str, options: dict[str, Any], row: dict[str, Any], answer: str) -> None:
    task = Task.build({"_target_": f"textmill.tasks.{name}", **options})
    asking = Asking(task, {"labels": ["bad", "good"]})
    question, answered = asking.conversation(row, answered=True)
    assert answered == {"role": "assistant", "content": answer}
    assert all(row[column] in question["content"] for column in task.text_columns)
    assert "German" in question["content"] or not options
    shots = asking.conversation(row, examples=[row, row])
    assert [message["role"] for message in shots] == ["user", "assistant"] * 2 + ["user"]
    parse_messages(json.dumps(shots))


def test_asking_a_bad_wording_or_another_task_is_one_error() -> None:
    task = Task.build(CLASSIFICATION)
    with pytest.raises(UserError, match="the prompt cannot be filled") as error:
        Asking(task, {"labels": ["a", "b"]}, "Judge {texts}")
    assert "{text}" in str(error.value)
    other = Task.build({"_target_": "textmill.tasks.language_modelling.LanguageModelling"})
    with pytest.raises(UserError, match="no wording of a question for the task language_modelling"):
        Asking(other, {})


def test_experiment_assistant_has_the_sources_and_splits_of_its_applications() -> None:
    found = compose(Layout(ROOT), ["experiment=assistant"]).fetch.source["applications"]
    names = {
        "translation": "translation",
        "summaries": "summarisation",
        "questions": "question_answering",
        "reviews": "movie_reviews",
        "matches": "re_ranking",
    }
    assert found.keys() == names.keys()
    for application, experiment in names.items():
        own = compose(Layout(ROOT), [f"experiment={experiment}"])
        part = found[application]["experiment"]
        assert part["source"] == own.fetch.source
        for key in ("read", "splits", "cleaning", "duplicates"):
            mine = getattr(PrepareConfig.model_validate(part["prepare"]), key)
            assert mine == getattr(own.prepare, key), (application, key)


def test_an_unknown_experiment_is_one_error(tmp_path: Path) -> None:
    for name in ("conf", "params.yaml", "dvc.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    with pytest.raises(UserError, match=r"there is no conf/experiment/nowhere\.yaml"):
        compose(Layout(tmp_path), ["experiment=assistant", "+title='${experiment:nowhere}'"])
