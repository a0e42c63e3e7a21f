"""Calling the command line from a test, and what it left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """What a command line left: exit status and both outputs."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    def is_refused(self) -> bool:
        """One ``error:``, one ``hint:``, status 2, and no traceback."""
        lines = self.err.splitlines()
        marks = [sum(line.startswith(mark) for line in lines) for mark in ("error:", "hint:", "Traceback")]
        return self.status == 2 and marks == [1, 1, 0]


Call = Callable[..., Answer]
