"""Unpack the records that tools for annotation export: Label Studio and Prodigy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ANSWERED = "was answered"
"""How the reason begins for which an answered row is rejected."""


def unpacked(record: Mapping[str, Any]) -> Mapping[str, Any] | str:
    """Return a record with its texts and labels as columns, any other record as it is, or why a row is rejected.

    A task of Label Studio gets a column for each control, from its annotation that is the ground truth, else from the
    first one that was not cancelled. Of Prodigy, rows that were ignored or rejected are no examples; a rejected label
    becomes `not LABEL`.
    """
    if isinstance(record.get("data"), dict):
        annotations = record.get("annotations", record.get("completions"))
        if isinstance(annotations, list):
            return {"id": record.get("id"), **record["data"], **_annotated(annotations)}
    if "answer" in record and not record.keys().isdisjoint(("_task_hash", "_input_hash")):
        return _answered(record)
    return record


def _annotated(annotations: list[Any]) -> dict[str, Any]:
    valid = [each for each in annotations if isinstance(each, dict) and not each.get("was_cancelled")]
    chosen = next((each for each in valid if each.get("ground_truth")), next(iter(valid), {}))
    row: dict[str, Any] = {}
    for item in chosen.get("result") or []:
        value = item.get("value") if isinstance(item, dict) else None
        if not isinstance(value, dict) or not value:  # a relation
            continue
        place = value.get("globalOffsets") or value  # of text in HTML
        name = str(item.get("from_name", "label"))
        if "start" in place and "end" in place:
            kinds = [key for key in value if key.endswith("labels") or key == "choices"]
            labels = value[kinds[0]] if kinds else []
            spans = row.setdefault(name, [])
            spans += [{"start": place["start"], "end": place["end"], "label": label} for label in labels]
        else:
            row[name] = next(iter(value.values()))
    return row


def _answered(record: Mapping[str, Any]) -> Mapping[str, Any] | str:
    answer, label = record["answer"], record.get("label")
    row = {name: cell for name, cell in record.items() if not name.startswith("_")}
    for name in ("answer", "options", "config", "tokens"):
        row.pop(name, None)
    if answer == "reject" and isinstance(label, str) and "spans" not in record:
        return {**row, "label": f"not {label}"}
    return row if answer == "accept" else f"{ANSWERED} {answer!r} in Prodigy"
