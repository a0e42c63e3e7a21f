"""One measurement at a time on a board: turns in order, dead and hung holders, and who is named."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench_remote import lease, oom
from bench_remote.lease import Lease
from bench_remote.store import Refusal
from tests.device_fixtures import gone

ROOT = Path(__file__).resolve().parent.parent
# Takes the lease as argv says, tells when it has it, and holds it until its standard input says something.
HOLDER = """
import sys, time
from bench_remote.lease import Lease
mine = Lease([sys.argv[1]], sys.argv[2], sys.argv[3])
mine.take(60, time.sleep, lambda who, before: print("waiting", who, before, flush=True))
print("holds", flush=True)
sys.stdin.readline()
mine.close()
print("gave back", flush=True)
"""


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    place = tmp_path / "shared"
    place.mkdir()
    return place


@pytest.fixture
def holder(shared: Path, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a process of somebody who wants the lease, with a cache of his own."""
    running: list[subprocess.Popen[str]] = []

    def start(who: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", HOLDER, str(shared), str(tmp_path / f"cache-{who}"), who]
        running.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT))
        return running[-1]

    yield start
    for child in running:
        child.kill()
        child.communicate()


def says(child: subprocess.Popen[str]) -> str:
    assert child.stdout
    return child.stdout.readline().strip()


def ask(child: subprocess.Popen[str]) -> None:
    assert child.stdin
    child.stdin.write("\n")
    child.stdin.flush()


def test_turns_are_taken_in_the_order_of_asking_and_the_wait_is_shown(
    holder: Callable[..., subprocess.Popen[str]],
) -> None:
    anna = holder("anna@desk")
    assert says(anna) == "holds"
    ben = holder("ben@lab")
    assert says(ben) == "waiting anna@desk 1"
    cleo = holder("cleo@hut")
    assert says(cleo) == "waiting anna@desk 2"
    ask(anna)
    assert says(anna) == "gave back"
    assert says(ben) == "holds"
    assert says(cleo) == "waiting ben@lab 1"
    ask(ben)
    assert says(cleo) == "holds"


def test_a_dead_holder_s_lease_ends_with_it(holder: Callable[..., subprocess.Popen[str]]) -> None:
    anna = holder("anna@desk")
    assert says(anna) == "holds"
    ben = holder("ben@lab")
    assert says(ben) == "waiting anna@desk 1"
    anna.kill()
    assert says(ben) == "holds"


def hung(holder: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen[str]:
    """Anna, who has the lease, is stopped, and soon counts as hung."""
    anna = holder("anna@desk")
    assert says(anna) == "holds"
    anna.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(lease, "HUNG_S", 0.5)
    return anna


def test_a_holder_that_hangs_is_passed_by_and_ended(
    holder: Callable[..., subprocess.Popen[str]], shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna = hung(holder, monkeypatch)
    mine = Lease([str(shared)], str(tmp_path / "cache"), "me@here")
    heard: list[str] = []
    mine.take(20, time.sleep, lambda who, before: heard.append(who))
    mine.close()
    assert gone([anna.pid])


def test_a_hung_holder_of_another_user_is_passed_by_though_it_cannot_be_ended(
    holder: Callable[..., subprocess.Popen[str]], shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung(holder, monkeypatch)
    monkeypatch.setattr(lease.Ticket, "end_hung", lambda self: None)  # as the kernel would answer us: not permitted
    mine = Lease([str(shared)], str(tmp_path / "cache"), "me@here")
    mine.take(20, time.sleep, lambda who, before: None)
    ben = Lease([str(shared)], str(tmp_path / "cache-ben"), "ben@lab")
    monkeypatch.setattr(lease, "HUNG_S", 60.0)
    with pytest.raises(Refusal, match=r"anna@desk|me@here"):
        ben.take(0.3, time.sleep, lambda who, before: None)
    mine.close()


def test_a_holder_that_stood_still_knows_that_its_lease_is_lost(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Lease([str(shared)], str(tmp_path / "cache"), "me@here")
    mine.take(1, time.sleep, lambda who, before: None)
    mine.beat()
    monkeypatch.setattr(lease, "HUNG_S", 0.0)
    with pytest.raises(lease.Lost, match="stopped for"):
        mine.beat()
    mine.close()


def test_who_waits_too_long_is_told_who_measures_and_leaves_no_ticket(
    holder: Callable[..., subprocess.Popen[str]], shared: Path, tmp_path: Path
) -> None:
    assert says(holder("anna@desk")) == "holds"
    before = sorted(os.listdir(shared / "edgecompress"))
    with pytest.raises(Refusal, match=r"anna@desk measures on this device \(waited 0 s\)") as busy:
        Lease([str(shared)], str(tmp_path / "cache"), "me@here").take(0.3, time.sleep, lambda who, before: None)
    assert busy.value.need == "lock"
    assert sorted(os.listdir(shared / "edgecompress")) == before


def test_what_strangers_write_on_tickets_is_only_shown_as_text(shared: Path, tmp_path: Path) -> None:
    folder = Path(lease.shared_folder([str(shared)], str(tmp_path / "cache")))
    contents = [
        json.dumps({"who": "\x1b[2Jx" * 100, "running": True, "pid": "1"}),
        "[]",
        "\xff",
        json.dumps({"who": 3}),
    ]
    streams = []
    for number, content in enumerate(contents):
        path = folder / f"{number + 1:020d}.{number}"
        path.write_text(content, encoding="latin-1")
        streams.append(path.open("a"))
        fcntl.flock(streams[-1], fcntl.LOCK_EX)
    (folder / "00000000000000000009.9").symlink_to("/etc/passwd")
    (folder / "not a ticket").write_text("x")
    with pytest.raises(Refusal) as busy:
        Lease([str(shared)], str(tmp_path / "cache"), "me@here").take(0.0, time.sleep, lambda who, before: None)
    assert busy.value.message.isprintable()
    assert len(busy.value.message) < 250
    for stream in streams:
        stream.close()


def test_the_folder_is_shared_by_all_users_where_one_is_writable_else_the_cache_s(shared: Path, tmp_path: Path) -> None:
    found = Path(lease.shared_folder(["/proc/nowhere", str(shared)], str(tmp_path / "cache")))
    assert found == shared / "edgecompress"
    assert found.stat().st_mode & 0o7777 == 0o1777
    assert lease.shared_folder(["/proc/nowhere"], str(tmp_path / "cache")) == str(tmp_path / "cache/lease")


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_two_users_take_turns_in_a_folder_that_neither_owns_alone(shared: Path, tmp_path: Path) -> None:
    for place in (tmp_path, *tmp_path.parents):
        if os.stat(place).st_uid == os.getuid() and place != Path("/"):
            place.chmod(place.stat().st_mode | 0o011)
    shared.chmod(0o1777)
    mine = Lease([str(shared)], str(tmp_path / "cache"), "root@here")
    mine.take(1, time.sleep, lambda who, before: None)
    home = tmp_path / "other"
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    script = HOLDER.replace(
        "import sys, time",
        f"import os, sys, time\nsys.path.insert(0, {str(ROOT)!r})\nimport bench_remote.lease\nos.setgid(2001); os.setuid(2001)",
    )
    command = [sys.executable, "-c", script, str(shared), str(home), "other@there"]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert says(other) == "waiting root@here 1"
        mine.close()
        assert says(other) == "holds"
        with pytest.raises(Refusal, match="other@there"):
            Lease([str(shared)], str(tmp_path / "cache"), "root@here").take(0.3, time.sleep, lambda who, before: None)
    finally:
        other.kill()
        other.communicate()


# --- out of memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cgroup", "path", "text"),
    [
        ("0::/user.slice/job\n", "sys/fs/cgroup/user.slice/job/memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill {}\n"),
        ("4:memory:/job\n0::/\n", "sys/fs/cgroup/memory/job/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"),
        ("0::/../../etc\n", "proc/vmstat", "nr_free_pages 12\noom_kill {}\n"),
    ],
)  # fmt: skip
def test_an_out_of_memory_kill_is_seen_in_whichever_counter_there_is(
    tmp_path: Path, cgroup: str, path: str, text: str
) -> None:
    for name, content in (("proc/self/cgroup", cgroup), (path, text.format(4))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    before = oom.kills(str(tmp_path))
    assert list(before.values()) == [4]
    assert oom.reason(before, oom.kills(str(tmp_path)), 0.5) == ""
    (tmp_path / path).write_text(text.format(5))
    assert "rose by 1" in oom.reason(before, oom.kills(str(tmp_path)), 0.5)


def test_without_counters_little_memory_before_a_kill_counts_and_nothing_is_guessed_else(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  1000000 kB\nMemFree: 1 kB\nMemAvailable:   20000 kB\n")
    assert oom.kills(str(tmp_path)) == {}
    share = oom.available_share(str(tmp_path))
    assert share == pytest.approx(0.02)
    assert "2.0 % of memory" in oom.reason({}, {}, share)
    assert oom.reason({}, {}, 0.5) == ""
    assert oom.reason({}, {}, oom.available_share(str(tmp_path / "nowhere"))) == ""
