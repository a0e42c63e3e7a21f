"""The report of a run folder: one offline HTML page, ``report.md`` and ``table.csv``.

It reads only that folder, holds no state, and never waits for torch. Whatever is missing from the folder is missing
from the page, and said so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["summary", "write"]


def write(run_folder: Path) -> Path:
    """Write ``report/`` into ``run_folder`` and return the path of its ``index.html``.

    Raises:
        RecordError: no such folder, or nothing in it that a report could show.
    """
    from edgecompress import records
    from edgecompress.report import flat, folder, join, markdown, page

    found = folder.read(run_folder)
    rows = join.rows(found)
    shown = page.page(found, rows)
    target = found.path / "report"
    records.write_text(target / "table.csv", flat.csv_table(_flat(found, rows)))
    records.write_text(target / "report.md", markdown.document(shown))
    records.write_text(target / "index.html", page.html(shown))
    return target / "index.html"


def summary(run_folder: Path) -> list[dict[str, Any]]:
    """One dict of plain values for each artifact on each device, units in the keys.

    Raises:
        RecordError: no such folder, or nothing in it that a report could show.
    """
    from edgecompress.report import folder, join

    found = folder.read(run_folder)
    return _flat(found, join.rows(found))


def _flat(found: Any, rows: Any) -> list[dict[str, Any]]:
    from edgecompress.report import flat, join

    known = join.metrics(found)
    return [flat.flat(row, known, found.random_weights) for row in rows]
