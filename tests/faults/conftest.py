"""The ledger of each test, and its way into the table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.ledger import PROPERTY, Ledger, told

KEPT = pytest.StashKey[Ledger]()


@pytest.fixture
def ledger(request: pytest.FixtureRequest) -> Ledger:
    """Where a test counts its tries and results; see ``tests.faults.ledger``."""
    return request.node.stash.setdefault(KEPT, Ledger())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if call.when == "call" or (call.when == "setup" and not report.passed):
        text = told(item, item.stash.get(KEPT, Ledger()))
        if text is not None:
            report.user_properties.append((PROPERTY, text))
    return report
