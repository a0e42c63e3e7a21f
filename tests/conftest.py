"""What every test shares: a settings folder of its own, and no more threads than cores that CI has to spare."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.calling import Answer, Call
from tests.faults import ledger

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the hub

# No time limit an example: a loaded machine is no failure. 30 examples keep a property under a second or two.
settings.register_profile("edgecompress", deadline=None, max_examples=30)
settings.load_profile("edgecompress")

pytest_plugins = ["tests.device_fixtures"] if importlib.util.find_spec("tests.device_fixtures") else []


@pytest.fixture(autouse=True)
def own_settings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Devices and pinned keys of a test's own: the user's are never read or changed."""
    home = tmp_path_factory.mktemp("settings")
    monkeypatch.setenv("EDGECOMPRESS_HOME", str(home))
    monkeypatch.setattr("edgecompress.session.link.LEASE_FOLDERS", ())  # tests do not wait for each other
    return home


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """``call("inspect", path)`` runs a command line in this process."""
    from edgecompress import cli

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        status = cli.main([str(one) for one in arguments])
        return Answer(status, *capsys.readouterr())

    return run


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """``write("job.toml", text)`` makes a file in the test's folder."""

    def make(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return make


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table of faults, wherever a test of one ran."""
    reports = [report for some in terminalreporter.stats.values() for report in some]
    found = ledger.rows(report for report in reports if hasattr(report, "user_properties"))
    if found:
        terminalreporter.section("faults")
        terminalreporter.write_line("\n".join(ledger.table(found)))
