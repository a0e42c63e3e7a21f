"""What was tried, what survived and what was lost: a row for each promise and fault, told when the suite ends.

A test of a fault takes the fixture ``ledger`` and is marked ``@pytest.mark.fault("R1", "link cut in the middle of a
run")``. It counts as one try, unless it opens more of them:

    with ledger.trying():          # a try that survives when this block ends without an error
        ledger.results(wanted=1, got=len(fetched))

``results`` are those that the user should have in the end. What was wanted in a try that failed before ``got`` could be
told is lost.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

PROPERTY = "fault"


@dataclass
class Ledger:
    """The tries of one test."""

    tries: int = 0
    survived: int = 0
    wanted: int = 0
    got: int = 0

    @contextlib.contextmanager
    def trying(self) -> Iterator[None]:
        """One try."""
        self.tries += 1
        yield
        self.survived += 1

    def expect(self, wanted: int) -> None:
        """So many results are due; until ``fetched``, they count as lost."""
        self.wanted += wanted

    def fetched(self, got: int) -> None:
        """So many of them are there."""
        self.got += got

    def results(self, wanted: int, got: int) -> None:
        """Both at once."""
        self.expect(wanted)
        self.fetched(got)


def rows(reports: Iterable[Any]) -> list[tuple[str, str, int, int, int, int]]:
    """``(promise, fault, tries, survived, results lost, skipped tests)`` from the reports of a suite, by promise."""
    found: dict[tuple[str, str], list[int]] = {}
    for report in reports:
        text = dict(report.user_properties).get(PROPERTY)
        if text is None:
            continue
        one = json.loads(text)
        row = found.setdefault((one["promise"], one["fault"]), [0, 0, 0, 0])
        if report.skipped:
            row[3] += 1
            continue
        tries, survived = one["tries"], one["survived"]
        if tries == 0 or (report.failed and survived == tries):
            tries, survived = max(tries, 1), max(tries, 1) - report.failed
        for place, more in enumerate((tries, survived, max(one["wanted"] - one["got"], 0))):
            row[place] += more
    return [(*key, *row) for key, row in sorted(found.items(), key=lambda item: _order(item[0]))]  # type: ignore[misc]


def _order(key: tuple[str, str]) -> tuple[int, int, str]:
    promise, fault = key
    return "SRP".index(promise[0]), int(promise[1:]), fault


def table(found: list[tuple[str, str, int, int, int, int]]) -> list[str]:
    """Lines of Markdown."""
    lines = ["| promise | fault | tries | survived | results lost |", "|---|---|---:|---:|---:|"]
    for promise, fault, tries, survived, lost, skipped in found:
        counts = f"{tries} | {survived} | {lost}" if tries else f"not run ({skipped} skipped) | |"
        lines.append(f"| {promise} | {fault} | {counts} |")
    return lines


def told(item: pytest.Item, ledger: Ledger) -> str | None:
    """What a test has tried, to travel with its report; None for a test of no fault."""
    mark = item.get_closest_marker("fault")
    if mark is None:
        return None
    promise, fault = mark.args
    return json.dumps(vars(ledger) | {"promise": promise, "fault": fault})
