"""Predictions: what a fit finds in made-up latencies, when it refuses, and that none is ever taken for a measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompress import devices, records, report
from edgecompress.devices import profile
from edgecompress.errors import PluginNotFound, RecipeError, RecordError
from edgecompress.predicting import Prediction, calibration, features, fitting, predict, probes
from edgecompress.predicting.calibration import Calibration, Key
from edgecompress.predicting.features import NAMES, Features
from edgecompress.predicting.roofline import roofline, seconds
from edgecompress.records import Artifact, Measurement
from tests import report_builder
from tests.calling import Call
from tests.device_fixtures import ONCE, write_artifact

COSTS = (2e-11, 5e-11, 8e-11, 0.0, 1e-11, 3e-6)
CONSTANT = 1e-3


def counted(number: int) -> Features:
    """The counts of a made-up probe, each in the range that real ones have."""
    random = numpy.random.default_rng(number)
    low = numpy.array([1e8, 1e8, 1e7, 1e6, 1e7, 100])
    return Features(*(float(one) for one in low * random.uniform(1, 30, 6)))


def true_seconds(one: Features) -> float:
    return CONSTANT + sum(cost * count for cost, count in zip(COSTS, one.as_dict().values(), strict=True))


TWELVE = [counted(number) for number in range(12)]


# --- level 1 ---------------------------------------------------------------------------------------------------------
def test_exact_costs_are_found_again_and_pass_the_gate() -> None:
    found = fitting.fit(TWELVE, [true_seconds(one) for one in TWELVE])
    assert found.costs[: len(COSTS)] == pytest.approx(COSTS, rel=1e-6, abs=1e-16)
    assert found.usable
    assert found.within == 1
    unseen = counted(99)
    assert found.seconds(unseen) == pytest.approx(true_seconds(unseen), rel=1e-6)


def test_latencies_that_have_nothing_to_do_with_the_counts_are_refused_with_their_figures() -> None:
    random = numpy.random.default_rng(5)
    found = fitting.fit(TWELVE, list(random.uniform(0.001, 1.0, 12)))
    assert not found.usable
    assert found.within < fitting.WANTED
    assert len(found.errors) == 12


@given(st.lists(st.floats(1e-3, 10), min_size=12, max_size=12))
def test_no_cost_and_no_prediction_is_ever_negative(latencies: list[float]) -> None:
    found = fitting.fit(TWELVE, latencies)
    assert min(found.costs) >= 0
    ends = found.interval(counted(50))
    assert ends is None or 0 <= ends[0] <= found.seconds(counted(50)) <= ends[1]


def test_the_interval_holds_nine_times_in_ten_for_models_like_the_probes() -> None:
    random = numpy.random.default_rng(1)
    held = 0
    for trial in range(100):
        there = [counted(1000 * trial + number) for number in range(13)]
        times = [true_seconds(one) * float(numpy.exp(random.normal(0, 0.05))) for one in there]
        ends = fitting.fit(there[:12], times[:12]).interval(there[12])
        assert ends is not None
        held += ends[0] <= times[12] <= ends[1]
    assert held >= 85


def test_a_conformal_quantile_is_the_worst_of_twelve_and_unknown_of_eight() -> None:
    assert fitting.quantile([0.0] * 11 + [0.25]) == pytest.approx(0.2)
    assert fitting.quantile([0.01] * 8) is None
    assert fitting.quantile([-1.0] + [0.0] * 11) is None, "a prediction of nothing has no relative error"


def test_too_few_probes_and_impossible_latencies_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 6"):
        fitting.fit(TWELVE[:5], [1.0] * 5)
    with pytest.raises(ValueError, match="not above zero"):
        fitting.fit(TWELVE, [0.0] * 12)


def test_a_model_far_beyond_the_probes_is_named_as_outside() -> None:
    found = fitting.fit(TWELVE, [true_seconds(one) for one in TWELVE])
    assert found.outside(TWELVE[3]) == []
    (told,) = found.outside(Features(**{**TWELVE[3].as_dict(), "macs_conv": 1e12}))
    assert told.startswith("macs_conv 1e+12, probes have ")


# --- level 0 ---------------------------------------------------------------------------------------------------------
def test_the_roofline_is_bound_by_weights_when_there_is_little_to_compute() -> None:
    small = Features(1e6, 0, 0, 4e8, 0, 0)
    assert seconds(small, macs_per_s=1e11, bytes_per_s=1e10, operator_s=0) == pytest.approx(0.04)
    large = Features(1e11, 0, 0, 4e8, 0, 0)
    assert seconds(large, macs_per_s=1e11, bytes_per_s=1e10, operator_s=0) == pytest.approx(1)


def test_a_pi_5_is_faster_than_a_pi_4_and_four_threads_than_one() -> None:
    base = Features(31e9, 13.5e9, 1.5e9, 378e6, 500e6, 300)
    four, five = (roofline(profile(name), base, "fp32", 4) for name in ("rpi4b", "rpi5-8gb"))
    assert five.low is not None
    assert five.high is not None
    assert four.low is not None
    assert five.low < five.high
    assert five.low < four.low
    alone = roofline(profile("rpi5-8gb"), base, "fp32", 1)
    assert alone.low is not None
    assert 2 < alone.low / five.low <= 4
    assert all(one.source for one in five.assumptions)


def test_what_a_profile_lacks_is_named_and_not_guessed() -> None:
    told = roofline(profile("x86-64"), TWELVE[0], "fp32", 1)
    assert (told.low, told.high) == (None, None)
    assert set(told.missing) == {
        "peak.fp32_gmacs_per_s",
        "peak.gemm_efficiency",
        "memory (any bandwidth)",
        "cpu.cluster",
    }
    assert "peak.int8_gmacs_per_s" in roofline(profile("rpi4b"), TWELVE[0], "int8", 1).missing


# --- features --------------------------------------------------------------------------------------------------------
def test_features_of_a_product_are_counted_in_its_file(tmp_path: Path) -> None:
    artifact, folder = write_artifact(tmp_path / "a")
    graph = features.of_file(folder / artifact.model_file, {"x": [1, 20, 16]})
    assert (graph.operators, graph.bytes_weights, graph.bytes_activations) == (1, 16 * 4 * 4, 20 * 4 * 4)
    twice = features.of_file(folder / artifact.model_file, features.shapes_of(artifact, folder, 4.0))
    assert twice.bytes_activations == 2 * graph.bytes_activations


def test_attention_grows_with_the_square_of_the_length_and_the_rest_with_it(tmp_path: Path) -> None:
    artifact = with_macs(write_artifact(tmp_path / "a")[0])
    assert features.macs_by_kind(artifact) == (30, 7, 5)
    assert features.macs_by_kind(artifact, 6.0) == (90, 21, 45)


def test_an_artifact_whose_products_nobody_counted_is_refused(tmp_path: Path) -> None:
    artifact, folder = write_artifact(tmp_path / "a")
    blind = artifact.model_copy(update={"cost": artifact.cost.model_copy(update={"macs": None})})
    with pytest.raises(RecipeError, match="multiply-accumulates are not known"):
        features.of_artifact(blind, folder)


def with_macs(artifact: Artifact) -> Artifact:
    """The artifact with parts of every kind over two seconds."""
    parts = {"ffn": 20, "attention_projections": 10, "front_end": 7, "attention_scores": 5}
    macs = records.Macs(total=42, per_second=21.0, parts=parts)
    return artifact.model_copy(update={"cost": artifact.cost.model_copy(update={"macs": macs, "seconds": 2.0})})


# --- probes and calibrations -----------------------------------------------------------------------------------------
def test_there_are_twelve_probes_of_three_kinds() -> None:
    names = [one.name for one in probes.shapes()]
    assert len(set(names)) == 12
    assert {name.rsplit("-", 1)[0] for name in names} == set(probes.KINDS)


@pytest.mark.parametrize(("depths", "widths"), [([2], [192, 384]), ([2, 6], [192, 192]), ([2, 6], [100, 192])])
def test_probes_that_could_not_tell_costs_apart_are_refused(depths: list[int], widths: list[int]) -> None:
    with pytest.raises(RecipeError):
        probes.shapes(depths, widths)


def keep(key: Key, factor: float = 1.0, folder: Path | None = None) -> Calibration:
    """A calibration of made-up probes as ``calibrate`` leaves it, without measuring any."""
    place = folder or key.folder
    made = []
    for number, one in enumerate(TWELVE):
        dense = report_builder.RECIPES[0]
        repetition = report_builder.repetition(factor * true_seconds(one), numpy.random.default_rng(number), noise=0.0)
        file = f"measurements/p{number}-1.json"
        report_builder.measurement("p", dense, key.precision, key.device, [repetition]).write(place / file)
        made.append(calibration.Measured(name=f"p{number}", features=one.as_dict(), measurements=[file]))
    record = Calibration(
        device=key.device, runtime=key.runtime, runtime_version="1", format="onnx", precision=key.precision,
        threads=key.threads, profile="rpi5-8gb", identity={}, plan={}, rounds=1, probes=made,
        started="2026-01-01T00:00:00+00:00", ended="2026-01-01T00:01:00+00:00", tool="t",
    )  # fmt: skip
    record.write(place / "calibration.json")
    return record


KEY = Key("local", "onnxruntime", "fp32", 1)


def test_a_kept_calibration_is_fitted_from_its_raw_samples_when_it_is_read() -> None:
    assert calibration.read(KEY) is None
    keep(KEY)
    found = calibration.read(KEY)
    assert found is not None
    assert found.fit is not None
    assert found.fit.usable
    assert found.fit.seconds(TWELVE[0]) == pytest.approx(true_seconds(TWELVE[0]), rel=0.05)


def test_a_calibration_is_not_read_for_another_device_and_names_no_file_outside_of_it() -> None:
    other = Key("pi5", "onnxruntime", "fp32", 1)
    record = keep(KEY, folder=other.folder)
    with pytest.raises(RecordError, match="another device"):
        calibration.read(other)
    astray = record.probes[0].model_copy(update={"measurements": ["../../../x.json"]})
    record.model_copy(update={"probes": [astray]}).write(KEY.folder / "calibration.json")
    with pytest.raises(RecordError, match="outside"):
        calibration.read(KEY)


def test_probes_whose_clock_fell_are_left_out_and_told() -> None:
    record = keep(KEY)
    file = KEY.folder / record.probes[0].measurements[0]
    seen = Measurement.read(file)
    throttled = seen.repetitions[0].model_copy(
        update={"facts_after": {**seen.repetitions[0].facts_after, "throttled": "0x4"}}
    )
    seen.model_copy(update={"repetitions": [throttled]}).write(file)
    found = calibration.read(KEY)
    assert found is not None
    assert "p0" not in found.latencies
    assert any("throttle" in note.lower() for note in found.notes)


def test_a_prediction_is_never_read_or_reported_as_a_measurement(tmp_path: Path) -> None:
    artifact, folder = write_artifact(tmp_path / "a")
    keep(KEY)
    found = predict.predictions(with_macs(artifact), folder, "local", 1, profile("rpi5-8gb"), calibration.read(KEY))
    assert [one.level for one in found] == [0, 1]
    assert {one.kind for one in found} == {"predicted"}
    run = report_builder.build(tmp_path / "run", report_builder.RECIPES[:2])
    before = len(report.summary(run))
    for number, one in enumerate(found):
        one.write(run / "measurements" / f"predicted-{number}.json")
        one.write(run / f"predicted-{number}.json")
        with pytest.raises(RecordError, match="schema"):
            Measurement.read(run / "measurements" / f"predicted-{number}.json")
    assert len(report.summary(run)) == before
    report.write(run)
    told = (run / "report" / "report.md").read_text(encoding="utf-8")
    assert "measurements/predicted-0.json: schema 'edgecompress.prediction/1'" in told
    assert Prediction.read(run / "predicted-1.json") == found[1]


def test_a_tiny_model_far_from_the_probes_is_not_usable(tmp_path: Path) -> None:
    artifact, folder = write_artifact(tmp_path / "a")
    keep(KEY)
    told = predict.predictions(with_macs(artifact), folder, "local", 1, None, calibration.read(KEY))[1]
    assert not told.usable
    assert len(told.outside) == len(NAMES)
    assert told.fit["held_out_within_10_percent"] == 1


def test_another_length_than_that_of_the_probes_is_told(tmp_path: Path) -> None:
    artifact, folder = write_artifact(tmp_path / "a")
    record = keep(KEY)
    record.model_copy(update={"audio_seconds": 5.0}).write(KEY.folder / "calibration.json")
    told = predict.predictions(with_macs(artifact), folder, "local", 1, None, calibration.read(KEY), 2.0)[1]
    assert "2 s of audio, probes had 5 s" in told.outside


# --- the command line ------------------------------------------------------------------------------------------------
@pytest.fixture
def counted_artifact(tmp_path: Path) -> Path:
    """A tiny artifact on disk whose products are counted."""
    artifact, folder = write_artifact(tmp_path / "artifact")
    with_macs(artifact).write(folder / "artifact.json")
    return folder


def test_predict_says_what_it_rests_on_and_that_nothing_was_measured(call: Call, counted_artifact: Path) -> None:
    answer = call("predict", counted_artifact, "--profile", "rpi5-8gb", "--threads", "4")
    assert answer.status == 0
    assert answer.lines[0].startswith("predicted, not measured:")
    assert "peak of 4 of 4 cortex-a76 cores, fp32: 76.7 GMAC/s (pigirons/cpufp" in answer.out


def test_predict_on_a_device_uses_what_was_calibrated_there(call: Call, counted_artifact: Path) -> None:
    keep(KEY)
    answer = call("predict", counted_artifact, "--on", "local", "--json")
    assert answer.status == 0
    levels: list[dict[str, Any]] = json.loads(answer.out)
    assert [one["level"] for one in levels] == [0, 1]
    assert levels[1]["value"] > 0
    assert levels[1]["kind"] == "predicted"


@pytest.mark.parametrize(
    "asked",
    [["--profile", "rpi5-8gb", "--calibrate"], ["--on", "nowhere"], ["--calibrate", "--depths", "2,x"],
     ["--calibrate", "--widths", "192"], ["--profile", "no-board"], ["--seconds", "99999"]],
)  # fmt: skip
def test_what_cannot_be_predicted_is_refused_with_one_error(
    call: Call, counted_artifact: Path, asked: list[str]
) -> None:
    assert call("predict", counted_artifact, *asked).is_refused()


def test_a_folder_that_is_no_artifact_is_refused(call: Call, tmp_path: Path) -> None:
    assert call("predict", tmp_path).is_refused()
    with pytest.raises(PluginNotFound):
        devices.profile("none")


def test_probes_are_made_measured_and_kept_with_their_conditions(local_device: devices.Device) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    wanted = [probes.Shape(1, 128, kind) for kind in probes.KINDS]
    record = calibration.calibrate(local_device, KEY, "onnx", wanted, ONCE, rounds=1)
    assert [one.name for one in record.probes] == [one.name for one in wanted]
    dense, low_rank, heads = (Features(**one.features) for one in record.probes)
    assert low_rank.macs_gemm < dense.macs_gemm
    assert heads.macs_attention == dense.macs_attention / 2
    assert low_rank.operators > dense.operators
    found = calibration.read(KEY)
    assert found is not None
    assert set(found.latencies) == {one.name for one in wanted}
    assert min(found.latencies.values()) > 0
    assert found.fit is None
    assert "3 probes are too few, 6 at least are needed" in found.notes
