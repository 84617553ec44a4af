"""Questions from files of SQuAD's form and from docstrings, and whole groups in one split."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from textmill.errors import UserError
from textmill.fetching.numpydoc import read_numpydoc
from textmill.fetching.sources.archives import open_archive
from textmill.fetching.sources.numpydoc_questions import NumpydocQuestionsSource
from textmill.text.answers import read_answers

COLUMNS = {"text": "question", "label": "title"}
TEMPLATES = {
    "type": ["What is the type of {parameter}?"],
    "default": ["What is the default of {parameter}?"],
    "meaning": ["What is {parameter}?"],
    "returned_type": ["Which type does {name} return?"],
    "returned": ["What does {name} return?"],
    "raised": ["When does {name} raise {error}?"],
}
SOURCE = '''
def scale(values, factor=2.0, *, copy=True):
    """Multiply values by a factor.

    Parameters
    ----------
    values : array_like of shape (n,)
        The values to be scaled. They may be
        of any kind.
    factor : float, optional (default: 2.0)
        By what.
    copy : bool
        Whether the input stays, e.g. for later use. By default it does.

    Returns
    -------
    scaled : ndarray
        The scaled values.

    Raises
    ------
    ValueError
        If the factor is zero.

    Examples
    --------
    >>> scale([1], 3)
    """


def shift(values, offset):
    """Add an offset.

    Parameters
    ----------
    values : list
        Numbers.
    offset : int
        What is added.
    """


def _private(values, offset):
    """Do not ask.

    Parameters
    ----------
    a : int
    b : int
    """
'''


def article(title: str, questions: list[Any]) -> dict[str, Any]:
    return {"title": title, "paragraphs": [{"context": "Eling has a mill.", "qas": questions}]}


def test_squad_file_gives_a_row_a_question(project: Any, whole: Any) -> None:
    data = [
        article(f"place {number}", [{"id": f"{number}a", "question": f"What is in place {number}?", "answers": []}])
        for number in range(12)
    ]
    data.append(article("bad", ["no record", {"id": "x", "question": None, "answers": []}]))
    project.raw("all/made.json", json.dumps({"data": data}))
    task = {"_target_": "textmill.tasks.question_answering.QuestionAnswering"}
    columns = {"question": "question", "context": "context", "answers": "answers", "id": "id", "source": "title"}
    with pytest.raises(UserError, match="no question of the training split has an answer"):
        project.prepare(task=task, columns=columns, read={"format": "squad"}, max_rejected=0.5)
    for number in range(12):
        data[number]["paragraphs"][0]["qas"][0]["answers"] = [{"text": "mill", "answer_start": 12}]
    project.raw("all/made.json", json.dumps({"data": data}))
    path = project.layout.pretrained / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[UNK] $A", pair="[UNK] $A [UNK] $B", special_tokens=[("[UNK]", 1)]
    )
    tokenizer.save(str(path))
    project.prepare(
        task=task,
        columns=columns,
        read={"format": "squad"},
        max_rejected=0.5,
        duplicates={"near": False},
        splits={"by": "group", "group": "source"},
    )
    assert len(whole()) == 12
    assert {(row["row"], row["column"], row["reason"]) for row in project.rejects} == {
        ("13", "row", "is not a SQuAD question"),
        ("14", "question", "is empty"),
    }


@pytest.mark.parametrize(
    ("content", "message"), [("[]", "no list of articles"), ("{", "is not JSON"), ('{"data": []}', "it has no rows")]
)
def test_a_file_of_another_form_is_named(project: Any, content: str, message: str) -> None:
    project.raw("all/made.json", content)
    with pytest.raises(UserError, match=message):
        project.prepare(columns=COLUMNS, read={"format": "squad"})


def test_groups_stay_together(project: Any, whole: Any, many_rows: Any) -> None:
    rows = [f"{text},{label},author {number % 9}" for number, (text, label) in enumerate(many_rows(90))]
    project.raw("all/a.csv", "\n".join(["text,label,author", *rows]))
    columns = {"text": "text", "label": "label", "source": "author"}
    project.prepare(columns=columns, splits={"by": "group", "group": "source", "validation": 0.2, "test": 0.3})
    splits = whole().groupby("source")["split"].nunique()
    assert splits.tolist() == [1] * 9
    assert whole().groupby("split")["source"].nunique().to_dict() == {"train": 4, "validation": 2, "test": 3}


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"by": "group", "group": "author"}, "'author' is not mapped"),
        ({"by": "group", "group": "label"}, "too few for one in each of 3 splits"),
    ],
)
def test_groups_that_cannot_be_split_are_named(project: Any, many_rows: Any, splits: Any, message: str) -> None:
    project.rows("all/a.csv", many_rows(40))
    with pytest.raises(UserError, match=message):
        project.prepare(splits=splits)


def test_label_may_be_the_files_name(project: Any, whole: Any) -> None:
    for name in ("neg", "pos"):
        project.raw(f"all/{name}.txt", "".join(f"film {name} {number * 7919}\n\n" for number in range(20)))
    label = {"source": "file", "names": {"neg": "negative", "pos": "positive"}}
    read = {"format": "text", "text": {"document": "pattern", "begins": "."}, "file_column": "file"}
    project.prepare(columns={"text": "text", "label": label}, read=read, duplicates={"near": False})
    found = whole()
    assert len(found) == 40
    assert all(row.label == {"neg": "negative", "pos": "positive"}[row.text.split()[1]] for row in found.itertuples())


def test_docstring_is_read_with_positions() -> None:
    import ast
    import inspect

    docstring = ast.get_docstring(ast.parse(SOURCE).body[0], clean=False)
    document = read_numpydoc(inspect.cleandoc(docstring), ("parameters", "returns", "raises"), 400)
    assert "Examples" not in document.text
    parts = [
        span
        for entries in document.sections.values()
        for entry in entries
        for span in (entry.head, entry.kind, entry.default, entry.sentence)
        if span
    ]
    assert all(document.text[span.start : span.start + len(span.text)] == span.text for span in parts)
    values, factor, copy = document.sections["parameters"]
    assert values.kind and values.kind.text == "array_like of shape (n,)"
    assert values.sentence and values.sentence.text == "The values to be scaled."
    assert factor.kind and factor.kind.text == "float" and factor.default and factor.default.text == "2.0"
    assert copy.sentence and copy.sentence.text == "Whether the input stays, e.g. for later use."
    assert copy.says_default and document.sections["returns"][0].names == ["scaled"]


def rows(tmp_path: Path, **options: Any) -> list[dict[str, Any]]:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("made/numbers.py", SOURCE)
        archive.writestr("made/again.py", SOURCE)
        archive.writestr("made/tests/test_numbers.py", SOURCE)
        archive.writestr("made/broken.py", "def (:")
    path = tmp_path / "made.whl"
    path.write_bytes(content.getvalue())
    packages = [{"requirement": "made==1", "sha256": "0" * 64, "licence": "MIT"}]
    source = NumpydocQuestionsSource.from_options(packages=packages, templates=TEMPLATES, **options)
    with open_archive(path) as archive:
        return list(source.rows(archive, "made"))


def test_questions_have_exact_answers_or_none(tmp_path: Path) -> None:
    found = rows(tmp_path, answerable=100, unanswerable=100)
    assert {row["name"] for row in found} == {"made.again.scale", "made.again.shift"}, "each text once, nothing private"
    assert len({row["id"] for row in found}) == len(found)
    asked = {}
    for row in found:
        answers = read_answers(json.dumps(row["answers"]), row["context"])
        asked[row["name"].rpartition(".")[2], row["question"]] = [answer.text for answer in answers]
    assert asked["scale", "What is the type of values?"] == ["array_like of shape (n,)"]
    assert asked["scale", "What is the default of factor?"] == ["2.0"]
    assert asked["scale", "What does scale return?"] == ["The scaled values."]
    assert asked["scale", "Which type does scale return?"] == ["ndarray"]
    assert asked["scale", "When does scale raise ValueError?"] == ["If the factor is zero."]
    assert asked["shift", "What is offset?"] == ["What is added."]
    assert asked["shift", "What is the default of offset?"] == []
    assert asked["shift", "What does shift return?"] == []
    assert asked["shift", "When does shift raise ValueError?"] == []


def test_questions_are_the_same_every_time_and_not_too_many(tmp_path: Path) -> None:
    found = rows(tmp_path, answerable=2, unanswerable=1)
    assert found == rows(tmp_path, answerable=2, unanswerable=1)
    assert [sum(bool(row["answers"]) for row in found), sum(not row["answers"] for row in found)] == [4, 2]
