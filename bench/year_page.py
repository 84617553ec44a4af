"""The page and the picture of `bench.year`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.__main__ import machine
from textmill.metrics.plots import ACCENT, INK, QUIET, drawing, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bench.year import Judged, Lived

_COLOURS = {"films": "#bfdbfe", "products": "#60a5fa", "tweets": "#2563eb", "editorials": "#1e3a8a"}
_SIGNS = {
    "promoted": ("^", ACCENT, "a new version promoted at the month's end"),
    "inconclusive": (".", INK, "none promoted: too little data to tell"),
    "refused": ("x", "#dc2626", "refused by the gate"),
}
_MONTHS = 12
_MARGIN = 0.02
_DRIFT_SHOWN = 3


def write_page(year: Sequence[Lived], judged: Sequence[Judged], seconds: float) -> None:
    """Write `docs/year.md` and `docs/year.png`."""
    from bench.year import ROOT

    (ROOT / "docs/year.png").write_bytes(png(picture(year)))
    (ROOT / "docs/year.md").write_text(page(year, judged, seconds), encoding="utf-8")


def page(year: Sequence[Lived], judged: Sequence[Judged], seconds: float) -> str:
    """Return the page as Markdown."""
    later = year[1:]
    kept, left = (sum(values) / len(later) for values in ([m.served for m in later], [m.first for m in later]))
    lines = [
        "# A year of changing data",
        "",
        "Twelve months of real texts whose mix changes: film reviews, then also reviews of products, tweets and",
        "newspaper editorials (Hutto & Gilbert 2014, three labels). The model is trained, judged, promoted, served and",
        "corrected by Textmill's own commands. In August the users' answers are wrong.",
        "",
        f"*{machine()}; {seconds / 60:.1f} minutes. Command: `make year`, which writes this page.*",
        *([] if len(year) == _MONTHS else ["", f"**The run recorded here was ended after {year[-1].month.name}.**"]),
        "",
        "![Quality over the year](year.png)",
        "",
        f"From February to {year[-1].month.name} the weighted F1 of the answers was {kept:.3f} on average. Version 1",
        f"would have reached {left:.3f} on the same texts.",
        "",
        "## Month by month",
        "",
        "The F1 is measured on the month's texts, before any training has seen them. Drift compares them with the",
        "training data of the champion.",
        "",
        "| month | texts | answered by | F1 | F1 of version 1 | drift | then `textmill retrain` |",
        "|---|---:|---|---:|---:|---|---|",
    ]
    for lived in year:
        done = lived.retrained
        by = "version " + lived.by
        drift = lived.drift["verdict"]
        outcome = f"{done['outcome']} version {done['version']}"
        numbers = f"{lived.month.traffic} | {by} | {lived.served:.3f} | {lived.first:.3f}"
        lines.append(f"| {_named(lived)} | {numbers} | {drift} | {outcome} |")
    lines += ["", "In January the model was trained first: before, there was none to answer.", ""]
    lines += [
        "## Each decision and why",
        "",
        "| month | version | outcome | reason of the gate |",
        "|---|---:|---|---|",
    ]
    for lived in year:
        done = lived.retrained
        reason = _reason(done).replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {lived.month.name} | {done['version']} | {done['outcome']} | {reason} |")
    lines += ["", *_worse(judged), "", *_drift(year), "", *_HOW]
    return "\n".join(lines) + "\n"


def _reason(done: Mapping[str, Any]) -> str:
    """Return why nothing was promoted, or of all checks that passed the one of the difference, else of the metric."""
    words = str(done["words"])
    if done["outcome"] != "promoted":
        return words
    checks = [check for check in words.split("; ") if not check.startswith("slice")]
    told = [check for sign in (": gain", "weighted_f1 is") for check in checks if sign in check]
    return (told or [words])[0]


def _named(lived: Lived) -> str:
    return lived.month.name + (f": {lived.month.note}" if lived.month.note else "")


def _worse(judged: Sequence[Judged]) -> list[str]:
    """Return the table of all versions on reserved rows, with a sentence that the numbers support."""
    compared = [one for one in judged if one.difference is not None]
    promoted = [one for one in compared if one.outcome == "promoted"]
    least = min((one.difference[0] for one in promoted if one.difference), default=0.0)
    worse = [one for one in promoted if one.difference and one.difference[0] < 0]
    proven = [one for one in promoted if one.difference and one.difference[2] < -_MARGIN]
    lines = [
        "## Was a worse model promoted?",
        "",
        "400 rows of each kind of text took no part in training or in the gate. On those of the kinds that had",
        "arrived, each version is compared with the champion that it would replace.",
        "",
        "| version | month | outcome | weighted F1 | difference to the champion (95 % interval) |",
        "|---:|---|---|---:|---:|",
    ]
    for one in judged:
        shown = "-"
        if one.difference is not None:
            value, low, high = one.difference
            shown = f"{value:+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append(f"| {one.version} | {one.month.name} | {one.outcome} | {one.f1:.3f} | {shown} |")
    if worse:
        counts = f"{len(worse)} of {len(promoted)} promoted versions have a lower value, the lowest {least:+.3f}"
        told = f"{counts}; {len(proven)} of them lose more than the gate's margin of {_MARGIN} beyond chance."
    else:
        told = f"No. Each of {len(promoted)} promotions gained; the least by {least:+.3f}."
    return [*lines, "", told]


def _drift(year: Sequence[Lived]) -> list[str]:
    """Return what `textmill drift` flagged in each month."""
    lines = ["## Drift", "", "| month | verdict | flagged, strongest first |", "|---|---|---|"]
    for lived in year:
        flagged = [each for each in lived.drift["measures"] if each["flagged"]]
        shown = [f"{each['subject']}: {each['name']} {each['effect']:.3f}" for each in flagged[:_DRIFT_SHOWN]]
        lines.append(f"| {lived.month.name} | {lived.drift['verdict']} | {'; '.join(shown) or '-'} |")
    return lines


_HOW = [
    "## How it works",
    "",
    "`make year` works in a temporary copy with a registry of its own; yours is not touched. Each month:",
    "",
    "| | command |",
    "|---|---|",
    "| the champion answers; a new one is loaded without a restart | `textmill serve --capture data/own/captured` |",
    "| users answer 70 % of the texts; in September August's answers are sent again, right | `POST /feedback` |",
    "| the texts are compared with the training data | `textmill drift` |",
    "| the team labels 200 rows for the test split, which only the gate uses | a file in `data/own/checked` |",
    "| train, judge, promote | `textmill retrain` |",
    "",
    "From February, each training continues from the champion's weights: `train.start: champion`",
    "([daily training](continuous-training.md)). The model is MiniLM's first two layers. The corpus comes from the",
    "package index.",
]


def picture(year: Sequence[Lived]) -> Figure:
    """Draw the F1 with and without retraining over the months, the promotions, and the mix of texts below."""
    positions = range(len(year))
    with drawing(7.2, 4.6) as (figure, axes):
        axes.remove()
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        above.plot(positions, [m.served for m in year], "-", color=ACCENT, linewidth=2, label="with textmill retrain")
        above.plot(positions, [m.first for m in year], "--", color=QUIET, linewidth=2, label="version 1 all year")
        for place, lived in enumerate(year):
            sign, colour, _ = _SIGNS.get(lived.retrained["outcome"], _SIGNS["inconclusive"])
            above.plot(place, lived.served, sign, color=colour, markersize=7, markeredgewidth=2)
            if lived.retrained["outcome"] == "promoted":
                name, at = f"v{lived.retrained['version']}", (place, lived.served)
                above.annotate(name, at, (0, 8), textcoords="offset points", ha="center", fontsize=8)
        for sign, colour, label in _SIGNS.values():
            above.plot([], [], sign, color=colour, markeredgewidth=2, label=label)
        above.set_ylabel("weighted F1 of the month's answers")
        above.legend(loc="lower left", fontsize=8)
        above.margins(y=0.15)
        above.grid(axis="y")
        bottom = [0.0] * len(year)
        for domain, colour in _COLOURS.items():
            shares = [lived.month.mix.get(domain, 0.0) for lived in year]
            below.bar(positions, shares, 0.9, bottom, color=colour, label=domain)
            bottom = [one + other for one, other in zip(bottom, shares, strict=True)]
        below.set_ylabel("texts")
        below.set_yticks([])
        below.set_xticks(positions, [lived.month.name[:3] for lived in year])
        below.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=len(_COLOURS), fontsize=8)
        bad = next((place for place, lived in enumerate(year) if lived.month.swapped), None)
        if bad is not None:
            above.axvspan(bad - 0.5, bad + 0.5, color="#fee2e2", zorder=0)
            top = above.get_ylim()[1]
            above.annotate("wrong answers\nof users", (bad, top), ha="center", va="top", fontsize=8)
    return figure
