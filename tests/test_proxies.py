"""Which counts order latencies rightly: worked examples small enough to check by hand, and the report's table."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecompress import proxies, report
from edgecompress.proxies import Point
from edgecompress.stats import Estimate
from tests import report_builder as made


def point(name: str, latency: float, half: float = 0.01, **counts: float) -> Point:
    return Point(name, Estimate(latency, latency - half, latency + half, 60), counts)


STAIRS = [point(f"m{i}", latency=i / 10, macs=i) for i in range(1, 7)]


def test_a_count_that_follows_latency_is_perfect() -> None:
    told = proxies.judge(STAIRS, "macs", "macs")
    assert told is not None
    assert told.spearman is not None
    assert (told.spearman.value, told.kendall, told.regret) == (pytest.approx(1), pytest.approx(1), 0)
    assert (told.wrong, told.certain) == (0, 15)


def test_a_count_that_runs_against_latency_orders_every_pair_wrongly() -> None:
    against = [point(f"m{i}", latency=i / 10, macs=10 - i) for i in range(1, 7)]
    told = proxies.judge(against, "macs")
    assert told is not None
    assert told.kendall is not None
    assert told.kendall == pytest.approx(-1)
    assert told.wrong == told.certain == 15
    assert told.regret == pytest.approx(5), "the slowest, six times the fastest, was taken"


def test_pairs_whose_intervals_meet_are_nobodys_fault() -> None:
    close = [point("a", 0.100, macs=2), point("b", 0.105, macs=1), point("c", 0.300, macs=3)]
    assert proxies.flips(close, "macs") == (0, 2)
    unknown = [Point(one.name, Estimate(one.latency.value, None, None, 5), one.counts) for one in close]
    assert proxies.flips(unknown, "macs") == (0, 0)


def test_a_count_that_cannot_tell_models_apart_that_time_does_is_wrong() -> None:
    """Zeros among weights leave multiply-accumulates as they were, a removed half of the heads does not."""
    tied = [point("dense", 0.4, macs=8), point("zeros", 0.2, macs=8)]
    assert proxies.flips(tied, "macs") == (1, 1)
    assert proxies.regret(tied, "macs") == pytest.approx(1), "of models that look the same the slowest may be taken"


def test_a_band_of_equal_sizes_shows_what_a_wide_range_hides() -> None:
    wide = [point(f"w{i}", latency=2.0**i, macs=2000 * 2.0**i) for i in range(1, 8)]
    near = [point(f"m{i}", latency=1 + 0.1 * i, macs=1000 - 10 * i) for i in range(5)]
    told = proxies.judge([*wide, *near], "macs", "macs")
    assert told is not None
    assert told.band is not None
    assert told.spearman is not None
    assert told.band.value == pytest.approx(-1)
    assert told.band.n == 5
    assert told.spearman.value > 0.8


def test_models_without_a_count_are_left_out_and_two_are_too_few() -> None:
    assert proxies.judge([*STAIRS[:2], point("other", 1.0)], "macs") is None
    assert proxies.band([], "macs") == []
    assert proxies.kendall([1, 1, 1], [1, 2, 3]) is None


def test_the_report_shows_every_count_for_a_device_and_runtime(tmp_path: Path) -> None:
    made.build(tmp_path)
    report.write(tmp_path)
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    section = text.split("## Which size tells the order?")[1].split("##")[0]
    for counted in ("stored parameters", "non-zero parameters", "multiply-accumulates", "bytes"):
        assert f"| pi4 | onnxruntime | {counted} |" in section
        assert f"| loopback | onnxruntime | {counted} |" in section
    assert "Which size tells the order?" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_a_report_of_two_models_has_no_such_table(tmp_path: Path) -> None:
    made.build(tmp_path, made.RECIPES[:1])
    report.write(tmp_path)
    assert "Which size tells the order?" not in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


# --- the benchmark ---------------------------------------------------------------------------------------------------
def test_the_benchmark_has_forty_variants_with_names_of_their_own_and_the_first_few_differ_in_kind() -> None:
    pytest.importorskip("torch")
    from benchmarks.proxies import variants

    for size in ("tiny", "base"):
        found = variants(size)
        assert len({one.name for one in found}) == len(found) >= 40
        assert len({one.kind for one in found[:8]}) == 8


def test_the_benchmark_reads_past_a_line_that_was_cut_off_and_goes_on_after_it(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from benchmarks.proxies import append, lines

    file = tmp_path / "measured.jsonl"
    append(file, {"round": 1})
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"round": 2, "varia')
    assert list(lines(file)) == [{"round": 1}]
    append(file, {"round": 3})
    assert list(lines(file)) == [{"round": 1}, {"round": 3}]
