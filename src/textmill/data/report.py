"""Describe the prepared data: counts as JSON, a report with plots for people."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textmill.config.sections.prepare import PrepareConfig
from textmill.data.chunks import SPLIT_CODES
from textmill.data.encoding import SplitCounts
from textmill.data.first_pass import FirstPassResult
from textmill.data.plots import SHOWN_CLASSES, PlotProcess, classes_by_count
from textmill.data.prepared import SPLITS
from textmill.data.rejected_rows_file import RejectedRowsFile
from textmill.data.selection import Selection

_PERCENTILES = (50, 90, 99)


def statistics(
    first_pass: FirstPassResult,
    selection: Selection,
    counts: dict[str, SplitCounts],
    rejected: RejectedRowsFile,
    config: PrepareConfig,
) -> dict[str, Any]:
    """Return all counts as plain JSON values."""
    duplicates = selection.duplicates
    exact, near = int(duplicates.exact.sum()), int(duplicates.near.sum())
    names = {code: name for name, code in SPLIT_CODES.items()}
    across = {f"{names[own]}_in_{names[other]}": count for (own, other), count in sorted(duplicates.across.items())}
    return {
        "rows_read": first_pass.rows,
        "files": len(set(first_pass.files)),
        "read_as": first_pass.formats,
        "labels_unified": [[*key, rows] for key, rows in first_pass.unified.most_common(50)],
        "splits": {name: _split(split, config.max_length) for name, split in counts.items()},
        "duplicates": {
            "total": exact + near,
            "exact": exact,
            "near": near,
            "conflicting_targets": duplicates.conflicts,
            "across": across,
        },
        "rejected": {"total": rejected.total, "reasons": dict(rejected.by_reason.most_common(50))},
        **_optional(first_pass, selection, counts, config),
    }


def _optional(
    first_pass: FirstPassResult, selection: Selection, counts: dict[str, SplitCounts], config: PrepareConfig
) -> dict[str, Any]:
    """Return the counts of what is off by default."""
    values: dict[str, Any] = {}
    if tally := first_pass.quality.counts:
        samples = first_pass.quality.samples
        values["quality"] = {rule: {"count": count, "samples": samples[rule]} for rule, count in tally.most_common()}
    if first_pass.masked:
        values["masked"] = dict(sorted(first_pass.masked.items()))
    if config.decontaminate:
        found = np.bincount(selection.overlapping, minlength=len(SPLITS) + len(config.decontaminate)).tolist()
        names = [held_out.name for held_out in config.decontaminate]
        values["contaminated"] = {name: found[len(SPLITS) + number] for number, name in enumerate(names)}
    if config.mixture is not None:
        values["mixture"] = _mixture(config.mixture, selection, counts["train"])
    return values


def _mixture(weights: dict[str, float], selection: Selection, counts: SplitCounts) -> dict[str, Any]:
    """Return the wanted and the actual share of each source in the training split."""
    units = ("characters", "tokens")
    sums = {unit: max(1, sum(source[unit] for source in counts.sources.values())) for unit in units}
    sources: dict[str, dict[str, float]] = {}
    for name, weight in weights.items():
        of_source = counts.sources.get(name, Counter())
        sources[name] = {"wanted": round(weight / sum(weights.values()), 6), "rows": of_source["rows"]}
        for unit in units:
            sources[name] |= {unit: of_source[unit], f"share_{unit}": round(of_source[unit] / sums[unit], 6)}
    return {"left_out": int(selection.left_out.sum()), "sources": sources}


def _split(counts: SplitCounts, max_length: int) -> dict[str, Any]:
    lengths = counts.lengths
    tokens = int((np.arange(len(lengths)) * lengths).sum())
    return {
        "rows": counts.rows,
        "characters": counts.characters,
        "classes": dict(sorted(counts.classes.items(), key=lambda item: (-item[1], item[0]))),
        "tokens": {
            "total": tokens,
            "mean": round(tokens / counts.rows, 2),
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
    """Return the rows in at most 32 equally wide bins of lengths, by the first length of each bin."""
    width = max(1, -(-len(lengths) // 32))
    sums = np.add.reduceat(lengths, np.arange(0, len(lengths), width))
    return {str(index * width): int(count) for index, count in enumerate(sums)}


def write_report(values: dict[str, Any], folder: Path, rejected: Path, plots: PlotProcess) -> None:
    """Write `README.md` with its plots into `folder`; `values` are the result of `statistics`."""
    folder.mkdir()
    plots.draw(values, folder)
    (folder / "README.md").write_text(_text(values, rejected.name), encoding="utf-8")


def _text(values: dict[str, Any], rejected_file: str) -> str:
    splits = values["splits"]
    duplicates = values["duplicates"]
    lines = [
        "# Data report",
        "",
        f"{values['rows_read']} rows were read from {values['files']} file(s): "
        f"{values['rejected']['total']} were rejected, {duplicates['total']} dropped as duplicates, "
        f"{sum(split['rows'] for split in splits.values())} are left.",
        "",
        "| split | rows | tokens | tokens per row | median | 90 % | 99 % | longest | cut |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, split in splits.items():
        tokens = split["tokens"]
        percentiles = " | ".join(str(tokens[f"percentile_{share}"]) for share in _PERCENTILES)
        lines.append(
            f"| {name} | {split['rows']} | {tokens['total']} | {tokens['mean']} | {percentiles} "
            f"| {tokens['longest']} | {tokens['at_limit']} |"
        )
    lines += ["", "`cut`: rows at or above the token limit; longer ones are truncated.", ""]
    lines += ["![Lengths](lengths.png)", ""]
    if any(split["classes"] for split in splits.values()):
        lines += ["## Balance", "", *_class_table(splits), "", "![Classes](classes.png)", ""]
    lines += ["## Files", "", "| read as | files | such as |", "|---|---:|---|"]
    lines += [f"| {_cell(how)} | {len(set(files))} | `{files[0]}` |" for how, files in values["read_as"].items()]
    lines += ["", "Another format, encoding, separator or sheet: set it in `prepare.read`.", ""]
    if values["labels_unified"]:
        lines += ["Labels that are written otherwise in the files:", "", "| column | written | read | rows |"]
        lines += ["|---|---|---|---:|"]
        for column, written, read, rows in values["labels_unified"]:
            lines.append(f"| {column} | `{_cell(ascii(written)[1:-1])}` | `{_cell(read)}` | {rows} |")
        lines.append("")
    lines += ["## Duplicates", "", "| what | rows |", "|---|---:|"]
    lines += [f"| equal to another row except for case and white space | {duplicates['exact']} |"]
    lines += [f"| nearly equal to another row | {duplicates['near']} |"]
    for pair, count in duplicates["across"].items():
        own, _, other = pair.partition("_in_")
        lines.append(f"| of these: dropped from `{own}` for a duplicate in `{other}` | {count} |")
    lines += [f"| texts with different targets (the first row stays) | {duplicates['conflicting_targets']} |", ""]
    if corrections := values.get("corrections"):
        lines += ["## Corrections", "", f"{corrections['labels']} rows have another label by `prepare.corrections`, "]
        lines[-1] += f"{corrections['removed']} were removed."
        lines.append("")
    if quality := values.get("quality"):
        lines += ["## Quality filters", "", "| a text, or a line of one, | number | samples |", "|---|---:|---|"]
        for rule, entry in quality.items():
            lines.append(f"| {_cell(rule)} | {entry['count']} | {_cell(' / '.join(entry['samples']))} |")
        lines.append("")
    if masked := values.get("masked"):
        lines += ["## Personal data masked", "", "| kind | number |", "|---|---:|"]
        lines += [*(f"| {kind} | {count} |" for kind, count in masked.items()), ""]
    if contaminated := values.get("contaminated"):
        lines += ["## Passages of held-out texts", "", "| held-out texts | training rows removed |", "|---|---:|"]
        lines += [*(f"| {_cell(name)} | {count} |" for name, count in contaminated.items()), ""]
    if mixture := values.get("mixture"):
        lines += ["## Mixture of the training split", "", f"{mixture['left_out']} rows were left out.", ""]
        lines += ["| source | wanted | of characters | of tokens | rows |", "|---|---:|---:|---:|---:|"]
        for name, entry in mixture["sources"].items():
            shares = (f"{entry[key]:.2%}" for key in ("wanted", "share_characters", "share_tokens"))
            lines.append(f"| {_cell(name)} | {' | '.join(shares)} | {entry['rows']} |")
        lines.append("")
    if packing := values.get("packing"):
        lines += ["## Packing of the training split", ""]
        lines += [f"Rows of at most {packing['length']} tokens; used: `{packing['used']}` (`task.packing`).", ""]
        lines += ["| packing | rows | documents cut | share | of the rows filled |", "|---|---:|---:|---:|---:|"]
        for name in ("concatenate", "best_fit"):
            way = packing[name]
            share = f"{way['cut'] / max(1, packing['documents']):.2%}"
            lines.append(f"| {name} | {way['rows']} | {way['cut']} | {share} | {way['filled']:.2%} |")
        lines.append("")
    lines += ["## Rejected rows", ""]
    if not values["rejected"]["total"]:
        return "\n".join([*lines, "None.", ""])
    lines += [f"All are listed in [`{rejected_file}`](../{rejected_file}).", "", "| why | rows |", "|---|---:|"]
    lines += [f"| {_cell(reason)} | {count} |" for reason, count in values["rejected"]["reasons"].items()]
    return "\n".join([*lines, ""])


def _class_table(splits: dict[str, Any]) -> list[str]:
    classes = classes_by_count(splits)
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
