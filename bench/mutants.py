"""Change one place at a time in the code of `[tool.mutmut]` and list the changes that no test notices: `make mutants`.

Mutmut makes the changes in a copy of the project, `mutants/`, and runs the tests that reach the changed function.
The tables go into `docs/reliability.md`, the changes that survive into `docs/surviving-changes.md`. Names of mutants
or patterns (`textmill.metrics.bootstrap*`) restrict the run; `--report` only reads the last run.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import subprocess
import sys
from collections.abc import Iterator

from bench.__main__ import ROOT, machine
from bench.reliability import PAGE

FOLDER = ROOT / "mutants"
LIST = ROOT / "docs/surviving-changes.md"
HEAD = """# Changes of the code that no test notices

Listed by `make mutants`; [reliability.md](reliability.md#tests-of-the-tests) counts and explains them.
"""
_TABLE = re.compile(r"(<!-- mutants -->\n)(.*?)(<!-- /mutants -->)", re.DOTALL)
_KINDS = {
    "the text of an error, a log line or a key of a report": r"XX|[\"']",
    "`None` in place of a value": r"\bNone\b",
    "a number, by one or twofold": r"\d",
    "a comparison, an operator or a condition": r"[<>=!+*/%-]=?|\b(not|and|or|in|is|break|continue)\b",
}
_OTHER = "an argument that is left out, and the like"


def results() -> dict[str, dict[str, str]]:
    """Return the status of every mutant, by file."""
    from mutmut.stats import status_by_exit_code

    found: dict[str, dict[str, str]] = {}
    for meta in sorted((FOLDER / "src").rglob("*.py.meta")):
        codes = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
        if codes:
            found[str(meta.relative_to(FOLDER)).removesuffix(".meta")] = {
                name: status_by_exit_code[code] for name, code in codes.items()
            }
    return found


def difference(name: str, file: str) -> str:
    """Return a mutant of a file as a unified diff."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    return get_diff_for_mutant(name, path=file)


def kind(diff: str) -> str:
    """Return what kind of change a diff makes, from the words that only one of its sides has."""
    sides = [
        {word for line in diff.splitlines() if re.match(rf"\{sign}(?!\{sign})", line) for word in _words(line[1:])}
        for sign in "-+"
    ]
    changed = " ".join(sides[0] ^ sides[1])
    return next((name for name, pattern in _KINDS.items() if re.search(pattern, changed)), _OTHER)


def _words(line: str) -> Iterator[str]:
    return (found[0] for found in re.finditer(r"\"[^\"]*\"|'[^']*'|\w+|[^\w\s]+", line))


def tables(found: dict[str, dict[str, str]], kinds: dict[str, int]) -> str:
    """Return the results as two tables in Markdown."""
    lines = ["| file | changes | noticed | survived | reached by no test |", "|---|---|---|---|---|"]
    totals: collections.Counter[str] = collections.Counter()
    for file, statuses in found.items():
        counts = collections.Counter(statuses.values())
        counts = collections.Counter(
            all=len(statuses),
            noticed=counts["killed"] + counts["timeout"] + counts["segfault"],
            survived=counts["survived"],
            none=counts["no tests"],
        )
        totals += counts
        lines.append(f"| `{file.removeprefix('src/textmill/')}` | {_cells(counts)} |")
    lines += [f"| together | {_cells(totals)} |", "", "| survivors change | number |", "|---|---|"]
    lines += [f"| {name} | {kinds[name]} |" for name in [*_KINDS, _OTHER] if kinds.get(name)]
    return "\n".join(lines)


def listing(diffs: dict[str, str]) -> str:
    """Return the surviving changes as Markdown: by function, the line before and after."""
    lines = [HEAD]
    function = ""
    for name, diff in diffs.items():
        now = name.rpartition("__mutmut_")[0].removeprefix("textmill.").replace("xǁ", "").replace("ǁ", ".")
        now = now.replace(".x_", ".")
        if now != function:
            lines += ["```", ""] if function else []
            lines += [f"`{now}`", "```diff"]
            function = now
        lines += [f"{line[0]}{line[1:].strip()}" for line in diff.splitlines() if re.match(r"[+-](?![+-]{2})", line)]
    return "\n".join([*lines, *(["```"] if function else []), ""])


def _cells(counts: collections.Counter[str]) -> str:
    return " | ".join(str(counts[name]) for name in ("all", "noticed", "survived", "none"))


def main() -> None:
    """Run mutmut and write the page."""
    parser = argparse.ArgumentParser(description="List changes of the code that no test notices.")
    parser.add_argument("--report", action="store_true", help="report the last run")
    parser.add_argument("--processes", default="2", help="mutants that are tried at once")
    parser.add_argument("mutants", nargs="*", help="names or patterns; all by default")
    arguments = parser.parse_args()
    if not arguments.report:
        subprocess.run(
            ["mutmut", "run", "--max-children", arguments.processes, *arguments.mutants], cwd=ROOT, check=True
        )
    found = results()
    diffs = {
        name: difference(name, file)
        for file, statuses in found.items()
        for name, status in statuses.items()
        if status == "survived"
    }
    LIST.write_text(listing(diffs), encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    marked = _TABLE.search(text)
    if marked is None:
        sys.exit(f"error: {PAGE.name} has no <!-- mutants --> <!-- /mutants -->")
    kinds = collections.Counter(map(kind, diffs.values()))
    table = f"*{machine()}. Command: `make mutants`.*\n\n{tables(found, kinds)}\n"
    PAGE.write_text(text[: marked.start(2)] + table + text[marked.end(2) :], encoding="utf-8")
    print(f"{len(diffs)} changes survived: {LIST.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
