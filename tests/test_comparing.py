"""What a comparison finds on devices that drift, jump and stutter, whose truth is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import false_alarms
from benchmarks.simulated_devices import KINDS, SESSION_S, SimulatedDevice
from edgecompress.comparing import loop, schedule
from edgecompress.comparing.estimate import Seen, half_width, speeds, told, verdict
from edgecompress.errors import RecipeError
from edgecompress.stats import Estimate

SEEDS = st.integers(0, 10_000)
FEW = 400  # resamples: enough for a property


def blocks(count: int, latencies: list[float], drift: float = 0.0, noise: float = 0.0, seed: int = 0) -> list[Seen]:
    """Blocks on a device that slows down by ``drift`` from one session to the next."""
    rng = np.random.default_rng(seed)
    time, found = itertools.count(), []
    for position in range(count):
        order = schedule.order(seed, position, len(latencies))
        samples = {}
        for variant in order:
            middle = math.log(1e7 * latencies[variant]) + drift * next(time) + rng.normal(0, noise)
            samples[variant] = tuple(int(one) for one in np.exp(rng.normal(middle, noise, 15)))
        found.append(Seen(order, tuple(samples[variant] for variant in range(len(latencies)))))
    return found


# --- order -----------------------------------------------------------------------------------------------------------
@given(SEEDS, st.integers(2, 6), st.integers(0, 50))
def test_every_block_runs_every_variant_once_and_the_next_one_backwards(seed: int, variants: int, pair: int) -> None:
    there, back = (schedule.order(seed, 2 * pair + half, variants) for half in (0, 1))
    assert sorted(there) == list(range(variants))
    assert back == there[::-1]


def test_the_order_is_the_seeds_and_both_kinds_of_pairs_occur() -> None:
    orders = [schedule.order(3, position, 2) for position in range(40)]
    assert orders == [schedule.order(3, position, 2) for position in range(40)]
    assert {tuple(orders[place : place + 2]) for place in range(0, 40, 2)} == {((0, 1), (1, 0)), ((1, 0), (0, 1))}


def test_looks_are_few_and_fall_on_whole_pairs() -> None:
    first = list(itertools.islice(schedule.looks(), 7))
    assert first[:4] == [8, 12, 16, 24]
    assert all(look % 2 == 0 for look in first)
    assert sorted(first) == first
    assert [count for count in range(1, 30) if schedule.is_look(count)] == [8, 12, 16, 24]


# --- estimate --------------------------------------------------------------------------------------------------------
@given(SEEDS, st.floats(-0.05, 0.05), st.floats(0.5, 2.0), st.integers(2, 12))
def test_a_steady_drift_cancels_whatever_its_rate(seed: int, drift: float, latency: float, pairs: int) -> None:
    (found,) = speeds(blocks(2 * pairs, [1.0, latency], drift, seed=seed), FEW)
    assert found.value == pytest.approx(1 / latency, rel=1e-5)
    assert half_width(found) < 1e-4


@given(SEEDS, st.floats(-0.03, 0.03))
def test_a_steady_drift_cancels_for_many_variants(seed: int, drift: float) -> None:
    latencies = [1.0, 0.8, 1.1, 1.0]
    found = speeds(blocks(8, latencies, drift, seed=seed), FEW)
    for one, latency in zip(found, latencies[1:], strict=True):
        assert one.value == pytest.approx(1 / latency, rel=1e-5)


@given(SEEDS, st.floats(1e-3, 1e3))
def test_the_unit_of_time_does_not_matter(seed: int, scale: float) -> None:
    taken = blocks(8, [1.0, 0.9], noise=0.01, seed=seed)
    scaled = [Seen(one.order, tuple(tuple(ns * scale for ns in each) for each in one.samples)) for one in taken]  # type: ignore[misc]
    one, other = speeds(taken, FEW)[0], speeds(scaled, FEW)[0]
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_the_same_blocks_give_the_same_interval_and_more_of_them_a_narrower_one() -> None:
    taken = blocks(32, [1.0, 0.9], noise=0.01)
    assert speeds(taken, FEW) == speeds(taken, FEW)
    assert half_width(speeds(taken, FEW)[0]) < half_width(speeds(taken[:8], FEW)[0])


def test_one_block_gone_wrong_moves_the_estimate_less_than_a_mean() -> None:
    taken = blocks(16, [1.0, 0.9], noise=0.003)
    broken = [*taken[:-1], Seen(taken[-1].order, (taken[-1].samples[0], tuple(10 * ns for ns in taken[-1].samples[1])))]
    assert speeds(broken, FEW)[0].value == pytest.approx(1 / 0.9, rel=0.01)


def test_intervals_of_many_variants_are_wider_since_they_hold_at_once() -> None:
    many = blocks(12, [1.0] * 6, noise=0.01)
    pair = [Seen((0, 1) if one.order.index(0) < one.order.index(1) else (1, 0), one.samples[:2]) for one in many]
    assert half_width(speeds(many)[0]) > 1.1 * half_width(speeds(pair)[0])


def test_a_block_that_waits_for_its_mirror_does_not_count_and_one_pair_has_no_interval() -> None:
    taken = blocks(9, [1.0, 0.9], noise=0.01)
    assert speeds(taken, FEW) == speeds(taken[:8], FEW)
    (found,) = speeds(taken[:3], FEW)
    assert (found.n, found.has_interval, verdict(found)) == (2, False, "undecided")
    with pytest.raises(ValueError, match="no pair"):
        speeds(taken[:1])
    with pytest.raises(ValueError, match="not mirrored"):
        speeds([taken[0], taken[0]])


@pytest.mark.parametrize(
    ("low", "high", "word", "text"),
    [
        (1.34, 1.40, "faster", "B is 1.370x as fast as A [1.340, 1.400]"),
        (0.90, 0.97, "slower", "B is 0.935x as fast as A [0.900, 0.970]"),
        (0.99, 1.01, "same", "B and A: no difference within 2% [0.990, 1.010]"),
        (1.005, 1.035, "undecided", "B against A: undecided after 8 blocks: 1.020x as fast [1.005, 1.035]"),
    ],
)
def test_a_finding_is_said_in_a_sentence_with_its_interval(low: float, high: float, word: str, text: str) -> None:
    estimate = Estimate((low + high) / 2, low, high, 8)
    assert (verdict(estimate), told("B", "A", estimate)) == (word, text)


# --- stopping --------------------------------------------------------------------------------------------------------
def test_a_quiet_device_needs_eight_blocks_and_a_restless_one_more() -> None:
    counts = {}
    for kind in ("quiet", "uneven processes"):
        outcomes = [false_alarms.ours(kind, seed, (1.0, 1.0)) for seed in range(5)]
        assert {outcome.ended for outcome in outcomes} == {"precise"}
        counts[kind] = [outcome.valid for outcome in outcomes]
    assert min(counts["quiet"]) == 8
    assert sum(counts["uneven processes"]) > sum(counts["quiet"])


def test_the_budget_ends_what_never_gets_precise_and_it_is_called_undecided() -> None:
    device = SimulatedDevice("uneven processes", 0)
    outcome = loop.carry_out(loop.Rule(half_width=0.0005, budget_s=40 * SESSION_S), 2, device.block, resamples=FEW)
    assert outcome.ended == "budget"
    assert len(outcome.blocks) == 8
    assert outcome.valid + sum(bool(block.void) for block in outcome.blocks) >= 7


def test_a_void_block_is_run_again_in_its_order_and_kept() -> None:
    device, heard = SimulatedDevice("quiet", 1), []

    def block(number: int, order: tuple[int, ...]) -> loop.Block:
        heard.append(order)
        taken = device.block(number, order)
        return loop.Block(order, (), (), 15.0, "E_CANARY: made up") if number in (1, 2) else taken

    outcome = loop.carry_out(loop.Rule(seed=5), 2, block, resamples=FEW)
    assert heard[1] == heard[2] == heard[3] == heard[0][::-1]
    assert [bool(block.void) for block in outcome.blocks[:5]] == [False, True, True, False, False]
    assert outcome.valid == len(outcome.blocks) - 2


def test_a_comparison_of_which_every_block_is_void_ends_with_no_finding() -> None:
    outcome = loop.carry_out(loop.Rule(budget_s=50), 2, lambda number, order: loop.Block(order, (), (), 20.0, "moved"))
    assert (outcome.ended, outcome.speeds, outcome.valid) == ("budget", (), 0)


@given(SEEDS, st.integers(0, 20))
def test_going_on_after_any_block_finds_the_same_as_never_stopping(seed: int, stop: int) -> None:
    rule = loop.Rule(seed=seed, budget_s=600)
    whole = SimulatedDevice("bimodal clock", seed)
    expected = loop.carry_out(rule, 2, whole.block, resamples=50)
    again = loop.carry_out(rule, 2, SimulatedDevice("quiet", 0).block, expected.blocks, resamples=50)
    assert again == expected
    half = SimulatedDevice("bimodal clock", seed)
    for block in expected.blocks[:stop]:
        half.block(0, block.order)
    assert loop.carry_out(rule, 2, half.block, expected.blocks[:stop], resamples=50) == expected


def test_a_canary_that_moved_by_more_than_three_percent_voids_the_block_and_says_how_far() -> None:
    assert loop.moved([(100, 101, 102), (103,), (101,)]) == ""
    told = loop.moved([(1_000_000,), (1_040_000,), (1_000_000,)])
    assert told == "E_CANARY: the canary moved by 4.0% within the block (1.000, 1.040, 1.000 ms)"


def test_a_rule_names_every_impossible_number() -> None:
    with pytest.raises(RecipeError, match="half_width = 0, budget_s = -60"):
        loop.Rule(half_width=0.0, budget_s=-60)


# --- false alarms ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_not_told_from_itself_and_five_percent_are_found(kind: str) -> None:
    found = false_alarms.rates(kind, 20)
    assert found.alarms == 0
    assert found.misses <= 0.2  # 5 % are expected: of 20, five or more are one run in 400
    assert found.found >= 0.9


def test_consecutive_runs_and_a_t_test_on_all_samples_raise_alarms_most_of_the_time() -> None:
    assert false_alarms.rates("slow noise", 20).naive_alarms > 0.5
