"""The table of faults counts what was tried, what survived and what was lost."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

SUITE = """
import pytest

@pytest.mark.fault("R1", "cut")
def test_kept(ledger):
    ledger.results(wanted=2, got=2)

@pytest.mark.fault("R1", "cut")
def test_lost(ledger):
    ledger.expect(1)
    assert False

@pytest.mark.fault("S10", "killed")
def test_many(ledger):
    for _ in range(5):
        with ledger.trying():
            pass

@pytest.mark.fault("S2", "not here")
@pytest.mark.skip(reason="no such thing here")
def test_skipped(ledger):
    pass

def test_of_no_fault():
    pass
"""


@pytest.mark.parametrize("parallel", [(), ("-n", "2")], ids=["one process", "two processes"])
def test_rows_are_added_up_over_tests_and_processes(pytester: pytest.Pytester, parallel: tuple[str, ...]) -> None:
    pytester.makeini("[pytest]\nmarkers = fault(promise, what): one\n")
    pytester.makeconftest("from tests.conftest import pytest_terminal_summary\nfrom tests.faults.conftest import *\n")
    pytester.makepyfile(SUITE)
    said = pytester.runpytest_subprocess("-p", "no:cacheprovider", *parallel).stdout.str()
    assert "| S2 | not here | not run (1 skipped) | |" in said
    assert "| S10 | killed | 5 | 5 | 0 |" in said
    assert "| R1 | cut | 2 | 1 | 1 |" in said
    assert said.index("| S2 |") < said.index("| S10 |") < said.index("| R1 |")
