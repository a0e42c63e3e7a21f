"""Jobs that survive: the connection, the host, the supervisor and the device's memory may each go at any moment."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench_remote import journal, keeper, place, processes
from edgecompress import devices, session
from edgecompress.devices import ssh
from edgecompress.errors import AgentDied, AgentFailed, DeviceFull, DeviceTimeout, RecordError
from edgecompress.session import journals, link
from tests import sshd
from tests.device_fixtures import DOUBLER, ONCE, SLEEPER, gone

Add = Callable[..., devices.Device]
ROOT = Path(__file__).resolve().parent.parent
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="the small disk of the loopback device needs root")
# A runtime's body that works, whose every run takes a while, and that notes each start of a worker and its runs.
SLOW = """
with open({place!r}, "a") as stream:
    stream.write("load %d %f\\n" % (os.getpid(), time.monotonic()))
def run(feeds):
    time.sleep({seconds})
    with open({place!r}, "a") as stream:
        stream.write("run %d %f\\n" % (os.getpid(), time.monotonic()))
    return {{"y": feeds["x"] * 2}}
""" + DOUBLER.replace("(lambda feeds: {", "run if True else (lambda feeds: {").replace("{", "{{").replace("}", "}}")
FIVE = replace(ONCE, min_samples=5, max_seconds=30.0, memory_pass=False)


def slow(stranger: Callable[[str, str], str], notes: Path, seconds: float = 0.4) -> str:
    """A runtime that notes what it does at ``notes``; its name is new, since modules are imported once."""
    notes.touch()
    notes.chmod(0o666)
    return stranger(f"slow_{secrets.token_hex(4)}", SLOW.format(place=str(notes), seconds=seconds))


def loads(notes: Path) -> int:
    """How many workers have loaded the model; each does so twice."""
    return len({line.split()[1] for line in notes.read_text().splitlines() if line.startswith("load")})


def jobs(device: devices.Device) -> list[str]:
    folder = Path(os.path.expanduser(device.config.cache)) / "jobs"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def marked() -> list[int]:
    """Processes that carry the mark of a detached job of this test's runtimes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.startswith(b"EDGECOMPRESS_JOB=") for word in words):
                found.append(int(entry.name))
    return found


def of_job(job_id: str) -> list[int]:
    """Processes of one job."""
    return [pid for pid in marked() if f"EDGECOMPRESS_JOB={job_id}".encode() in environ(pid)]


def environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def only_job(device: devices.Device, within_s: float = 20.0) -> str:
    """The id of the one job that is on the device, once it is there."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        found = jobs(device)
        if found and (Path(device.config.cache).expanduser() / "jobs" / found[0] / "status").exists():
            return found[0]
        time.sleep(0.05)
    raise AssertionError("no job began")


def followers(loopback: sshd.Sshd) -> list[int]:
    """Processes of ours on the device that are no part of a job: the host's ends."""
    return [pid for pid in loopback.processes() if b"EDGECOMPRESS_JOB=" not in environ(pid)]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


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


# --- the journal -----------------------------------------------------------------------------------------------------
def written(path: Path) -> None:
    log = journal.Journal(str(path), "a" * 64)
    for number in range(3):
        log.write({"event": "samples", "ns": [number, 1000]})
    log.end({"event": "done"})
    log.close()


def edited(kind: str, lines: list[bytes]) -> list[bytes]:
    """The lines of a journal after somebody was there."""
    if kind == "number":
        return [line.replace(b"1000", b"999") if number == 1 else line for number, line in enumerate(lines)]
    if kind == "left out":
        return lines[:1] + lines[2:]
    if kind == "order":
        return [lines[0], lines[2], lines[1], lines[3]]
    return lines[:-1]


def test_a_journal_that_is_whole_verifies(tmp_path: Path) -> None:
    written(tmp_path / "journal")
    assert journal.verify(str(tmp_path / "journal"), "a" * 64) == 4
    with pytest.raises(journal.Broken):
        journal.verify(str(tmp_path / "journal"), "b" * 64)


@pytest.mark.parametrize("kind", ["number", "left out", "order", "end"])
def test_a_journal_that_somebody_edited_does_not_verify(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "journal"
    written(path)
    path.write_bytes(b"".join(edited(kind, path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(journal.Broken):
        journal.verify(str(path), "a" * 64)


def test_what_was_half_written_is_cut_off_and_the_chain_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    log = journal.Journal(str(path), "a" * 64)
    log.write({"event": "hello"})
    log.close()
    with path.open("ab") as stream:
        stream.write(b'{"event": "samples", "ns": [1, 2')
    log = journal.Journal(str(path), "a" * 64)
    log.end({"event": "failed"})
    log.close()
    assert journal.verify(str(path), "a" * 64) == 2


def test_a_journal_edited_on_the_device_is_not_believed(
    local_device: devices.Device, tiny_model: Path, stranger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = slow(stranger, tmp_path / "notes", seconds=0.05)
    monkeypatch.setattr(link.Link, "cancel", link.Link.leave)

    def leave(word: str) -> None:
        if word.endswith("loaded"):
            raise OSError("the host goes away")

    with pytest.raises(OSError, match="goes away"):
        session.measure_file(local_device, tiny_model, FIVE, runtime=name, progress=leave)
    job = only_job(local_device)
    assert gone(of_job(job), within_s=30)
    path = Path(local_device.config.cache) / "jobs" / job / "journal"
    content = path.read_bytes()
    at = content.index(b'"load_s": ') + len(b'"load_s": ')
    path.write_bytes(content[:at] + b"9" + content[at + 1 :])
    monkeypatch.undo()
    monkeypatch.setenv("EDGECOMPRESS_HOME", str(tmp_path / "edgecompress"))
    monkeypatch.setattr(link, "LEASE_FOLDERS", ())
    with pytest.raises(RecordError, match="was changed"):
        journals.verify(path.parent)
    with pytest.raises(AgentFailed, match="journal was changed"):
        session.measure_file(local_device, tiny_model, FIVE, runtime=name)


def test_a_job_s_name_depends_on_what_it_does_and_for_whom_and_its_parts_are_checked(tmp_path: Path) -> None:
    job = {"action": "measure", "threads": 1, "who": "anna@desk"}
    assert link.name(job, "/a/b/agent", 0) == link.name(dict(job), "/c/agent", 0)
    others = [link.name(job | {"threads": 2}, "agent", 0), link.name(job | {"who": "ben@desk"}, "agent", 0)]
    assert len({link.name(job, "agent", 0), link.name(job, "agent", 1), *others}) == 4
    for hostile in ("../../etc", "A" * 64, "", None, "a" * 63):
        with pytest.raises(place.Refusal):
            place.Place(str(tmp_path), hostile)


def test_a_keeper_s_default_of_being_orphaned_is_the_host_s() -> None:
    assert keeper.ORPHAN_S == link.ORPHAN_S == 900.0
