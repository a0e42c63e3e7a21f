"""Jobs that survive the connection and the host, each of which may go at any moment."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench_remote import journal
from edgecompress import devices, session
from edgecompress.devices import ssh
from edgecompress.session import journals, link
from tests import sshd
from tests.detached_jobs import FIVE, Add, followers, jobs, loads, of_job, only_job, parent, slow
from tests.device_fixtures import ONCE, SLEEPER, gone

ROOT = Path(__file__).resolve().parent.parent


# --- the connection --------------------------------------------------------------------------------------------------
def test_a_killed_login_is_made_again_and_every_event_comes_once(
    ssh_device: Add, loopback: sshd.Sshd, tiny_model: Path, stranger: Any
) -> None:
    notes, heard = loopback.home / "notes-login", []
    device = ssh_device()

    def cut(word: str) -> None:
        heard.append(word)
        if word.endswith("loaded"):
            for pid in followers(loopback):
                os.kill(parent(pid), signal.SIGKILL)  # the sshd of this login

    name = slow(stranger, notes)
    measurement = session.measure_file(device, tiny_model, FIVE, runtime=name, progress=cut)
    assert [len(one.samples_ns) for one in measurement.repetitions] == [5]
    assert heard.count("repetition 1: loaded") == 1
    assert "the connection was lost: trying again" in heard
    assert "connected again" in heard
    assert loads(notes) == 1
    assert gone(loopback.processes())
    assert jobs(device) == []


def test_a_link_that_is_cut_again_and_again_only_takes_longer(
    ssh_device: Add, loopback: sshd.Sshd, tiny_model: Path, stranger: Any
) -> None:
    device, notes, words = ssh_device(), loopback.home / "notes-link", []

    def cut(word: str) -> None:
        words.append(word)
        if word.startswith("repetition"):
            device.transport._clients[-1].get_transport().sock.close()  # type: ignore[attr-defined]

    measurement = session.measure_file(device, tiny_model, FIVE, runtime=slow(stranger, notes), progress=cut)
    assert [len(one.samples_ns) for one in measurement.repetitions] == [5]
    assert words.count("the connection was lost: trying again") >= 2
    assert loads(notes) == 1


def test_the_kernel_watches_a_connection_for_us(ssh_device: Add) -> None:
    device = ssh_device()
    assert device.transport.start(["true"]).wait() == 0
    wire = device.transport._clients[-1].get_transport()  # type: ignore[attr-defined]
    assert wire.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert wire.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert wire.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == ssh.USER_TIMEOUT_MS


# --- the host --------------------------------------------------------------------------------------------------------
HOST = """
import sys
from pathlib import Path
from edgecompress import devices, session
from edgecompress.devices import ssh
from edgecompress.session import journals, link
from tests.device_fixtures import ONCE
from dataclasses import replace
link.LEASE_FOLDERS = ()
plan = replace(ONCE, min_samples=5, max_seconds=30.0, memory_pass=False)
with devices.open_device(sys.argv[1]) as device:
    found = session.measure_file(device, Path(sys.argv[2]), plan, runtime=sys.argv[3],
                                 progress=lambda word: print(word, flush=True))
print("samples", len(found.repetitions[0].samples_ns), flush=True)
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a host of its own as a process."""
    running: list[subprocess.Popen[str]] = []

    def start(device: devices.Device, model: Path, runtime: str) -> subprocess.Popen[str]:
        env = dict(os.environ, PYTHONPATH=f"{tmp_path / 'installed'}:{ROOT}")
        command = [sys.executable, "-c", textwrap.dedent(HOST), device.name, str(model), runtime]
        running.append(subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, cwd=tmp_path))
        return running[-1]

    yield start
    for child in running:
        child.kill()
        child.wait()
        assert child.stdout
        child.stdout.close()


def read_until(child: subprocess.Popen[str], word: str) -> list[str]:
    assert child.stdout
    found = []
    for line in child.stdout:
        found.append(line.strip())
        if word in line:
            break
    return found


@pytest.mark.parametrize("kind", ["local", "ssh"])
@pytest.mark.parametrize("when", ["running", "finished"])
def test_a_host_killed_and_started_again_gets_its_job_without_a_second_measurement(
    request: pytest.FixtureRequest, host: Any, tiny_model: Path, stranger: Any, tmp_path: Path, kind: str, when: str
) -> None:
    device = request.getfixturevalue("local_device") if kind == "local" else request.getfixturevalue("ssh_device")()
    notes = (tmp_path if kind == "local" else request.getfixturevalue("loopback").home) / f"notes-{when}"
    name = slow(stranger, notes)
    first = host(device, tiny_model, name)
    read_until(first, "loaded")
    first.kill()
    first.wait()
    job = only_job(device)
    folder = Path(device.config.cache) / "jobs" / job
    if when == "finished":
        assert gone(of_job(job), within_s=30)
        assert '"state": "finished"' in (folder / "status").read_text()
        assert journals.verify(folder) >= 7
    said = read_until(host(device, tiny_model, name), "samples")
    assert said[-1] == "samples 5"
    assert any(when in word or ("runs there" in word and when == "running") for word in said)
    assert loads(notes) == 1
    assert jobs(device) == []


def test_the_same_job_twice_at_once_is_two_measurements_and_they_take_turns(
    local_device: devices.Device, tiny_model: Path, stranger: Any, tmp_path: Path
) -> None:
    name = slow(stranger, tmp_path / "notes")
    words: list[str] = []
    results: list[session.Measurement] = []

    def measure() -> None:
        results.append(session.measure_file(local_device, tiny_model, FIVE, runtime=name, progress=words.append))

    both = [threading.Thread(target=measure) for _ in range(3)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(results) == 3
    spans: dict[str, list[float]] = {}
    for line in (tmp_path / "notes").read_text().splitlines():
        spans.setdefault(line.split()[1], []).append(float(line.split()[2]))
    times = sorted((min(span), max(span)) for span in spans.values())
    assert len(times) == 3
    assert all(earlier[1] < later[0] for earlier, later in itertools.pairwise(times))
    assert any(word == f"waiting for {link.who()}, 1 before you" for word in words)
    assert any(word == f"waiting for {link.who()}, 2 before you" for word in words)


def test_a_host_that_is_interrupted_ends_its_job_at_once(
    ssh_device: Add, loopback: sshd.Sshd, host: Any, tiny_model: Path, stranger: Any
) -> None:
    device = ssh_device()
    child = host(device, tiny_model, stranger("sleeper", SLEEPER))
    read_until(child, "loaded")
    running = of_job(only_job(device))
    assert len(running) >= 3  # keeper, supervisor, worker; where a core is to spare, a sampler
    child.send_signal(signal.SIGINT)
    child.wait()
    assert gone([*running, *loopback.processes()])
    assert jobs(device) == []


def test_a_job_that_nobody_follows_ends_itself_and_its_journal_says_so(
    local_device: devices.Device, tiny_model: Path, stranger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = stranger("sleeper", SLEEPER)
    monkeypatch.setattr(link, "ORPHAN_S", 1.0)

    def leave(word: str) -> None:
        if word.endswith("loaded"):
            raise OSError("the host goes away")

    monkeypatch.setattr(link.Link, "cancel", link.Link.leave)
    with pytest.raises(OSError, match="goes away"):
        session.measure_file(local_device, tiny_model, ONCE, runtime=name, progress=leave)
    job = only_job(local_device)
    assert gone(of_job(job), within_s=30)
    path = Path(local_device.config.cache) / "jobs" / job / "journal"
    events = journal.read(str(path), job)[0]
    assert (events[-1]["event"], events[-1]["kind"]) == ("failed", "orphan")
