"""How a session's runs follow each other: a clock that is only counted, real files and a real kernel."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bench_remote import clock, extras, paging, phases


class Counted:
    """A clock of nanoseconds that only moves when a run or a sleep moves it."""

    def __init__(self, *runs_ns: int) -> None:
        self.now, self.slept, self.left = 1_000_000, 0.0, list(runs_ns)

    def __call__(self) -> int:
        return self.now

    def run(self) -> None:
        self.now += self.left.pop(0) if len(self.left) > 1 else self.left[0]

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.now += round(seconds * 1e9)


def test_warm_up_ends_as_soon_as_three_windows_agree_and_keeps_every_run() -> None:
    time = Counted(*[900, 700, 500, 400, 300], *[100] * 40)
    # the first window's median is 100 from its third run on
    assert phases.warm_up(time.run, 0.0, 10.0, time) == ([900, 700, 500, 400, 300, *[100] * 13], "steady")


def test_warm_up_lasts_at_least_as_long_as_asked() -> None:
    time = Counted(10_000_000)
    samples, ended = phases.warm_up(time.run, 0.5, 10.0, time)
    assert (len(samples), ended) == (50, "steady")


def test_warm_up_of_what_never_settles_is_capped_at_thirty_more_runs() -> None:
    time = Counted(*[1000 * (1 + number) for number in range(100)])
    samples, ended = phases.warm_up(time.run, 0.0, 10.0, time)
    assert (len(samples), ended) == (31, "runs")


@pytest.mark.parametrize(("most_s", "runs"), [(60.0, 6), (4.0, 3)])
def test_warm_up_of_what_is_slow_is_capped_in_seconds(most_s: float, runs: int) -> None:
    time = Counted(2_000_000_000)
    samples, ended = phases.warm_up(time.run, 0.0, most_s, time)
    assert (len(samples), ended) == (runs, "seconds")


@pytest.mark.parametrize(
    ("least", "min_seconds", "max_seconds", "expected"),
    [(3, 0.0, 9.0, (3, "enough")), (3, 0.5, 9.0, (5, "enough")), (64, 0.0, 1.0, (10, "max_seconds"))],
)
def test_sampling_says_which_bound_ended_it(
    least: int, min_seconds: float, max_seconds: float, expected: tuple[int, str]
) -> None:
    time = Counted(100_000_000)
    samples, ended = phases.stream(time.run, least, min_seconds, max_seconds, time)
    assert (len(samples), ended) == expected


def test_sampling_ends_at_as_many_as_are_kept() -> None:
    time = Counted(1)
    samples, ended = phases.stream(time.run, 1, 60.0, 60.0, time)
    assert (len(samples), ended) == (phases.MAX_SAMPLES, "max_samples")


def test_a_paced_run_begins_when_it_is_due_and_a_slow_one_makes_the_next_late() -> None:
    time = Counted(10_000_000, 150_000_000, 10_000_000, 10_000_000)
    told, ended = phases.paced(time.run, 0.1, 4, 0.0, 9.0, time, time.sleep)
    assert ended == "enough"
    assert told["scheduled_ns"] == [0, 100_000_000, 200_000_000, 300_000_000]
    assert told["start_ns"] == [0, 100_000_000, 250_000_000, 300_000_000]
    assert told["end_ns"] == [10_000_000, 250_000_000, 260_000_000, 310_000_000]
    assert time.slept == pytest.approx(0.09 + 0.04)


def test_the_clock_loop_tells_raw_times_of_as_many_additions_before_and_after() -> None:
    before = clock.measure()
    after = clock.measure((), before)
    assert [one["core"] for one in before] == [None]
    assert after[0]["iterations"] == before[0]["iterations"] >= clock.FIRST
    assert len(after[0]["ns"]) == clock.TRIES
    assert min(after[0]["ns"]) > 0


def test_the_clock_loop_goes_to_each_core_and_comes_back() -> None:
    home = os.sched_getaffinity(0)
    assert [one["core"] for one in clock.measure(sorted(home))] == sorted(home)
    assert os.sched_getaffinity(0) == home


@pytest.mark.parametrize("ns_each", [0.5, 40.0])
def test_the_clock_loop_is_as_long_on_a_fast_core_as_on_a_slow_one(ns_each: float) -> None:
    iterations = clock._enough(lambda count: int(count * ns_each))
    assert iterations * ns_each == pytest.approx(clock.TARGET_NS, rel=0.01)


@pytest.fixture
def on_disk(tmp_path: Path) -> Path:
    """Two MiB in a file whose file system has a page cache to leave."""
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(2 << 20))
    kind = max(
        (line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()),
        key=lambda entry: len(entry[0]) if str(path).startswith(entry[0]) else -1,
    )[1]
    if kind in ("tmpfs", "ramfs"):
        pytest.skip("a file system in memory cannot be cold")
    return path


def test_a_file_that_was_just_read_is_resident_and_one_that_was_evicted_is_not(on_disk: Path) -> None:
    on_disk.read_bytes()
    pages, resident = paging.residency(str(on_disk))
    assert pages == resident == (2 << 20) // os.sysconf("SC_PAGESIZE")
    assert paging.evict([str(on_disk)]) == {"state": "cold", "pages": pages, "resident": 0, "reason": ""}
    assert paging.residency(str(on_disk)) == (pages, 0)


def test_a_file_larger_than_one_mapping_is_counted_whole(on_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = paging.residency(str(on_disk))
    monkeypatch.setattr(paging, "WINDOW", 1 << 19)
    assert paging.residency(str(on_disk)) == whole


def test_what_cannot_leave_memory_is_not_called_cold() -> None:
    place = Path("/dev/shm") / f"edgecompress-test-{os.getpid()}"
    place.write_bytes(bytes(1 << 16))
    try:
        told = paging.evict([str(place)])
    finally:
        place.unlink()
    assert told["state"] == "unknown"
    assert told["resident"] == told["pages"] > 0
    assert "kept pages" in told["reason"]


@pytest.mark.parametrize("content", [None, b""])
def test_a_file_that_is_missing_or_empty_is_not_called_cold(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "weights").write_bytes(content)
    told = paging.evict([str(tmp_path / "weights")])
    assert told["state"] == "unknown"
    assert told["reason"]


STATUS = "Name:\tpython3\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nRssAnon:\t     600 kB\nRssFile:\t     424 kB\n"
ROLLUP = "00400000-7fff0000 ---p 00000000 00:00 0    [rollup]\nRss:   1024 kB\nPss:    900 kB\nPss_Anon:  600 kB\n"


def test_memory_tells_what_the_kernel_tells_and_leaves_out_the_rest(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text(STATUS)
    alone = extras.memory(str(tmp_path))
    kib = {name: size // 1024 for name, size in alone.items()}
    assert kib == {"peak_rss_bytes": 2048, "rss_bytes": 1024, "anonymous_bytes": 600, "file_bytes": 424}
    (tmp_path / "proc/self/smaps_rollup").write_text(ROLLUP)
    more = extras.memory(str(tmp_path))
    assert {name: more[name] // 1024 for name in more.keys() - alone.keys()} == {
        "pss_bytes": 900, "pss_anonymous_bytes": 600,
    }  # fmt: skip


def test_operators_are_listed_as_they_first_ran_with_what_repeats_in_a_run_added_up() -> None:
    def row(op: str, name: str, ns: int) -> dict[str, object]:
        return {"op": op, "name": name, "ns": ns}

    runs = [[row("MatMul", "a", 5), row("Add", "b", 1), row("Add", "b", 2)], [row("MatMul", "a", 4)]]
    told = extras.by_operator(runs)
    assert told == [{"op": "MatMul", "name": "a", "ns": [5, 4]}, {"op": "Add", "name": "b", "ns": [3, 0]}]
    json.dumps(told)


def test_a_profile_stops_when_its_time_is_over() -> None:
    counted: list[int] = []
    run: Callable[[object], None] = lambda feeds: counted.append(1)  # noqa: E731
    assert extras._some_runs(run, {}, 0.0) == 1
    assert extras._some_runs(run, {}, 60.0) == 1 + extras.RUNS
    assert len(counted) == 2 + extras.RUNS
