"""Jobs whose keeper, supervisor, worker, memory, disk or whole device goes while they run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench_remote import journal, place, processes
from edgecompress import devices, session
from edgecompress.errors import AgentDied, AgentFailed, DeviceFull, DeviceTimeout
from tests import sshd
from tests.detached_jobs import FIVE, Add, jobs, loads, of_job, only_job, parent, slow
from tests.device_fixtures import DOUBLER, ONCE, SLEEPER, gone

ROOT = Path(__file__).resolve().parent.parent
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="the small disk of the loopback device needs root")


# --- the device ------------------------------------------------------------------------------------------------------
def kill_one(kind: str, device: devices.Device) -> Callable[[str], None]:
    """Kills the job's keeper or supervisor outright when the model has loaded."""

    def kill(word: str) -> None:
        if word.endswith("loaded"):
            status = json.loads((Path(device.config.cache) / "jobs" / only_job(device) / "status").read_text())
            pid = status["pid"]
            if kind == "supervisor":
                (pid,) = (one for one in of_job(only_job(device)) if parent(one) == pid)
            os.kill(pid, signal.SIGKILL)

    return kill


@pytest.mark.parametrize("kind", ["keeper", "supervisor"])
def test_a_supervisor_killed_outright_is_told_and_takes_everything_along(
    local_device: devices.Device, tiny_model: Path, stranger: Any, kind: str
) -> None:
    name, seen, kill = stranger("sleeper", SLEEPER), list[int](), kill_one(kind, local_device)

    def watch(word: str) -> None:
        if word.endswith("loaded"):
            seen.extend(of_job(only_job(local_device)))
        kill(word)

    with pytest.raises(AgentDied, match="after 'loaded'; the job's supervisor was killed on the device"):
        session.measure_file(local_device, tiny_model, ONCE, runtime=name, progress=watch)
    assert len(seen) >= 3  # keeper, supervisor, worker; where a core is to spare, a sampler
    assert gone(seen)
    assert jobs(local_device) == []


STUBBORN = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            with open({notes!r}, "a") as stream:
                stream.write("%d\\n" % os.getpid())
            if _:
                os.kill(os.getpid(), signal.SIGSTOP)
            while True:
                time.sleep(1)
        os._exit(0)
    os.wait()
while len(open({notes!r}).readlines()) < 2:
    time.sleep(0.01)
"""


@pytest.mark.parametrize("ending", ["well", "cancel", "deadline", "crash"])
def test_workers_that_ignore_signals_fork_twice_or_are_stopped_end_with_the_job(
    local_device: devices.Device, tiny_model: Path, stranger: Any, tmp_path: Path, ending: str
) -> None:
    notes = tmp_path / "notes"
    notes.touch()
    body = {
        "well": DOUBLER,
        "cancel": SLEEPER,
        "deadline": SLEEPER,
        "crash": DOUBLER.replace('{"y": feeds["x"] * 2}', "os.kill(os.getpid(), signal.SIGSEGV)"),
    }[ending]
    name = stranger(f"stubborn_{ending}", STUBBORN.format(notes=str(notes)) + body)
    seen: list[int] = []

    def watch(word: str) -> None:
        if word.endswith("loaded"):
            seen.extend(of_job(only_job(local_device)))
            if ending == "cancel":
                raise KeyboardInterrupt

    plan = replace(ONCE, timeout_s=4.0) if ending == "deadline" else ONCE
    fails = {"cancel": KeyboardInterrupt, "deadline": DeviceTimeout, "crash": AgentFailed}.get(ending)
    if fails is None:
        assert session.measure_file(local_device, tiny_model, plan, runtime=name, progress=watch).repetitions
    else:
        with pytest.raises(fails):
            session.measure_file(local_device, tiny_model, plan, runtime=name, progress=watch)
    away = [int(line) for line in notes.read_text().splitlines()]
    assert len(away) >= 2
    assert seen
    assert gone([*seen, *away])
    assert jobs(local_device) == []


@pytest.mark.parametrize("ending", ["well", "cancel"])
def test_a_program_that_a_runtime_starts_without_any_environment_ends_too(
    local_device: devices.Device, tiny_model: Path, stranger: Any, tmp_path: Path, ending: str
) -> None:
    notes = tmp_path / "notes"
    bare = f"""
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={{}}, start_new_session=True)
with open({str(notes)!r}, "w") as stream:
    stream.write(str(child.pid))
"""
    name = stranger(f"bare_{ending}", bare + (DOUBLER if ending == "well" else SLEEPER))

    def watch(word: str) -> None:
        if word.endswith("loaded") and ending == "cancel":
            raise KeyboardInterrupt

    if ending == "well":
        assert session.measure_file(local_device, tiny_model, ONCE, runtime=name, progress=watch).repetitions
    else:
        with pytest.raises(KeyboardInterrupt):
            session.measure_file(local_device, tiny_model, ONCE, runtime=name, progress=watch)
    assert gone([int(notes.read_text())])


def test_a_number_that_another_process_has_by_now_is_not_killed() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        started = processes.start_time(child.pid)
        assert started is not None
        assert not processes.end(child.pid, started - 1)
        assert child.poll() is None
        assert processes.end(child.pid, started)
        assert child.wait() == -signal.SIGKILL


def test_a_restarted_device_has_lost_the_job_and_the_next_run_measures_anew(
    ssh_device: Add, loopback: sshd.Sshd, tiny_model: Path, stranger: Any
) -> None:
    device, notes = ssh_device(), loopback.home / "notes-restart"
    name = slow(stranger, notes)

    def power_cut(word: str) -> None:
        if word.endswith("loaded"):
            job = only_job(device)
            status = Path(device.config.cache) / "jobs" / job / "status"
            for pid in loopback.processes():
                os.kill(pid, signal.SIGKILL)
            assert gone(of_job(job))
            status.write_text(json.dumps(json.loads(status.read_text()) | {"boot_id": "another start"}))

    with pytest.raises(AgentDied, match="the device was restarted while the job ran"):
        session.measure_file(device, tiny_model, FIVE, runtime=name, progress=power_cut)
    assert len(session.measure_file(device, tiny_model, FIVE, runtime=name).repetitions[0].samples_ns) == 5
    assert loads(notes) == 2


def test_boot_id_is_read_below_a_root_and_a_changed_one_is_told(tmp_path: Path) -> None:
    here = place.Place(str(tmp_path), "a" * 64)
    here.make()
    here.write_status("running")
    assert "supervisor was killed" in here.lost()
    (tmp_path / "root/proc/sys/kernel/random").mkdir(parents=True)
    (tmp_path / "root/proc/sys/kernel/random/boot_id").write_text("another\n")
    assert "restarted" in here.lost(str(tmp_path / "root"))


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A memory cgroup (version 1 or 2) of 64 MiB below our own; skips where none can be made."""
    own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    v1 = [Path("/sys/fs/cgroup/memory" + path) for _, controllers, path in own if "memory" in controllers.split(",")]
    v2 = [Path("/sys/fs/cgroup" + path) for _, controllers, path in own if not controllers]
    place = (v1 or v2)[0] / f"edgecompress-{os.getpid()}"
    try:
        place.mkdir()
    except OSError as why:
        pytest.skip(f"no memory cgroup can be made here: {why}")
    try:
        (place / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(64 << 20))
        yield place
    except OSError as why:
        pytest.skip(f"no memory cgroup can be limited here: {why}")
    finally:
        for _ in range(100):
            try:
                place.rmdir()
                break
            except OSError:
                time.sleep(0.05)


def test_a_runtime_that_the_kernel_kills_for_memory_is_told_as_that(
    local_device: devices.Device, tiny_model: Path, stranger: Any, small_memory: Path
) -> None:
    greedy = f"""
with open({str(small_memory / "cgroup.procs")!r}, "w") as stream:
    stream.write(str(os.getpid()))
ballast = []
while len(ballast) < 2000:
    ballast.append(bytearray(os.urandom(1 << 20)))
"""
    with pytest.raises(AgentFailed, match=r"^memory: out of memory: .* rose by 1"):
        session.measure_file(local_device, tiny_model, ONCE, runtime=stranger("greedy", greedy + DOUBLER))


def test_a_sigkill_that_nobody_explains_is_a_crash_by_a_signal(
    local_device: devices.Device, tiny_model: Path, stranger: Any
) -> None:
    name = stranger("suicidal", "os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(AgentFailed, match=r"^signal: .*SIGKILL"):
        session.measure_file(local_device, tiny_model, ONCE, runtime=name)


@NEEDS_ROOT
def test_a_disk_that_fills_during_the_job_is_told_by_the_journal_s_reserve(
    ssh_device: Add, loopback: sshd.Sshd, tiny_model: Path, stranger: Any
) -> None:
    device = ssh_device(cache=str(loopback.home / "small/cache"))
    filler = f"""
place = {str(loopback.home / "small/filler")!r}
if not os.path.exists(place + ".done"):
    try:
        with open(place, "wb", buffering=0) as stream:
            while stream.write(bytes(1 << 12)):
                pass
    except OSError:
        pass
    sys.stderr.write("filled")
"""
    with pytest.raises(DeviceFull, match="no space left"):
        session.measure_file(
            device, tiny_model, replace(FIVE, min_samples=3000), runtime=stranger("filler", filler + DOUBLER)
        )
    process = device.transport.start(["rm", "-f", f"{loopback.home}/small/filler"])
    assert process.wait() == 0
    name = stranger("doubler", DOUBLER)
    assert session.measure_file(device, tiny_model, ONCE, runtime=name).repetitions


def test_a_disk_without_room_for_the_reserve_refuses_before_anything_runs(tmp_path: Path) -> None:
    script = """
import resource, signal, sys
from bench_remote.journal import Journal, FULL
log = Journal(sys.argv[1], "a" * 64)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    log.keep_reserve()
except OSError as why:
    print(why.errno in FULL)
log.write({"event": "hello"})
try:
    for number in range(10000):
        log.write({"event": "samples", "ns": [number] * 100})
except OSError as why:
    print(why.errno in FULL)
"""
    path = tmp_path / "journal"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["True", "True"], done.stderr
    events, chain, size = journal.read(str(path), "a" * 64)
    assert chain.offset == size  # nothing half written stays
    assert len(events) > 10
