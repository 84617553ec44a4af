"""Write the table of `docs/reliability.md` from the records of `make faults`: `python -m bench.reliability RECORDS`.

Each fault is one row: what the user sees, what is kept, what was measured. With `--keep`, rows of faults that
the records do not have stay as they are.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from bench.__main__ import ROOT, machine

PAGE = ROOT / "docs" / "reliability.md"
_TABLE = re.compile(r"(<!-- faults -->\n)(.*?)(<!-- /faults -->)", re.DOTALL)
_HEAD = "| fault | what the user sees | what is kept | measured |\n|---|---|---|---|\n"


def number(fault: str) -> tuple[int, str]:
    """Return the place of a fault in the table: its number, then its name."""
    found = re.match(r"\d+", fault)
    return (int(found[0]) if found else sys.maxsize, fault)


def row(record: dict[str, str]) -> str:
    """Return a record as a row of a Markdown table."""
    cells = (record[name].replace("|", "\\|").replace("\n", " ") for name in ("fault", "seen", "kept", "measured"))
    return f"| {' | '.join(cells)} |"


def merged(records: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    """Return one record for each fault; of several kinds of it, what was measured stands one after the other."""
    found: dict[str, dict[str, str]] = {}
    for record in records:
        measured = record["measured"]
        if before := found.get(record["fault"]):
            parts = before["measured"].split("; ")
            measured = before["measured"] if measured in parts else f"{before['measured']}; {measured}"
        found[record["fault"]] = {**record, "measured": measured}
    return found


def render(page: str, records: list[dict[str, str]], caption: str, *, keep: bool) -> str:
    """Return the page with the table of the records; records of one fault share a row.

    Raises:
        ValueError: The page has no markers.
    """
    marked = _TABLE.search(page)
    if marked is None:
        raise ValueError(f"{PAGE.name} has no <!-- faults --> <!-- /faults -->")
    rows = {}
    if keep:
        rows = {line.split(" | ")[0].removeprefix("| "): line for line in marked[2].splitlines() if line[:3] != "|--"}
        rows = {fault: line for fault, line in rows.items() if re.match(r"\d", fault)}
    rows |= {fault: row(together) for fault, together in merged(records).items()}
    lines = "\n".join(rows[fault] for fault in sorted(rows, key=number))
    table = f"*{caption}. Command: `make faults`.*\n\n{_HEAD}{lines}\n"
    return page[: marked.start(2)] + table + page[marked.end(2) :]


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="Write the table of docs/reliability.md.")
    parser.add_argument("records", type=Path)
    parser.add_argument("--keep", action="store_true", help="keep the rows of faults without a record")
    arguments = parser.parse_args()
    records = [json.loads(line) for line in arguments.records.read_text(encoding="utf-8").splitlines()]
    page = render(PAGE.read_text(encoding="utf-8"), records, machine(), keep=arguments.keep)
    PAGE.write_text(page, encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(records)} records")


if __name__ == "__main__":
    main()
