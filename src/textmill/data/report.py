"""What the prepared data looks like: figures as JSON, words and pictures for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textmill.config.sections.prepare import PrepareConfig
from textmill.data.encoding import SplitFigures
from textmill.data.intake import SPLIT_CODES, Intake
from textmill.data.pictures import SHOWN_CLASSES, Painter, classes_of
from textmill.data.rejects import RejectFile
from textmill.data.selection import Selection

_PERCENTILES = (50, 90, 99)


def statistics(
    intake: Intake, selection: Selection, figures: dict[str, SplitFigures], rejects: RejectFile, config: PrepareConfig
) -> dict[str, Any]:
    """All counts, as plain JSON values."""
    duplicates = selection.duplicates
    exact, near = int(duplicates.exact.sum()), int(duplicates.near.sum())
    names = {code: name for name, code in SPLIT_CODES.items()}
    across = {f"{names[own]}_in_{names[other]}": count for (own, other), count in sorted(duplicates.across.items())}
    return {
        "rows_read": intake.rows,
        "files": len(set(intake.files)),
        "splits": {name: _split(found, config.max_length) for name, found in figures.items()},
        "duplicates": {
            "total": exact + near,
            "exact": exact,
            "near": near,
            "conflicting_targets": duplicates.conflicts,
            "across": across,
        },
        "rejected": {"total": rejects.total, "reasons": dict(rejects.by_reason.most_common(50))},
    }


def _split(found: SplitFigures, max_length: int) -> dict[str, Any]:
    lengths = found.lengths
    tokens = int((np.arange(len(lengths)) * lengths).sum())
    return {
        "rows": found.rows,
        "characters": found.characters,
        "classes": dict(sorted(found.classes.items(), key=lambda item: (-item[1], item[0]))),
        "tokens": {
            "total": tokens,
            "mean": round(tokens / found.rows, 2),
            **{f"percentile_{share}": _percentile(lengths, share) for share in _PERCENTILES},
            "longest": int(np.flatnonzero(lengths)[-1]),
            "at_limit": int(lengths[max_length:].sum()),
        },
        "lengths": _histogram(lengths),
    }


def _percentile(lengths: NDArray[np.int64], share: int) -> int:
    cumulated = np.cumsum(lengths)
    return int(np.searchsorted(cumulated, cumulated[-1] * share / 100))


def _histogram(lengths: NDArray[np.int64]) -> dict[str, int]:
    """Rows in at most 32 equally wide spans of lengths, by the span's first length."""
    width = max(1, -(-len(lengths) // 32))
    sums = np.add.reduceat(lengths, np.arange(0, len(lengths), width))
    return {str(index * width): int(count) for index, count in enumerate(sums)}


def write_report(found: dict[str, Any], folder: Path, rejects: Path, painter: Painter) -> None:
    """Write `README.md` with its pictures into `folder`."""
    folder.mkdir()
    painter.draw(found, folder)
    pictures = sorted(path.name for path in folder.glob("*.png"))
    (folder / "README.md").write_text(_text(found, pictures, rejects.name), encoding="utf-8")


def _text(found: dict[str, Any], pictures: list[str], rejects: str) -> str:
    splits = found["splits"]
    duplicates = found["duplicates"]
    lines = [
        "# Data report",
        "",
        f"{found['rows_read']} rows were read from {found['files']} file(s): "
        f"{found['rejected']['total']} were rejected, {duplicates['total']} dropped as duplicates, "
        f"{sum(split['rows'] for split in splits.values())} are left.",
        "",
        "| split | rows | tokens | tokens a row | median | 90 % | 99 % | longest | cut |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, split in splits.items():
        tokens = split["tokens"]
        percentiles = " | ".join(str(tokens[f"percentile_{share}"]) for share in _PERCENTILES)
        lines.append(
            f"| {name} | {split['rows']} | {tokens['total']} | {tokens['mean']} | {percentiles} "
            f"| {tokens['longest']} | {tokens['at_limit']} |"
        )
    lines += ["", "`cut`: rows as long as the limit in tokens or cut down to it.", "", "![Lengths](lengths.png)", ""]
    if "classes.png" in pictures:
        lines += ["## Balance", "", *_class_table(splits), "", "![Classes](classes.png)", ""]
    lines += ["## Duplicates", "", "| what | rows |", "|---|---:|"]
    lines += [f"| repeat another row but for case and white space | {duplicates['exact']} |"]
    lines += [f"| nearly repeat another row | {duplicates['near']} |"]
    for pair, count in duplicates["across"].items():
        own, _, other = pair.partition("_in_")
        lines.append(f"| of these: taken out of `{own}` because their like is in `{other}` | {count} |")
    lines += [
        f"| texts that came with unlike targets (the first row stays) | {duplicates['conflicting_targets']} |",
        "",
    ]
    lines += ["## Rejected rows", ""]
    if not found["rejected"]["total"]:
        return "\n".join([*lines, "None.", ""])
    lines += [f"Each is listed in [`{rejects}`](../{rejects}).", "", "| why | rows |", "|---|---:|"]
    lines += [f"| {_cell(reason)} | {count} |" for reason, count in found["rejected"]["reasons"].items()]
    return "\n".join([*lines, ""])


def _class_table(splits: dict[str, Any]) -> list[str]:
    classes = classes_of(splits)
    lines = [f"| class | {' | '.join(splits)} |", f"|---|{'---:|' * len(splits)}"]
    for name in classes[:SHOWN_CLASSES]:
        cells = []
        for split in splits.values():
            count = split["classes"].get(name, 0)
            cells.append(f"{count} ({count / split['rows']:.1%})")
        lines.append(f"| {_cell(name)} | {' | '.join(cells)} |")
    if len(classes) > SHOWN_CLASSES:
        lines.append(f"| and {len(classes) - SHOWN_CLASSES} more |{' |' * len(splits)}")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
