"""How commands talk: results on standard output, what goes on meanwhile on standard error."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgecompress.errors import RecordError

LASTING = (
    "failed: ",
    "done: ",
)  # how the pipeline begins to tell of a cell that failed, and of a training that is over
SELDOM_S = (5.0, 60.0)  # lines of one kind come so often at first, and no seldomer than that later


def as_json(value: Any) -> None:
    """A value for a machine, on standard output."""
    print(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False))


def printable(text: str) -> str:
    """Text without what a terminal would obey: it may quote a file, a device or a server."""
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)


def note(text: str) -> None:
    """A line for a person, on standard error."""
    print(printable(text), file=sys.stderr, flush=True)


@contextmanager
def working(first: str) -> Iterator[Callable[[str], None]]:
    """Tell what is going on: a moving line on a terminal; elsewhere lines, without those that only count on."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _seldom(first)
        return
    with console.status(escape(first)) as status:

        def tell(text: str) -> None:
            if text.startswith(LASTING):
                console.print(escape(printable(text)))
            else:
                status.update(escape(printable(text)))

        yield tell


def _seldom(first: str, clock: Callable[[], float] = time.monotonic) -> Callable[[str], None]:
    """Notes a text of a new kind at once, and one that differs from earlier ones by its numbers now and then.

    That is every five seconds at first and later once a tenth of the time that this kind has been told, up to a minute:
    a training of an hour leaves some 70 lines.
    """
    since: dict[str, float] = {}
    told_at = clock()

    def tell(text: str) -> None:
        nonlocal told_at
        kind, now = re.sub(r"\d[\d.,]*(e[+-]?\d+)?( ?(s|min|h)\b)?|\s", "", text), clock()
        gap = min(max(SELDOM_S[0], 0.1 * (now - since.get(kind, now))), SELDOM_S[1])
        if kind in since and now - told_at < gap and not text.startswith(LASTING):
            return
        since.setdefault(kind, now)
        told_at = now
        note(text)

    tell(first)
    return tell


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: Sequence[int] = ()) -> None:
    """Rows in aligned columns on standard output; ``numbers`` are the columns that are set to the right."""
    texts = [[printable(str(cell)).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *texts]) for i in range(len(columns))]
    for line in [list(columns), *texts]:
        cells = [
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def skipped(reasons: dict[str, str]) -> None:
    """Which audio files could not be used: their number, and the first five by name."""
    if not reasons:
        return
    note(f"skipped {len(reasons)} audio file{'s' if len(reasons) > 1 else ''}:")
    for name, reason in list(reasons.items())[:5]:
        note(f"  {name}: {reason}")
    if len(reasons) > 5:
        note(f"  and {len(reasons) - 5} more")


def free_folder(folder: Path, record: str) -> Path:
    """An output folder that may be written whole: absent, empty, or one we wrote before (it holds ``record``).

    Raises:
        RecordError: it holds something else, which writing would replace.
    """
    if folder.exists() and not folder.is_dir():
        raise RecordError(f"{folder} is a file", hint="give another folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / record).is_file():
        raise RecordError(f"{folder} is not empty and has no {record}: it would be replaced", hint="give a new folder")
    return folder
