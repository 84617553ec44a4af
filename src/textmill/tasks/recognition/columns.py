"""Recognise which task fits the columns of data files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from textmill.errors import UserError, did_you_mean
from textmill.text.columns import Column, Seen
from textmill.text.label_lists import read_flag
from textmill.text.numbers import plain_number

Ask = Callable[[str, list[str]], str]
"""Asks to choose one of several answers; without a terminal it returns the first."""

_LABELS = (
    r"labels?|class(es|ification)?|categor(y|ies)|sentiment|topics?|intent|tags?|target|stars?|ratings?|urteil|y"
    r"|标签|类别"
)
_SCORES = r"scores?|similarity|sim|gold|rating|note"
_TITLES = r"title|titel|subject|headline|summary_line|betreff|标题"
_PAIRS = (r"(text|sentence|question|sent|s|q)?_?[a1]", r"premise|query|anchor|question1?|sentence1", r"(.*[^a-z])?left")
_ROLES: dict[str, dict[str, str]] = {
    "preference_tuning": {"prompt": r"prompt|question|instruction|query", "chosen": "chosen", "rejected": "rejected"},
    "question_answering": {
        "question": r"question|query|frage|问题",
        "context": r"context|passage|paragraph|kontext|上下文",
        "answers": r"answers?([_ ]texts?)?|antwort|答案",
    },
    "instruction_tuning": {"asked": r"instruction|prompt", "answer": r"output|response|completion|answer"},
}
"""Task -> its columns -> names of columns that have them in files of this kind."""
_FURTHER = r"input|context"
_RELEVANT = r"relevan(t|ce)|is_relevant"
_SUMMARIES = r"summary|abstract|highlights|tl_?dr|zusammenfassung|摘要"
_LANGUAGES = r"[a-z]{2}"
_TASK_OF_LABELS = "multi_label_classification"
_FLAGS = 3
"""Columns of 0 and 1 that are several labels, where no column is named as a target."""


@dataclass
class Proposal:
    """A task with its columns and settings.

    Attributes:
        task: Name of a file of `conf/task/`.
        columns: Task column -> file column, or several that become one text.
        settings: Settings of the experiment, by section.
        choices: Group -> file of `conf/` that the experiment selects.
        said: What the proposal rests on, one sentence each.
        read: Options of `prepare.read` besides the columns.
        prepare: Other options of `prepare`.
    """

    task: str
    columns: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    read: dict[str, Any] = field(default_factory=dict)
    prepare: dict[str, Any] = field(default_factory=dict)

    @property
    def learns(self) -> str:
        """What decides the settings: `classes`, `marks` or `scores` of texts; else the experiment of the task."""
        if self.task in ("text_classification", "textual_entailment"):
            return "classes"
        others = ("multi_label_classification", "text_regression", "token_classification")
        return "scores" if self.task == "semantic_similarity" else "marks" if self.task in others else "else"


def recognise(seen: Seen, ask: Ask, task: str | None, text: Sequence[str], label: str | None) -> Proposal:
    """Return the task that fits the columns, and which of them it needs.

    Raises:
        UserError: None fits, or a named column does not exist.
    """
    by_name = {column.name: column for column in seen.columns}
    for name in [*text, *([label] if label else [])]:
        if name not in by_name:
            fix = f"{did_you_mean(name, by_name)}There are {', '.join(map(repr, by_name))}"
            raise UserError(f"no column {name!r}", where="--label" if name == label else "--text", fix=fix)
    if seen.found.format == "squad" and task in (None, "question_answering"):
        columns = {name: name for name in ("id", "question", "context", "answers")} | {"source": "title"}
        splits = {"by": "group", "group": "source"}
        return Proposal("question_answering", columns, prepare={"duplicates": {"near": False}, "splits": splits})
    if not text and label is None and (found := _by_names(seen, task)):
        return found
    if chats := seen.of_kind("messages"):
        cleaning = {"repair": False, "normal_form": None}
        return Proposal(task or "instruction_tuning", {"messages": chats[0].name}, prepare={"cleaning": cleaning})
    if seen.found.format == "text" and not seen.folders and task in (None, "language_modelling"):
        return _raw_text(seen)
    texts = [by_name[name] for name in text] or _texts(seen, label)
    tags = seen.of_kind("tags")
    words = [*(column for column in texts if column.kind == "words"), *(seen.of_kind("labels") if tags else [])]
    texts = texts or words
    spans = seen.of_kind("spans") if task in (None, "token_classification") else []
    if spans and texts and label in (None, spans[0].name):
        return Proposal("token_classification", {"text": texts[0].name, "entities": spans[0].name})
    if not texts:
        names = ", ".join(map(repr, by_name))
        raise UserError(f"no column looks like a text; there are {names}", where="--text", fix="Name it with --text")
    if words and tags and task is None and label is None:
        if not re.match(r"\[\W*[A-Z]", tags[0].example):
            fix = "Write their names, such as O and B-person, in place of the numbers"
            raise UserError(
                f"the tags of {tags[0].name!r} are numbers: {tags[0].example[:30]}", where="--label", fix=fix
            )
        columns = {"text": words[0].name, "entities": tags[0].name}
        return Proposal("token_classification", columns, settings={"task": {"units": "whitespace"}})
    flags = [column for column in seen.of_kind("label") if _is_flag(column)]
    several = task is None and len(flags) >= _FLAGS and not any(map(_is_target, seen.columns))
    if label is None and (task == _TASK_OF_LABELS or several) and len(flags) > 1 and not seen.of_kind("labels"):
        columns = {_last(column.name): column.name for column in flags}
        return Proposal(
            _TASK_OF_LABELS,
            {"text": _one_text(texts, bool(text)), **columns},
            settings={"task": {"columns": [*columns]}},
        )
    target = by_name[label] if label else _target(seen, texts, ask, task)
    return _with_target(texts, target, ask, task, bool(text))


def _by_names(seen: Seen, task: str | None) -> Proposal | None:
    """Return the proposal of a task whose files have columns of usual names, or None."""
    for known, roles in _ROLES.items():
        found = {
            role: next((c.name for c in seen.columns if re.fullmatch(pattern, _root(c.name).lower())), None)
            for role, pattern in roles.items()
        }
        if task not in (None, known):
            continue
        if known == "preference_tuning" and found["chosen"] and found["rejected"] and not found["prompt"]:
            fix = "Add a column prompt, and leave the answers alone in the two others"
            raise UserError("there are chosen and rejected answers, and no prompt", where="--text", fix=fix)
        if not all(found.values()):
            continue
        columns: dict[str, Any] = {role: _root(name) for role, name in found.items() if name}
        if known != "instruction_tuning":
            return Proposal(known, columns)
        more = [c.name for c in seen.columns if re.fullmatch(_FURTHER, c.name.lower()) and c.filled > 0]
        return Proposal(known, {"messages": [columns["asked"], *more, columns["answer"]]})
    return None


def _root(name: str) -> str:
    """Return the name without the parts of the answers' records, which are read whole."""
    return re.sub(r"\.(text|answer_start)$", "", name)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_flag(column: Column) -> bool:
    try:
        return len(column.counts) == 2 and {read_flag(value) for value in column.counts} == {False, True}
    except ValueError:
        return False


def _raw_text(seen: Seen) -> Proposal:
    one = len({path for paths in seen.files.values() for path in paths}) == 1
    read = {"format": "text", "text": {"document": "file"}}
    splits = {"by": "position", "validation": 0.05, "test": 0.05} if one and set(seen.files) == {"all"} else {}
    prepare = {"cleaning": {"max_characters": 10_000_000}, "duplicates": {"near": False}, "splits": splits}
    said = ["Raw text: a language model learns to continue it."]
    return Proposal("language_modelling", {"text": "text"}, read=read, prepare=prepare, said=said)


def _texts(seen: Seen, label: str | None) -> list[Column]:
    texts = [column for column in seen.of_kind("text", "words") if column.name != label]
    if not texts:  # texts of one or two words, such as queries
        others = [column for column in seen.of_kind("label", "id") if column.name != label and column.distinct > 20]
        others = [column for column in others if not re.fullmatch(r"[\d\W_]*", column.example)]
        texts = sorted(others, key=lambda column: -column.distinct)[:1]
    return texts


def _target(seen: Seen, texts: Sequence[Column], ask: Ask, task: str | None) -> Column | None:
    """Return the column to learn, by its kind and its name; ask where several may be meant."""
    own = {column.name for column in texts}
    candidates = [column for column in seen.of_kind("label", "labels", "number") if column.name not in own]
    numbered = [column for column in seen.of_kind("id") if _is_target(column) and _is_number(column.example)]
    candidates += [replace(column, kind="number") for column in numbered if not any(map(_is_target, candidates))]
    constant = [column for column in candidates if column.distinct == 1 and (_is_target(column) or len(texts) == 1)]
    candidates = [column for column in candidates if column.distinct > 1 and column.name not in ("id", "index")]
    if constant and not candidates and task is None:
        what = f"the column {constant[0].name!r} has one value only, {constant[0].example!r}"
        raise UserError(what, where="--label", fix="Give files with several, or name another column with --label")
    if task in ("language_modelling", "semantic_search", "translation", "summarisation") or not candidates:
        return None

    def rank(column: Column) -> tuple[bool, bool, int]:
        return not _is_target(column), column.kind == "number", column.distinct

    candidates.sort(key=rank)
    named = [column for column in candidates if not rank(column)[0]]
    if len(candidates) == 1 or len(named) == 1:
        return candidates[0]
    chosen = ask("Which column is to be predicted?", [column.name for column in candidates])
    return next(column for column in candidates if column.name == chosen)


def _is_target(column: Column) -> bool:
    return any(re.fullmatch(f"(.*[^a-z])?({pattern})", column.name.lower()) for pattern in (_LABELS, _SCORES))


def _with_target(texts: Sequence[Column], target: Column | None, ask: Ask, task: str | None, named: bool) -> Proposal:
    pair = _pair(texts)
    if target is None:
        return _without_target(texts, pair, ask, task)
    if target.kind == "labels":
        settings: dict[str, Any] = {"task": {"separator": target.separator}} if target.separator else {}
        columns = {"text": _one_text(texts, named), "labels": target.name}
        return Proposal(task or _TASK_OF_LABELS, columns, settings=settings)
    read = {"decimal": target.decimal} if target.decimal else {}
    relevant = pair and re.fullmatch(_RELEVANT, target.name.lower()) and task is None
    if (relevant and _is_flag(target)) or (pair and task == "re_ranking"):
        columns = {"text_a": pair[0].name, "text_b": pair[1].name, "relevant": target.name}
        return Proposal("re_ranking", columns, settings={"task": {"first_stage": False}})
    number = target.kind == "number" or (
        target.kind == "label" and re.fullmatch(_SCORES, target.name.lower()) and all(map(_is_number, target.counts))
    )
    if pair and (task in ("semantic_similarity", "textual_entailment") or (task is None and len(texts) == 2)):
        columns = {"text_a": pair[0].name, "text_b": pair[1].name}
        if task == "semantic_similarity" or (task is None and number):
            values = [float(plain) for value in target.counts if (plain := plain_number(value, target.decimal))]
            if len(values) < 2:
                fix = "Give files with different scores, or name another column with --label"
                raise UserError(f"all scores are {next(iter(target.counts), None)}", where=target.name, fix=fix)
            scale = {"lowest": min(0.0, *values), "highest": max(values)}
            return Proposal(
                "semantic_similarity", {**columns, "score": target.name}, settings={"task": scale}, read=read
            )
        return Proposal("textual_entailment", {**columns, "label": target.name})
    task = task or ("text_regression" if number and target.distinct > 20 else "text_classification")
    column, read = ("value", read) if task == "text_regression" else ("label", {})
    return Proposal(task, {"text": _one_text(texts, named), column: target.name}, read=read)


def _without_target(texts: Sequence[Column], pair: Sequence[Column], ask: Ask, task: str | None) -> Proposal:
    if task is None and len(texts) > 1:
        summary = next((column for column in texts if re.fullmatch(_SUMMARIES, column.name.lower())), None)
        languages = [column for column in texts if re.fullmatch(_LANGUAGES, column.name.lower().rpartition(".")[2])]
        spoken = [column.language for column in texts[:2]]
        foreign = all(spoken) and spoken[0] != spoken[1]
        translated = foreign or len(languages) == 2
        usual = "summarisation" if summary else "translation" if translated else "semantic_search"
        others = [name for name in ("semantic_search", "translation", "summarisation") if name != usual]
        task = ask("Which task is it? The files have texts and no labels.", [usual, *others])
    if task is None and len(texts) == 1:
        fix = "Name the labels with --label COLUMN, or train a language model with --task language_modelling"
        raise UserError(f"there is a text, {texts[0].name!r}, and no column of labels", where="--label", fix=fix)
    if task == "language_modelling":
        return Proposal(task, {"text": texts[0].name}, said=["A language model learns to continue the texts."])
    first, second = pair or texts[:2]
    if task == "semantic_search":
        return Proposal(task, {"text_a": first.name, "text_b": second.name})
    summary = next((column for column in texts if re.fullmatch(_SUMMARIES, column.name.lower())), second)
    source = next(column for column in texts if column is not summary)
    if task == "summarisation":
        return Proposal(task, {"text": source.name, "summary": summary.name})
    if task == "translation":
        codes = [column.name.lower().rpartition(".")[2] for column in (first, second)]
        if not all(re.fullmatch(_LANGUAGES, code) for code in codes):
            codes = [first.language, second.language]
        named = all(codes)
        own: dict[str, Any] = {"source_language": codes[0], "target_language": codes[1]} if named else {}
        columns = {"text": first.name, "translation": second.name}
        return Proposal(task, columns, settings={"task": {**own, "examples": [first.example, first.example]}})
    raise UserError(f"the files have no target for {task}", where="--task", fix="Name it with --label COLUMN")


def _pair(texts: Sequence[Column]) -> list[Column]:
    """Return two texts that are compared with each other, the first one first; none if they are parts of one text."""
    if len(texts) != 2 or any(re.fullmatch(_TITLES, column.name.lower()) for column in texts):
        return []
    first, second = texts
    swapped = any(re.fullmatch(pattern, second.name.lower()) for pattern in _PAIRS)
    return (
        [second, first] if swapped and not any(re.fullmatch(p, first.name.lower()) for p in _PAIRS) else [first, second]
    )


def _one_text(texts: Sequence[Column], named: bool) -> str | list[str]:
    titles = [column for column in texts if re.fullmatch(_TITLES, column.name.lower())]
    longest = max(texts, key=lambda column: column.words)
    chosen = list(texts) if named else [*titles, *([longest] if longest not in titles else [])]
    return [column.name for column in chosen] if len(chosen) > 1 else chosen[0].name


def _is_number(value: str) -> bool:
    return plain_number(value, ".") is not None or plain_number(value, ",") is not None
