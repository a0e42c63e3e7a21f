"""Journals of detached jobs as files: whether one is what the device wrote."""

from __future__ import annotations

from pathlib import Path

from bench_remote import journal
from edgecompress.errors import RecordError


def verify(folder: Path) -> int:
    """Check a job's folder, named by the job's id, against the chain of hashes in its journal.

    Returns:
        The number of events.

    Raises:
        RecordError: no journal there, one without its end, or one in which a line was changed, added or left out.
    """
    try:
        return journal.verify(str(folder / "journal"), folder.name)
    except (OSError, journal.Broken) as cause:
        raise RecordError(f"{folder / 'journal'}: {cause}", hint="measure again: this one proves nothing") from cause
