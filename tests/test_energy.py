"""Joules out of raw samples, and energy of a second of audio."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgecompress import energy
from edgecompress.errors import RecordError
from edgecompress.traces import Trace

SECOND = 1_000_000_000


def trace(watts: list[float], meter_class: str = "board_rail", **more: Any) -> Trace:
    """One sample of one rail a second."""
    values = {
        "meter": "ina3221", "meter_class": meter_class, "unit": "W", "total": ["VDD_IN"], "rails": ["VDD_IN"],
        "ns": [SECOND * place for place in range(len(watts))], "values": [[one] for one in watts],
    }  # fmt: skip
    return Trace(**{**values, **more})


def test_gross_is_all_that_was_used_and_net_is_above_idling() -> None:
    found = energy.energy(trace([7.9] * 61), audio_seconds=170.0, idle=[trace([2.5] * 61), trace([2.7] * 61)])
    assert found.joules == pytest.approx(474.0)
    assert found.gross_joules_per_audio_second == pytest.approx(474.0 / 170)
    assert found.idle_watts == pytest.approx(2.6)
    assert found.idle_watts_apart == pytest.approx(0.2)
    assert found.net_joules_per_audio_second == pytest.approx((474.0 - 2.6 * 60) / 170)


def test_without_idling_there_is_no_net() -> None:
    found = energy.energy(trace([5.0, 5.0]), audio_seconds=1.0)
    assert (found.gross_joules_per_audio_second, found.net_joules_per_audio_second) == (5.0, None)


def test_uneven_times_weigh_by_their_length() -> None:
    found = energy.joules(trace([2.0, 4.0, 4.0], ns=[0, SECOND, 3 * SECOND]))
    assert found == {"VDD_IN": pytest.approx(3.0 + 8.0)}


def test_only_the_rails_of_the_whole_add_up() -> None:
    two = trace([], rails=["VDD_IN", "VDD_SOC"], ns=[0, SECOND], values=[[5.0, 1.0], [5.0, 1.0]])
    assert energy.total_joules(two) == 5.0
    assert energy.joules(two) == {"VDD_IN": 5.0, "VDD_SOC": 1.0}


def test_meters_of_unlike_classes_are_never_put_together() -> None:
    with pytest.raises(RecordError, match="unlike meters"):
        energy.energy(trace([5.0, 5.0]), 1.0, idle=[trace([1.0, 1.0], meter_class="pmic_sum")])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ns": [0], "values": [[1.0]]}, "1 samples"),
        ({"ns": [0, 0], "values": [[1.0], [1.0]]}, "do not grow"),
        ({"ns": [0, SECOND], "values": [[1.0], [1.0, 2.0]]}, "do not fit"),
        ({"ns": [0, SECOND], "values": [[1.0], [1.0]], "total": ["VDD_CPU"]}, "do not fit"),
        ({"ns": [0, SECOND], "values": [[2.0], [1.0]], "unit": "J"}, "not known to wrap"),
        ({"ns": [0, SECOND], "values": [[2.0], [1.0]], "unit": "J", "wraps": {"VDD_IN": 1.5}}, "not known to wrap"),
    ],
)
def test_samples_that_cannot_be_summed_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError, match=said):
        energy.joules(trace([], **wrong))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_meter_that_tells_nonsense_is_not_believed(value: float) -> None:
    with pytest.raises(ValidationError):
        trace([1.0, value])


@given(st.lists(st.floats(0, 40), min_size=2, max_size=50), st.floats(0, 99))
def test_a_counter_tells_the_same_joules_wherever_it_wraps(steps: list[float], start: float) -> None:
    told, at = [start], start
    for step in steps:
        at = (at + step) % 100
        told.append(at)
    whole = trace(told, "cpu_counter", unit="J", wraps={"VDD_IN": 100.0})
    assert energy.total_joules(whole) == pytest.approx(sum(steps), abs=1e-6)
