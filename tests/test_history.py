"""What the history of measurements tells, what it refuses to hold against each other, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.comparing import conditions, history
from edgecompress.errors import RecordError
from edgecompress.records import Measurement
from tests.calling import Call
from tests.test_compare_run import IDENTITY, STATE, taken


def measured(day: int, latency_ms: float, **more: Any) -> Measurement:
    """Five repetitions of 64 samples on a day."""
    rng = np.random.default_rng(day)
    one = taken((1,), **more).repetitions[0]
    repetitions = [
        one.model_copy(update={"samples_ns": [int(ns) for ns in latency_ms * 1e6 * rng.normal(level, 0.01, 64)]})
        for level in rng.normal(1, 0.002, 5)
    ]
    stamp = f"2026-01-{day:02d}T00:00:00+00:00"
    return taken((1,), **{"started": stamp, "ended": stamp, **more}).model_copy(update={"repetitions": repetitions})


def write(folder: Path, *measurements: Measurement) -> Path:
    for number, one in enumerate(measurements):
        one.write(folder / f"run-{number}/measurements/cell.json")
    return folder


def entries(*measurements: Measurement) -> tuple[history.Entry, ...]:
    (found,) = history.histories([(Path(f"{n}.json"), one) for n, one in enumerate(measurements)])
    return found.entries


def test_measurements_come_oldest_first_and_a_slower_one_is_a_regression() -> None:
    found = entries(measured(3, 12), measured(1, 10), measured(2, 10))
    assert [entry.measurement.started[8:10] for entry in found] == ["01", "02", "03"]
    assert found[0].previous is None
    assert found[1].previous is not None
    assert (found[1].previous.verdict, found[1].regressed) == ("same", False)
    assert found[2].previous is not None
    assert found[2].regressed
    assert found[2].previous.speed.value == pytest.approx(10 / 12, rel=0.01)


def test_slow_decay_is_found_against_the_first() -> None:
    found = entries(*(measured(day, 10 * 1.012**day) for day in range(1, 8)))
    last = found[-1]
    assert last.previous is not None
    assert last.first is not None
    assert (last.previous.verdict, last.first.verdict, last.regressed) == ("same", "slower", True)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"runtime_version": "1.21"}, "runtime: onnxruntime 1.20 and onnxruntime 1.21"),
        ({"identity": {**IDENTITY, "kernel": "6.12"}}, "kernel: 6.1 and 6.12"),
        ({"plan": {"threads": 4}, "options": {"threads": 4}}, "threads: 1 and 4"),
        ({"facts": {**STATE, "governor": {"policy0": "schedutil"}}}, "governor: performance and schedutil"),
        ({"input": {"source": "golden", "shapes": {"x": [1, 40]}}}, "shapes: 1, 20 and 1, 40"),
    ],
)
def test_what_is_not_comparable_is_said_and_the_next_comparable_one_is_held_against_the_last(
    more: dict[str, Any], why: str
) -> None:
    found = entries(measured(1, 10), measured(2, 20, **more), measured(3, 10))
    assert why in found[1].differs
    assert (found[1].previous, found[1].regressed) == (None, False)
    assert found[2].previous is not None
    assert found[2].previous.since == found[0].measurement.started
    assert found[2].differs != ()


def test_a_fact_that_an_older_agent_did_not_tell_is_no_difference() -> None:
    older = measured(1, 10, identity={"model": "Board"}, facts={})
    assert conditions.differences(older, measured(2, 10)) == []


def test_another_boot_and_another_number_of_samples_are_no_difference() -> None:
    later = measured(2, 10, identity={**IDENTITY, "boot_id": "second"}, plan={"threads": 1, "min_samples": 7})
    assert conditions.differences(measured(1, 10), later) == []


def test_an_invalid_measurement_is_held_against_nothing() -> None:
    hot = measured(2, 20, facts={**STATE, "throttled": "0x4"})
    found = entries(measured(1, 10), hot, measured(3, 10))
    assert found[1].invalid != ()
    assert (found[1].previous, found[1].first) == (None, None)
    assert found[2].previous is not None
    assert found[2].previous.since == found[0].measurement.started


def test_of_one_repetition_nothing_is_concluded() -> None:
    samples = (10_000_000,) * 64
    later = taken(tuple(2 * ns for ns in samples), started="2026-01-02T00:00:00+00:00")
    found = entries(taken(samples), later)
    assert found[1].previous is not None
    assert (found[1].previous.verdict, found[1].regressed) == ("unclear", False)


def test_artifacts_are_chosen_by_name_or_sha_and_devices_by_name(tmp_path: Path) -> None:
    one, other = measured(1, 10), measured(2, 10, artifact="other", artifact_sha256="abcdef" + "0" * 58, device="pi")
    read, faults = history.read(write(tmp_path, one, other, one))
    assert (len(read), faults) == (2, {})  # a copy counts once
    assert [found.artifact for found in history.histories(read)] == ["model-0", "other"]
    for asked in (("other", ""), ("abcdef", ""), ("", "pi")):
        assert [found.artifact for found in history.histories(read, *asked)] == ["other"]
    assert history.histories(read, "abc") == []


def test_files_that_cannot_be_read_are_named_and_the_rest_is_told(tmp_path: Path, call: Call) -> None:
    write(tmp_path, measured(1, 10), measured(2, 10))
    (tmp_path / "broken.json").write_text(json.dumps({"schema": "edgecompress.measurement/1"}))
    (tmp_path / "else.json").write_text("{")
    answer = call("history", tmp_path)
    assert answer.status == 0
    assert "model-0 on board" in answer.out
    assert "broken.json" in answer.err
    assert "else.json" not in answer.err
    with pytest.raises(RecordError, match="no such folder"):
        history.read(tmp_path / "nowhere")


def test_history_ends_with_one_on_a_regression_when_asked(tmp_path: Path, call: Call) -> None:
    write(tmp_path / "good", measured(1, 10), measured(2, 10))
    write(tmp_path / "bad", measured(1, 10), measured(2, 12))
    assert call("history", tmp_path / "good", "--fail-on-regression").status == 0
    assert call("history", tmp_path / "bad").status == 0
    answer = call("history", tmp_path / "bad", "--fail-on-regression")
    assert answer.status == 1
    assert "REGRESSION" in answer.out
    told = json.loads(call("history", tmp_path / "bad", "--json").out)
    assert [one["regression"] for one in told[0]["measurements"]] == [False, True]
    assert call("history", tmp_path / "bad", "--artifact", "unknown").is_refused()
