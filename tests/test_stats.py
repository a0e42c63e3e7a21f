"""Numbers that raw samples support, against known answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from edgecompress import stats


@pytest.mark.parametrize(
    ("samples", "share", "empirical"),
    [(100, 0.90, 0.98), (200, 0.95, 0.99), (500, 0.90, 0.934), (1000, 0.99, 0.999), (5000, 0.95, 0.9574)],
)
def test_a_tail_percentile_is_the_one_that_early_stopping_of_mlperf_reports(samples, share, empirical):
    found = stats.percentile(range(1, samples + 1), share)
    assert found.value == pytest.approx(empirical * samples)


def test_a_p99_of_200_samples_is_not_available_and_says_how_many_it_needs():
    found = stats.percentile([0.01] * 200, 0.99)
    assert (found.value, found.needed) == (None, 662)
    assert stats.percentile([0.01] * 63, 0.90) == stats.Percentile(None, 63, 64)
    assert stats.percentile([0.01] * 64, 0.90).value == 0.01


def test_the_interval_of_a_median_is_as_wide_as_the_repetitions_disagree():
    rng = np.random.default_rng(1)
    alike = [list(rng.normal(0.050, 0.001, 200)) for _ in range(5)]
    apart = [list(rng.normal(middle, 0.001, 200)) for middle in (0.044, 0.047, 0.050, 0.053, 0.056)]
    narrow, wide = stats.median(alike), stats.median(apart)
    assert narrow.low < 0.050 < narrow.high
    assert narrow.high - narrow.low < 0.0005
    assert wide.high - wide.low > 0.004
    assert wide.n == 1000


def test_repetitions_of_different_length_all_count():
    found = stats.median([[0.010] * 10, [0.030] * 200, []])
    assert found.value == 0.030
    assert found.low < 0.010, "two processes that disagree threefold say little"
    assert found.high > 0.030


def drawn(rng: np.random.Generator, middle: float, repetitions: int = 3) -> list[list[float]]:
    """Samples of fresh processes whose levels differ by 2 %, more than the samples of one process do."""
    return [list(middle * np.exp(0.02 * rng.normal() + 0.003 * rng.normal(size=30))) for _ in range(repetitions)]


def test_the_intervals_of_three_repetitions_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(6)
    held = {"median": 0, "ratio": 0}
    for _ in range(200):
        dense, thin = drawn(rng, 0.100), drawn(rng, 0.050)
        one, both = stats.median(thin), stats.ratio(dense, thin)
        held["median"] += one.low <= 0.050 <= one.high
        held["ratio"] += both.low <= 2.0 <= both.high
    assert min(held.values()) >= 184  # 95 % of 200 is 190; a percentile bootstrap alone covers about 150


def test_one_repetition_has_no_interval_and_no_verdict_follows_from_it():
    rng = np.random.default_rng(7)
    dense, thin = drawn(rng, 0.100), drawn(rng, 0.050, repetitions=1)
    assert not stats.median(thin).has_interval
    assert not stats.ratio(dense, thin).has_interval
    assert stats.verdict(stats.ratio(dense, thin)) == "unclear"
    assert stats.verdict(stats.ratio(dense, dense)) == "same"


def test_no_samples_have_no_median():
    with pytest.raises(ValueError, match="no samples"):
        stats.median([[], []])


def test_the_ratio_of_a_model_twice_as_fast_is_two_and_its_interval_holds_it():
    rng = np.random.default_rng(2)
    dense = [list(rng.normal(0.100, 0.002, 100)) for _ in range(3)]
    thin = [list(rng.normal(0.050, 0.001, 100)) for _ in range(3)]
    found = stats.ratio(dense, thin)
    assert found.low < 2 < found.high
    assert found.high - found.low < 0.1
    assert stats.verdict(found) == "faster"
    assert stats.verdict(stats.ratio(thin, dense)) == "slower"
    assert stats.verdict(stats.ratio(dense, dense)) == "same"


def test_a_gain_below_two_percent_is_not_called_faster_however_sure():
    assert stats.verdict(stats.Estimate(1.015, 1.014, 1.016, 5000)) == "same"


def test_a_slow_climb_within_a_repetition_is_drift_and_noise_is_not():
    rng = np.random.default_rng(3)
    noise = rng.normal(0.1, 0.001, 200)
    assert stats.spread([list(noise)]).drift is None
    climbing = stats.spread([list(noise * np.linspace(1, 1.1, 200))])
    assert climbing.drift == pytest.approx(0.1, abs=0.01)


def test_a_score_is_the_ratio_of_sums_not_the_mean_of_ratios():
    found = stats.score([1, 0], [1, 9])
    assert found.value == pytest.approx(0.1)
    assert stats.score([], []) is None
    assert stats.score([0, 0], [0, 0]) is None


def test_the_interval_of_a_score_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(200):
        found = stats.score(rng.binomial(3, 0.7, 60), np.full(60, 3))
        held += found.low <= 0.7 <= found.high
    assert 180 <= held <= 198  # 95 % of 200 is 190; a percentile bootstrap over 60 clips covers a little less


def speakers(seed, count=5, clips=200):
    """(right, asked, who) of clips whose speakers differ: chances drawn around 0.7 with a deviation of 0.1."""
    rng = np.random.default_rng(seed)
    chances = np.clip(rng.normal(0.7, 0.1, count), 0, 1)
    right = np.concatenate([rng.binomial(1, chance, clips) for chance in chances])
    return right, np.ones(count * clips), [f"speaker {n}" for n in range(count) for _ in range(clips)]


def test_the_interval_over_speakers_covers_what_other_speakers_would_bring():
    held = [0, 0]
    for seed in range(200):
        right, asked, who = speakers(seed)
        for place, found in enumerate([stats.score(right, asked), stats.score(right, asked, who)]):
            held[place] += found.low <= 0.7 <= found.high
    assert held[0] < 120  # over clips alone: these five speakers, no others
    assert held[1] >= 180


def test_an_interval_over_speakers_stays_within_what_a_share_can_be_and_says_how_many_there_are():
    right, asked, who = [1] * 40 + [0, 1] * 10, [1] * 60, ["a"] * 20 + ["b"] * 20 + ["c"] * 20
    found = stats.score(right, asked, who)
    assert (found.n, found.groups, found.high) == (60, 3, 1.0)
    alone = stats.score(right, asked, ["a"] * 60)
    assert (alone.groups, alone.low, alone.high) == (1, *_ends(stats.score(right, asked)))
    assert stats.score(right, asked, [""] * 60) == stats.score(right, asked)


def _ends(found):
    return found.low, found.high


def test_a_difference_that_every_speaker_shows_alike_stays_sharp_over_speakers():
    right, asked, who = speakers(1)
    names = [f"clip{n}" for n in range(len(who))]
    one = {name: (float(value), 1.0) for name, value in zip(names, right, strict=True)}
    worse = {name: (value * (n % 5 > 0), 1.0) for n, (name, (value, _)) in enumerate(one.items())}
    found = stats.score_difference(one, worse, dict(zip(names, who, strict=True)))
    assert found.groups == 5
    assert 0 < found.low < found.value < found.high
    whole = stats.score(right, asked, who)
    assert found.high - found.low < (whole.high - whole.low) / 2


def test_two_models_are_compared_clip_by_clip():
    rng = np.random.default_rng(5)
    hard = {f"clip{i}": (float(rng.binomial(10, rng.random())), 10.0) for i in range(40)}
    better = {clip: (min(10.0, right + 1), 10.0) for clip, (right, _) in hard.items()}
    paired = stats.score_difference(better, {**hard, "only here": (0.0, 10.0)})
    assert paired.n == 40
    assert paired.low > 0.05
    alone = stats.score(*zip(*hard.values(), strict=True))
    assert paired.high - paired.low < (alone.high - alone.low) / 3


def test_rank_correlation_has_no_interval_from_four_models_and_none_at_all_from_two():
    assert stats.spearman([1, 2], [1, 2]) is None
    assert stats.spearman([1, 2, 3], [5, 5, 5]) is None
    assert not stats.spearman([1, 2, 3, 4], [1, 2, 3, 4]).has_interval
    found = stats.spearman([1, 2, 3, 4, 5, 6, 7, 8], [1, 3, 2, 4, 5, 7, 6, 8])
    assert found.value == pytest.approx(0.9523809)
    assert found.low < found.value < found.high <= 1


@given(some.lists(some.tuples(some.floats(0.001, 10), some.floats(0, 1)), min_size=1, max_size=30))
def test_every_point_off_the_front_is_beaten_by_one_on_it(points):
    latencies, scores = zip(*points, strict=True)
    marks = stats.pareto(latencies, scores)
    front = [point for point, mark in zip(points, marks, strict=True) if mark]
    assert front
    for latency, score in points:
        assert any(other[0] <= latency and other[1] >= score for other in front)


def test_a_lower_score_is_better_when_the_metric_says_so():
    assert stats.pareto([1, 2, 3], [0.3, 0.2, 0.4], higher_is_better=False) == [True, True, False]


def test_the_same_samples_always_give_the_same_interval():
    samples = [[0.01, 0.012, 0.011, 0.013] * 8] * 3
    assert stats.median(samples) == stats.median([list(one) for one in samples])
