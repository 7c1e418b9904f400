"""What becomes of every tensor, as a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from phiquant.plan import Slot
from phiquant.report import Compressed, Report, Skipped


def outline(slots: Iterable[Slot]) -> Report:
    """What would become of these parameters, from their shapes alone."""
    report = Report()
    for slot in slots:
        add_entry(report, slot, {})
    return report


def add_entry(report: Report, slot: Slot, note: Mapping[str, Any]) -> None:
    """Add to a report what was planned of a parameter, and what was noted when it was done."""
    names = tuple(slot.names)
    if slot.config is None or "grown" in note:
        reason = note.get("grown", slot.reason)
        report.skipped.append(Skipped(names, slot.shape, slot.bytes, reason))
        return
    stored, estimated = note.get("bytes", slot.stored_bytes), slot.config.exact
    entry = Compressed(
        names, slot.shape, slot.bytes, stored, note.get("error"), estimated and "bytes" not in note
    )
    report.compressed.append(entry)


def as_json(report: Report) -> dict[str, Any]:
    """A report for programs."""
    return {
        "original_bytes": report.original_bytes,
        "stored_bytes": report.stored_bytes,
        "bits_per_weight": report.bits_per_weight,
        "compressed": [
            {
                "names": list(entry.names),
                "shape": list(entry.shape),
                "original_bytes": entry.original_bytes,
                "stored_bytes": entry.stored_bytes,
                "bits_per_weight": entry.bits_per_weight,
                "relative_error": entry.relative_error,
                "estimated": entry.estimated,
            }
            for entry in report.compressed
        ],
        "left_alone": [
            {
                "names": list(entry.names),
                "shape": list(entry.shape),
                "bytes": entry.bytes,
                "reason": entry.reason,
            }
            for entry in report.skipped
        ],
    }
