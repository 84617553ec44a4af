"""Look at data files: splits, header, columns with their kinds, languages."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from textmill.config.layout import Layout
from textmill.config.sections.prepare import ReadConfig
from textmill.data.first_pass import path_columns
from textmill.data.formats import damage_named, detect, encoding_of, is_table, open_text, split_of
from textmill.data.mapping import as_text, unified_label
from textmill.data.reading import Bad, preview
from textmill.errors import UserError, first_line
from textmill.fetching.sources.conll import ConllSource
from textmill.fetching.sources.files import FilesSource, is_archive, is_hidden, without_scheme
from textmill.text.columns import Column, Kind, Seen
from textmill.text.entities import LABELS
from textmill.text.label_lists import CHOICES, listed
from textmill.text.numbers import decimal_of, plain_number

ROWS = 5000
"""Rows that are looked at in each split."""
_SPLIT_NAMES = r"(.*[^a-z])?(splits?|subset|folds?|partition|set)"
_MAX_CLASSES = 200
_LONG_HEADER = 60
_LONGEST_LINE = 10_000
_DIGITS = re.compile(r"\s*[+-]?\d+([.,]\d+)?\s*")
_SENTENCE = re.compile(r"\w\W+\w+\W+\w.*[.!]$|[\u3002\uff01]$")
_TAG = re.compile(r"O|[BIESLU]-.+")
_VALUES = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"}
_SENTENCES, _REPEATED, _LONG_LABEL = 10, 10, 15
"""Most values of a column of labels that are sentences, rows of each, and words."""
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def sources_of(names: Sequence[str], layout: Layout, folder: Path) -> tuple[dict[str, Any], dict[str, list[Path]]]:
    """Return the source of data for `conf/data/`, and its files here by split.

    Addresses, archives and data sets of the hub are fetched into `folder`; a large one of the hub in part.

    Raises:
        UserError: There is no such file, folder, address or data set.
    """
    if len(names) == 1 and re.fullmatch(r"[\w.-]+/[\w.-]+", names[0]) and not Path(names[0]).exists():
        return _from_hub(names[0], folder)
    names = list(map(without_scheme, names))
    local = [name for name in names if "://" not in name]
    for name in local:
        if not Path(name).expanduser().exists():
            raise UserError("no such file or folder", where=name, fix="Check the path")
    paths = [inner for name in local for inner in _parts(Path(name).expanduser().resolve())]
    given = [_address(path, layout) for path in paths] + [name for name in names if "://" in name]
    files: dict[str, list[str]] = {}
    for name in given:
        files.setdefault(split_of(PurePosixPath(name.partition("?")[0]).name) or "", []).append(name)
    if "" in files or "train" not in files:
        files = {"all": given}
    if len(local) == len(names) and (columns := _conll(files, layout.root)):
        ConllSource.from_options(**columns).fetch(folder, layout.root)
        options = {"_target_": f"{ConllSource.__module__}.{ConllSource.__name__}", **columns}
        return options, {split: [folder / split] for split in files}
    source = {split: addresses[0] if len(addresses) == 1 else addresses for split, addresses in files.items()}
    options = {"_target_": f"{FilesSource.__module__}.{FilesSource.__name__}", "files": source}
    if len(local) == len(names) and not any(map(is_archive, paths)):
        return options, {split: [layout.root / name for name in listed] for split, listed in files.items()}
    FilesSource.from_options(files=source).fetch(folder, layout.root)
    return options, {split: [folder / split] for split in files}


def _conll(files: Mapping[str, Sequence[str]], root: Path) -> dict[str, Any] | None:
    """Return the options of `ConllSource` if each split is one file whose lines end in tags of entities."""
    separators: set[str | None] = set()
    encodings: set[str] = set()
    for path in [root / name for names in files.values() for name in names]:
        if not path.is_file() or is_archive(path):
            return None
        with damage_named(str(path), "text"), open_text(path, encoding := encoding_of(path)) as text:
            pieces = islice(iter(lambda: text.readline(_LONGEST_LINE), ""), 500)
            lines = [line for line in pieces if line.strip() and not line.startswith(("-DOCSTART-", "# "))]
        tags = [fields[-1] for line in lines if _TAG.fullmatch((fields := line.split())[-1])]
        if len(tags) < max(10, 0.95 * len(lines)) or not any("-" in tag for tag in tags):
            return None
        separators.add("\t" if all("\t" in line for line in lines) else None)
        encodings.add(encoding)
    if any(len(names) > 1 for names in files.values()) or len(encodings) > 1:
        raise UserError("several files of entities in one split", where="FILE", fix="Join them, or name them by splits")
    options: dict[str, Any] = {"files": {split: names[0] for split, names in files.items()}}
    options |= {"separator": "\t"} if separators == {"\t"} else {}
    return options | ({"encoding": encodings.pop()} if encodings != {"utf-8"} else {})


def _address(path: Path, layout: Layout) -> str:
    inside = path.is_relative_to(layout.root.resolve())
    return path.relative_to(layout.root.resolve()).as_posix() if inside else str(path)


def _from_hub(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, list[Path]]]:
    """Pin a data set of the hub to its last revision, and write its first rows."""
    import datasets
    from huggingface_hub import dataset_info

    from textmill.fetching.sources.local import write_rows

    try:
        revision = str(dataset_info(name).sha)
        there = datasets.get_dataset_split_names(name, revision=revision)
        splits = {split: given for given in there if (split := split_of(given))}
        splits = splits if "train" in splits else {"all": there[0]}
        for split, given in splits.items():
            rows = datasets.load_dataset(name, revision=revision, split=given, streaming=True).take(ROWS)
            write_rows(map(dict, rows), folder / split / "rows.jsonl")
    except Exception as error:  # of several libraries
        fix = "Check the name and the network, or give a file or folder"
        raise UserError(
            f"no such file, and no data set of the hub ({first_line(error)})", where=name, fix=fix
        ) from error
    options = {"_target_": "textmill.fetching.sources.hub.HubSource", "name": name, "revision": revision}
    return {**options, "splits": splits}, {split: [folder / split] for split in splits}


def _parts(path: Path) -> list[Path]:
    """Return the split folders and files of a folder, if its names tell splits; else the path itself."""
    if not path.is_dir():
        return [path]
    inner = [each for each in sorted(path.iterdir()) if not each.name.startswith(("_", "."))]
    named = [each for each in inner if split_of(each.name) is not None]
    return named if "train" in map(split_of, (each.name for each in named)) else [path]


def files_below(path: Path) -> list[Path]:
    """Return a file, or the files below a folder that `fetch` would copy."""
    if path.is_file():
        return [path]
    inner = (each for each in sorted(path.rglob("*")) if each.is_file())
    return [each for each in inner if not is_hidden(each.relative_to(path).as_posix())]


def look_at(splits: Mapping[str, Sequence[Path]], config: ReadConfig) -> Seen:
    """Look at the files of each split.

    Raises:
        UserError: A file is unreadable, empty, or differs from the others in its columns.
    """
    files = {split: [file for path in paths for file in files_below(path)] for split, paths in splits.items()}
    every = [file for paths in files.values() for file in _filled(paths) or paths[:1]]
    if not every:
        where = ", ".join(str(path) for paths in splits.values() for path in paths)
        fix = "Name them; those whose names begin with _ or . are passed over"
        raise UserError("no files here", where=where, fix=fix)
    if any(file.suffix == ".ann" for file in every):
        fix = "Export it as CoNLL columns, or as JSON Lines with text and spans"
        raise UserError("holds annotations of brat", where=str(every[0].parent), fix=fix)
    folders = _class_folders(splits, every)
    if folders and config.format is None:  # the names of e-mails and posts have no ending
        config = config.model_copy(update={"format": "text"})
    roots = [path for paths in splits.values() for path in paths]
    told = {split_of(part) for file in every for part in _below(file, roots).split("/")} - {None}
    if [*splits] == ["all"] and "train" in told and len(told) > 1:
        config = config.model_copy(update={"file_column": "split", "split_column": "split"})  # such as of an archive
    first = detect(every[0], str(every[0]), config)
    records: list[Mapping[str, Any]] = []
    rejected: Counter[str] = Counter()
    header: list[str] | None = config.header
    seen = 0
    names: list[str] | None = None
    step = max(1, len(every) // 200)
    for file in every[::step]:
        found = detect(file, str(file), config)
        rows = preview(file, str(file), config, found, ROWS)
        here = [row for row in rows if not isinstance(row, Bad)]
        rejected.update(row.reason for row in rows if isinstance(row, Bad))
        if header is None and found.names:
            header = [*found.names]
        elif found.lists and header is None and not records and here and _headerless(here):
            header = [f"column_{number}" for number in range(1, len(here[0]) + 1)]
            config = config.model_copy(update={"header": header})
            rows = preview(file, str(file), config, found, ROWS)
            here = [row for row in rows if not isinstance(row, Bad)]
        if here and (found.lists or found.format in ("parquet", "arrow")):
            names = names or list(here[0])
            if set(here[0]) != set(names):
                what = f"its columns {', '.join(here[0])} are not those of {every[0].name}: {', '.join(names)}"
                where = str(file) if file in roots else _below(file, roots)  # an archive's folder is a temporary one
                raise UserError(what, where=where, fix="Give files with the same columns, those to learn from only")
        seen += len(rows) * step
        own: dict[str, str | None] = path_columns(_below(file, roots), config) if file not in roots else {}
        own |= {"folder": file.parent.name} if folders else {}
        records += [{**row, **own} for row in here]
    if not records:
        why = f": {rejected.most_common(1)[0][0]}" if rejected else ""
        fix = "Put texts with the separator into quotes" if "expected" in why else "Check the file"
        raise UserError(f"the file has no row that can be read{why}", where=str(every[0]), fix=fix)
    size = sum(file.stat().st_size for file in every)
    whole = len(records) + rejected.total() < ROWS and step == 1
    paths = {split: [str(path) for path in given] for split, given in splits.items()}
    columns, split_column = _without_splits(columns_of(records))
    named = [column.name for column in columns if column.kind == "text"]
    some = records[:: max(1, len(records) // 100)]
    texts = [str(record[name]) for record in some for name in named if record.get(name)]
    return Seen(
        paths, first, header, columns, seen, whole, rejected, size, folders, texts, split_column, config.file_column
    )


def _below(file: Path, roots: Sequence[Path]) -> str:
    """Return the path of a file below the folder that was given."""
    return file.relative_to(
        next((root for root in roots if file != root and file.is_relative_to(root)), file.parent)
    ).as_posix()


def _without_splits(columns: Sequence[Column]) -> tuple[list[Column], Column | None]:
    """Return the columns, of which those that name splits or count folds are no labels, and the one of splits."""
    kept, declared = [], None
    for column in columns:
        if column.counts and re.fullmatch(_SPLIT_NAMES, column.name.lower()):
            known = {value: split for value in column.counts if (split := split_of(value))}
            rows = sum(column.counts[value] for value in known)
            if "train" in known.values() and len({*known.values()}) > 1 and rows > 0.8 * column.counts.total():
                declared = declared or column
                column = replace(column, kind="other")
            elif all(map(str.isdigit, column.counts)):
                column = replace(column, kind="other")
        kept.append(column)
    return kept, declared


def _filled(files: Sequence[Path]) -> list[Path]:
    """Return the files that are not empty; Spark writes empty parts too."""
    return [file for file in files if file.stat().st_size]


def _class_folders(splits: Mapping[str, Sequence[Path]], files: Sequence[Path]) -> bool:
    """Return whether the files are texts in folders, one for each class."""
    roots = {path for paths in splits.values() for path in paths}
    parents = {file.parent for file in files}
    named = len({parent.name for parent in parents}) > 1 and not any("=" in parent.name for parent in parents)
    return named and not (parents & roots) and not any(map(is_table, files))


def _headerless(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the first line is a row: a label or number of the column below, or sentences and no labels."""
    names = [name for name in rows[0] if name]
    if names == [str(number) for number in range(len(names))]:  # pandas numbers columns without names
        return False
    if any(all(len(name) < _LONG_HEADER and row.get(name) == name for name in names) for row in rows):
        return False  # repeated, where files were joined
    values = {name: Counter(str(row.get(name) or "") for row in rows) for name in names}
    if any(counts[name] > 1 and len(counts) < len(rows) / 2 for name, counts in values.items()):
        return True
    few = {name for name, counts in values.items() if len(rows) > 10 * len(counts)}
    numbers = [name for name in names if _DIGITS.fullmatch(name)]
    numeric = [sum(map(bool, map(_DIGITS.fullmatch, values[name]))) > len(values[name]) / 2 for name in numbers]
    if numbers and not all(numeric):
        return False
    long = [name for name in names if len(name) > _LONG_HEADER or len(name.split()) > 6 or _SENTENCE.search(name)]
    return bool(numbers or (long and not few))


def columns_of(records: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Describe the columns of records, nested ones by their path."""
    values: dict[str, list[Any]] = {}
    for record in records:
        for name, value in _flat(record):
            values.setdefault(name, []).append(value)
    return [_column(name, cells, len(records)) for name, cells in values.items() if name]


def _flat(record: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    cells: list[tuple[str, Any]] = []
    for name, value in record.items():
        cells += _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else [(before + str(name), value)]
    return cells


def _column(name: str, cells: Sequence[Any], rows: int) -> Column:
    given = [cell for cell in cells if cell is not None and cell != ""]
    if given and all(isinstance(cell, list) and len(cell) < 2 for cell in given):  # a list of one is its item
        items = [item for cell in given for item in cell]
        given = given if any(isinstance(item, list | dict) for item in items) else items
    if any(isinstance(cell, str) and cell.startswith(CHOICES) for cell in given):
        given = [listed(cell) or [cell] for cell in given]
    lists = [found for cell in given if (found := listed(cell)) is not None]
    lists = lists if len(lists) > 0.9 * len(given) else []
    texts = [as_text(cell) or "" for cell in given]
    counts = Counter(unified_label(text) for text in texts)
    decimal = decimal_of(texts)
    numbers = sum(plain_number(text, decimal or ".") is not None for text in texts)
    separator, parts = _several(texts) if not lists and not numbers else ("", Counter[str]())
    letters = sum(sign.isalpha() for text in texts[:100] for sign in text) / max(1, sum(map(len, texts[:100])))
    words = sum(map(_words, texts)) / max(1, len(texts))
    lengths = sorted(map(len, texts)) or [0]
    kind: Kind
    if lists:
        kind = _list_kind(lists)
        if kind == "words" and len(lists) > sum(isinstance(cell, list) for cell in given):
            kind = "text"  # of brackets and quotes
        if kind == "words":
            words = sum(len(cell) for cell in lists) / len(lists)
        counts = Counter(str(label) for cell in lists for label in cell) if kind == "labels" else Counter()
    elif not texts:
        kind = "other"
    elif numbers >= (len(texts) if len(texts) < 20 else 0.9 * len(texts)):
        ids = len(counts) == len(texts) and len(texts) > 10
        kind = "id" if ids and all(map(str.isdigit, texts)) else "number"
        whole = all(re.fullmatch(r"[+-]?\d+", value) for value in counts)
        kind = "label" if kind == "number" and len(counts) <= 20 and whole else kind
    elif separator:
        kind, counts = "labels", parts
    elif 3.5 <= words < _LONG_LABEL and 1 < len(counts) <= _SENTENCES and len(texts) >= _REPEATED * len(counts):
        kind = "label"
    elif len(texts) > 10 and (
        (words > 1.5 and letters < 0.4) or (words >= 3.5 and len(counts) == 1)
    ):  # a date, a constant
        kind = "other"
    elif words >= 3.5 or (len(counts) > _MAX_CLASSES and words > 1.5):
        kind = "text"
    elif 1 <= len(counts) <= min(_MAX_CLASSES, max(2, len(texts) / 2)):
        kind = "label"
    else:
        kind = "id" if words <= 1.5 and len(counts) > 0.9 * len(texts) else "text"
    example = re.sub(r"\s+", " ", texts[0])[:60] if texts else ""
    few = counts if kind in ("label", "labels", "number") else Counter[str]()
    longest = lengths[int(len(lengths) * 0.99)] if len(lengths) > 1 else lengths[0]
    language = ""
    if kind == "text":
        spoken = languages_of(texts[:: max(1, len(texts) // 50)])
        code, share = next(iter(spoken.items()), ("?", 0.0))
        language = code if share > 0.7 and code != "?" else ""
    return Column(
        name, kind, len(given) / rows, len(counts), words, longest, example, few, separator, decimal, language
    )


def _several(texts: Sequence[str]) -> tuple[str, Counter[str]]:
    """Return the sign between several labels of a cell and the labels' counts: there are fewer than different cells."""
    different = len(set(texts))
    for sign in ";|,#":
        cells = [{part.strip() for part in text.split(sign)} - {""} for text in texts]
        parts = Counter(part for cell in cells for part in cell)
        often = sum(len(cell) > 1 for cell in cells) > 0.1 * len(cells) and parts.total() >= 3 * len(parts)
        if often and 2 <= len(parts) < different and len(parts) <= _MAX_CLASSES:
            return sign, parts
    return "", Counter()


def _list_kind(lists: Sequence[list[Any]]) -> Kind:
    flat = [item for cell in lists[:200] for item in cell]
    if flat and all(isinstance(item, dict) and ({"role", "content"} <= set(item) or "from" in item) for item in flat):
        return "messages"
    if flat and all(_is_span(item) for item in flat):
        return "spans"
    if flat and all(isinstance(item, str) and _TAG.fullmatch(item) for item in flat):
        return "tags"
    if not all(isinstance(item, str | int) for item in flat):
        return "other"
    repeated = len(set(flat)) <= max(3, len(flat) / 20)
    if repeated and sum(map(len, lists)) / len(lists) > 5:
        return "tags"
    return "labels" if len(set(flat)) <= _MAX_CLASSES and sum(map(len, lists)) / len(lists) < 5 else "words"


def _is_span(item: Any) -> bool:
    if isinstance(item, list):
        return [type(part) for part in item] == [int, int, str]
    return (
        isinstance(item, dict)
        and any(name.startswith(("start", "begin")) for name in item)
        and any(name in item for name in LABELS)
    )


def _words(text: str) -> float:
    signs = len(_CJK.findall(text))
    return signs / 2 + len(_CJK.sub(" ", text).split())


def languages_of(texts: Sequence[str]) -> dict[str, float]:
    """Return the languages of texts with their shares, the most frequent first, by ISO 639-1 codes."""
    from textmill.data.cleaning import language_detector

    detector = language_detector([])
    counts = Counter(detector(text[:400]) or "?" for text in texts)
    return {code: count / counts.total() for code, count in counts.most_common()}


def slug(name: str) -> str:
    """Return a name as letters, digits and underscores, as a file of conf/ and Hydra's grammar need it."""
    plain = unicodedata.normalize("NFKD", name.replace("ß", "ss")).encode("ascii", "ignore").decode().lower()
    found = re.sub(r"[^a-z0-9]+", "_", plain).strip("_") or "own_data"
    return f"data_{found}" if is_value(found) else found


def is_value(name: str) -> bool:
    """Return whether params.yaml or Hydra reads a name as a number, a truth value or nothing."""
    return name[0].isdigit() or name.lower() in _VALUES
