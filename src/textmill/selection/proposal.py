"""Propose settings and a model for data files, and write them as files of `conf/`."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import yaml

from textmill.config.layout import Layout
from textmill.data.exports import ANSWERED
from textmill.data.formats import split_of
from textmill.data.reading import AGAIN
from textmill.data.separated import ONE_COLUMN
from textmill.errors import UserError, did_you_mean
from textmill.files import atomic_write
from textmill.selection.inspection import is_value, slug
from textmill.tasks.recognition.columns import Ask, Proposal, recognise
from textmill.text.columns import Column, Seen
from textmill.text.numbers import plain_number

_OF_DATA = ("prompts", "names", "pattern", "separator", "labels", "classes", "columns", "lowest", "highest", "depth")
"""Options of a task that fit one corpus only."""
_FILLED = 0.95
_FEWEST = 8
"""Rows of the smallest class that is kept."""


def propose(
    seen: Seen,
    languages: dict[str, float],
    layout: Layout,
    ask: Ask,
    task: str | None,
    text: Sequence[str],
    label: str | None,
) -> Proposal:
    """Propose a task, the columns of it, and a model that fits size, language and hardware.

    Args:
        seen: What stands in the files.
        languages: Languages of the texts with their shares.
        layout: The project.
        ask: Asks what the files do not tell.
        task: The task that the user insists on, or None.
        text: The text columns that the user names.
        label: The column of labels or scores that the user names, or None.

    Raises:
        UserError: No task fits, a named column or task does not exist, or a column cannot be learned from.
    """
    known = [path.stem for path in sorted((layout.conf / "task").glob("*.yaml"))]
    if task is not None and task not in known:
        fix = f"{did_you_mean(task, known)}Known: {', '.join(known)}"
        raise UserError(f"no task {task!r}", where="--task", fix=fix)
    proposal = recognise(seen, ask, task, text, label)
    names = {column.name for column in seen.columns}
    for name in _flat(list(proposal.columns.values())):
        if name + AGAIN in names:
            raise UserError(f"two columns are named {name!r}", where=str(seen.found), fix="Rename one of them")
    if proposal.task not in known:
        what = f"the column {next(iter(proposal.columns.values()))!r} and its labels need the task {proposal.task}"
        fix = f"Install a version that has it, or choose another with --task: {', '.join(known)}"
        raise UserError(what, where="conf/task/", fix=fix)
    _usual_choices(proposal, layout)
    _splits(seen, proposal)
    if proposal.learns == "classes":
        _labels(seen, proposal)
    _missing(seen, proposal)
    _model(seen, languages, proposal)
    return proposal


# -- Settings -------------------------------------------------------------------------------


def _usual_choices(proposal: Proposal, layout: Layout) -> None:
    """Take over what an experiment of this task in conf/ selects and sets, except what belongs to its data."""
    for content in _experiments(layout, proposal.task):
        choices = content.pop("defaults")
        if choices.get("task") == proposal.task:
            proposal.choices = {name: value for name, value in choices.items() if name != "data"}
            if proposal.learns in ("else", "marks"):
                content.get("gate", {}).pop("floors", None)
                for option in _OF_DATA:
                    content.get("task", {}).pop(option, None)
                own = {name: value for name, value in content.items() if name not in ("name", "title")}
                proposal.settings = own | {"task": own.get("task", {}) | proposal.settings.get("task", {})}
            return
    proposal.choices = {"task": proposal.task}
    if (layout.conf / "evaluate" / f"{proposal.task}.yaml").is_file():
        proposal.choices["evaluate"] = proposal.task


def _experiments(layout: Layout, task: str) -> list[dict[str, Any]]:
    """Return the experiments of conf/ with their choices by group.

    The one named as the task comes first, then those of the model that comes with weights.
    """
    contents = []
    for path in sorted((layout.conf / "experiment").glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        entries = [entry for entry in content.get("defaults", []) if isinstance(entry, dict)]
        choices = {key.removeprefix("override /"): value for entry in entries for key, value in entry.items()}
        order = path.stem != task, choices.get("model") != "minilm", path.stem
        contents.append((order, content | {"defaults": choices}))
    return [content for _, content in sorted(contents, key=lambda pair: pair[0])]


def _labels(seen: Seen, proposal: Proposal) -> None:
    """Say the balance; leave out classes too small to be split."""
    [target] = [column for column in seen.columns if column.name == proposal.columns["label"]]
    counts = target.counts or Counter[str]()
    if len(counts) < 2:
        only = f"one value only, {next(iter(counts))!r}" if counts else f"{target.distinct} different values"
        raise UserError(
            f"the column {target.name!r} has {only}", where="--label", fix="Name another with --label COLUMN"
        )
    total = counts.total()
    largest, most = counts.most_common(1)[0]
    proposal.said.append(f"{len(counts)} classes; the largest, {largest!r}, has {most / total:.0%} of the rows.")
    rare = [name for name, count in counts.items() if count < _FEWEST] if seen.whole and "all" in seen.files else []
    if rare and sum(counts[name] for name in rare) <= 0.05 * total and len(counts) - len(rare) > 1:
        kept = _literal(sorted(set(counts) - set(rare)))
        proposal.settings["task"] = {"labels": kept}
        proposal.said.append(f"Left out, with fewer than {_FEWEST} rows each: {', '.join(map(repr, rare))}.")
    for group in _alike(counts):
        proposal.said.append(f"Classes that look alike stay apart: {', '.join(map(repr, group))}; `names` unites them.")
    smallest = min(counts.values())
    if most > 10 * smallest:
        proposal.said.append(f"Unbalanced: the smallest class has {smallest} of {total} rows; look at macro F1.")


def _splits(seen: Seen, proposal: Proposal) -> None:
    """Use the splits that a column names."""
    if seen.split_column is not None:
        proposal.read["split_column"] = seen.split_column.name
        counts = ", ".join(f"{value} {count:,}" for value, count in seen.split_column.counts.most_common())
        proposal.said.append(f"The column {seen.split_column.name!r} names the splits: {counts} rows.")
        unknown = sum(count for value, count in seen.split_column.counts.items() if split_of(value) is None)
        if unknown:
            _allow(proposal, unknown / seen.split_column.counts.total())
            proposal.said.append(f"{unknown:,} of these rows name no split that is known: they are rejected.")


def _alike(counts: Counter[str]) -> list[list[str]]:
    """Return the labels that differ in case, width or the form of a number only."""
    groups: dict[str, list[str]] = {}
    for label in counts:
        number = plain_number(label)
        key = unicodedata.normalize("NFKC", label).casefold() if number is None else repr(float(number))
        groups.setdefault(key, []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def _missing(seen: Seen, proposal: Proposal) -> None:
    """Allow for rows without a target or with none that counts, which are rejected and listed; say how many."""
    if answered := sum(count for reason, count in seen.rejected.items() if reason.startswith(ANSWERED)):
        _allow(proposal, answered / seen.rows)
    names = [proposal.columns[name] for name in ("label", "value", "score") if name in proposal.columns]
    for column in seen.columns:
        if column.name in names and 0 < column.filled < _FILLED:
            _allow(proposal, 1 - column.filled)
            proposal.said.append(f"{1 - column.filled:.0%} of the rows have no {column.name!r}: they are rejected.")


def _allow(proposal: Proposal, share: float) -> None:
    """Let a further share of the rows be rejected."""
    proposal.prepare["max_rejected"] = round(min(0.99, proposal.prepare.get("max_rejected", 0.1) + share), 2)


def _model(seen: Seen, languages: dict[str, float], proposal: Proposal) -> None:
    """Choose model, tokenizer and batches for a task that classifies or compares."""
    texts = [column for column in seen.columns if column.name in _flat(list(proposal.columns.values()))]
    tokens = sum(column.words for column in texts) * 1.4 + 2
    language = next(iter(languages), "?")
    if languages.get("zh", 0) > 0.3:
        proposal.prepare["words"] = {"segmenter": "jieba"}
    if proposal.learns == "else":
        return
    graphics = shutil.which("nvidia-smi") is not None
    rows = seen.rows if seen.whole else max(seen.rows, seen.size // max(1, int(sum(c.longest for c in texts) or 1)))
    device = "a GPU" if graphics else "this CPU"
    longest = max([column.longest for column in texts], default=0) / (2 if language in ("zh", "ja", "ko") else 3.5)
    proposal.settings.setdefault("prepare", {})["max_length"] = next((n for n in (64, 128, 256) if longest < n), 512)
    compares = proposal.learns == "scores"
    train: dict[str, Any] = {}
    if language in ("en", "?") or languages.get("en", 0) > 0.5:
        if not graphics and rows * tokens > 8e6 and not compares:
            proposal.choices["model"] = "encoder_tiny"
            proposal.said.append(
                f"encoder_tiny: some {rows:,} rows are many for {device}; minilm is better and slower."
            )
        else:
            proposal.choices["model"] = "minilm"
            why = "pretrained on English" if language == "en" else "pretrained"
            proposal.said.append(f"minilm: {why}, small enough to train {rows:,} rows on {device}.")
    elif not graphics and rows * tokens > 4e6 and not compares:
        proposal.choices["model"] = "encoder_mini"
        proposal.said.append(f"encoder_mini: some {rows:,} rows are many for {device}; e5_small is better and slower.")
    else:
        proposal.choices["model"] = "e5_small"
        proposal.settings["prepare"]["tokenizer"] = {"least_count": 1}
        proposal.said.append(f"e5_small: pretrained on a hundred languages, {language!r} among them.")
    scratch = proposal.choices["model"] not in ("minilm", "e5_small")
    if scratch:
        size = next(
            size for most, size in ((3e4, 1000), (3e5, 2000), (3e6, 4096), (9e99, 8192)) if rows * tokens < most
        )
        proposal.settings["prepare"]["tokenizer"] = {"kind": "byte_bpe", "vocabulary_size": size}
        train["optimizer"] = {"learning_rate": 1.0e-3, "layer_decay": 1.0, "head_multiplier": 1.0}
    batch = next(size for size in (256, 512, 1024, 2048, 4096) if size * 20 >= rows * tokens * 0.75 or size == 4096)
    steps = max(1.0, rows * tokens * 0.75 / batch)
    train["batches"] = {"tokens": batch}
    least = 3 if scratch else 2
    train["max_epochs"] = int(min(30, max(least, 120 // steps)))
    proposal.settings["train"] = proposal.settings.get("train", {}) | train


def _flat(values: Sequence[Any]) -> list[str]:
    return [name for value in values for name in (value if isinstance(value, list) else [value])]


# -- Files ----------------------------------------------------------------------------------


def data_file(source: dict[str, Any], seen: Seen, proposal: Proposal) -> str:
    """Return the content of `conf/data/NAME.yaml`."""
    found = seen.found
    read: dict[str, Any] = {"format": found.format, **proposal.read}
    if found.encoding:
        read["encoding"] = found.encoding
    if found.format in ("csv", "tsv"):
        read |= {"separator": found.dialect.separator, "quoted": found.dialect.quoted}
        if found.dialect.separator == ONE_COLUMN or found.dialect.escape:
            del read["separator" if found.dialect.separator == ONE_COLUMN else "quoted"]
    if found.records and found.format != "squad":
        read["records"] = found.records
    if seen.file_column:
        read["file_column"] = seen.file_column
    if seen.header:
        read["header"] = seen.header
    if seen.folders:
        read |= {"text": {"document": "file"}, "folder_column": "folder"}
    same = len({file for files in seen.files.values() for file in files}) == 1
    comments = {
        "format": "detected; without a line below, each file's own is detected",
        "columns": "the task's column: the file's column",
        "splits": "of the splits that `files` does not name",
        "files": "a folder, glob, address or list too; DVC watches those below data/own",
    }
    if not same:  # each file may have another encoding
        read.pop("encoding", None)
    read["columns"] = proposal.columns
    prepare = {"read": read, **{key: value for key, value in proposal.prepare.items() if value}}
    if "all" in seen.files or "test" not in seen.files or "validation" not in seen.files:
        prepare.setdefault("splits", {"method": "stable", "validation": 0.1, "test": 0.15, "seed": 0})
    head = f"# Written by `textmill init`: {found}; {seen.rows:,}{'' if seen.whole else ' or more'} rows.\n"
    head += "".join(f"# {column.name!r}: {_described(column)}\n" for column in seen.columns[:20])
    return "# @package _global_\n" + head + _yaml(_literal({"fetch": {"source": source}, "prepare": prepare}), comments)


def _described(column: Column) -> str:
    missing = "" if column.filled > 0.999 else f", {1 - column.filled:.0%} missing"
    return f"{column.kind}, {column.distinct:,} different{missing}, such as {column.example!r}"


def experiment_file(name: str, proposal: Proposal, title: str) -> str:
    """Return the content of `conf/experiment/NAME.yaml`."""
    defaults = [{f"override /{group}": choice} for group, choice in {"data": name, **proposal.choices}.items()]
    said = "".join(f"# {ascii_safe(line)}\n" for line in proposal.said)
    settings = {key: value for key, value in proposal.settings.items() if value}
    content = {"defaults": defaults, "name": name.replace("_", "-"), "title": _literal(title), **settings}
    comments = {
        "name": "of the registered model",
        "max_length": "tokens; longer texts are cut",
        "tokens": "of a batch, padding included",
        "labels": "rows with other labels are rejected",
    }
    return "# @package _global_\n# Run it: dvc exp run -S experiment=" + name + "\n" + said + _yaml(content, comments)


def ascii_safe(line: str) -> str:
    """Return a line without line ends and control characters."""
    return "".join(sign if sign.isprintable() else " " for sign in line)


def _literal(value: Any) -> Any:
    """Return a value in which the names of files and columns are no references of OmegaConf."""
    if isinstance(value, dict):
        return {_literal(key): _literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_literal(inner) for inner in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def _yaml(content: dict[str, Any], comments: dict[str, str]) -> str:
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000, default_flow_style=False)
    left = dict(comments)

    def commented(match: re.Match[str]) -> str:
        comment = left.pop(match[2], None)
        return f"{match[0]}   # {comment}" if comment else match[0]

    return re.sub(r"^( *)(\w+):[^\n]*$", commented, text, flags=re.MULTILINE)


def write(layout: Layout, name: str, data: str, experiment: str) -> list[str]:
    """Write both files; return their paths below the project.

    Raises:
        UserError: One of them is there already.
    """
    files = {f"conf/data/{name}.yaml": data, f"conf/experiment/{name}.yaml": experiment}
    require_new(layout, name)
    for path, content in files.items():
        atomic_write(layout.root / path, content)
    return list(files)


def require_new(layout: Layout, name: str) -> None:
    """Raise a `UserError` if an experiment or a data file of this name is there already."""
    for path in (f"conf/data/{name}.yaml", f"conf/experiment/{name}.yaml"):
        if (layout.root / path).exists():
            raise UserError("the file is there already", where=path, fix="Choose a name with --name, or delete it")


def checked_name(name: str | None, first: str) -> str:
    """Return the name of the files of conf/: the given one, or one from the data's.

    Raises:
        UserError: The given one has other signs than letters, digits and underscores, or is read as a value.
    """
    if name is None:
        return slug(first)
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise UserError(f"{name!r} is not a name", where="--name", fix="Use letters, digits and underscores")
    if is_value(name):
        raise UserError(f"{name!r} is read as a value, not as a name", where="--name", fix="Begin it with a letter")
    return name
