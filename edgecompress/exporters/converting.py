"""Around converters and runtimes, which raise what they like."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgecompress.errors import EdgeCompressError, ExportError

if TYPE_CHECKING:
    from edgecompress.exporters import Exporter
    from edgecompress.exporters.order import Order, Written
    from edgecompress.exporters.parity import Runner


@contextmanager
def converting(what: str, hint: str) -> Iterator[None]:
    """Whatever a converter or runtime raises, it means: this model, this format, not today."""
    try:
        yield
    except EdgeCompressError:
        raise
    except Exception as cause:
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            hint = "free some space; nothing was left behind"
        if isinstance(cause, ImportError):
            hint = "is the format's extra installed? `edgecompress doctor` says"
        raise ExportError(f"{what}: {first_line(cause)}", hint=hint) from cause


def first_line(cause: BaseException, most: int = 300) -> str:
    """The first line of what an error says that is not empty, or its kind where it says nothing."""
    lines = (line.strip() for line in str(cause).splitlines())
    return next((line for line in lines if line), type(cause).__name__)[:most]


def written_and_opened(exporter: Exporter, order: Order) -> tuple[Written, Runner]:
    """Carry out an order, and open what came of it.

    Raises:
        ExportError: the exporter or the runtime failed; the cause is chained.
    """
    with converting(f"{exporter.format} {order.precision}", "try another format or precision"):
        written = exporter.write(order)
        return written, exporter.open(order.folder / written.model_file)
