"""``edgecompress bench`` from the outside: what it takes, what it refuses, what it tells and leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest

from edgecompress.cli import measured
from edgecompress.cli.runs import _cores
from edgecompress.errors import RecipeError
from edgecompress.records import Measurement
from tests import report_builder as made
from tests.calling import Call
from tests.device_fixtures import DOUBLER, write_model

QUICK = ["--repetitions", "1", "--warmup-s", "0", "--min-samples", "2", "--min-seconds", "0"]


def test_measurements_of_other_models_and_sizes_do_not_overwrite_each_other(call: Call, tmp_path: Path) -> None:
    for folder, features in (("a", 16), ("b", 8)):
        write_model(tmp_path / folder / "model.onnx", features=features)
    out = tmp_path / "out"
    for line in (["a/model.onnx"], ["b/model.onnx"], ["a/model.onnx", "--dim", "time=7"], ["a/model.onnx"]):
        assert call("bench", tmp_path / line[0], *line[1:], *QUICK, "-o", out).status == 0
    found = [Measurement.read(file) for file in (out / "measurements").iterdir()]
    assert sorted(one.input["shapes"]["x"] for one in found) == [[1, 7, 16], [1, 100, 8], [1, 100, 16]]


def test_the_shapes_of_what_was_fed_are_told(call: Call, tiny_model: Path) -> None:
    answer = call("bench", tiny_model, "--dim", "time=12", *QUICK)
    assert answer.status == 0
    assert "x 1x12x16" in answer.out


def test_a_dimension_that_the_model_does_not_have_is_refused_with_those_it_has(call: Call, tiny_model: Path) -> None:
    answer = call("bench", tiny_model, "--dim", "tiem=12", *QUICK)
    assert answer.is_refused()
    assert "no dimension is called tiem; there are: batch, time" in answer.err


@pytest.mark.parametrize(
    "asked", [["--dim", "time=3"], ["--inputs", "x.npz"], ["--runtime", "onnxruntime"], ["--audio", "x.wav"]]
)
def test_what_an_artifact_brings_itself_cannot_be_asked_for(call: Call, tiny_artifact: Any, asked: list[str]) -> None:
    artifact, folder = tiny_artifact
    artifact.write(folder / "artifact.json")
    answer = call("bench", folder, *asked)
    assert answer.is_refused()
    assert f"{asked[0]}: only for plain files" in answer.err


def test_given_inputs_and_sizes_exclude_each_other(call: Call, tiny_model: Path, tmp_path: Path) -> None:
    numpy.savez(tmp_path / "x.npz", x=numpy.ones((1, 3, 16), "float32"))
    answer = call("bench", tiny_model, "--inputs", tmp_path / "x.npz", "--dim", "time=3")
    assert answer.is_refused()
    assert "exclude each other" in answer.err


def test_a_plain_file_is_run_by_the_asked_runtime_on_the_asked_cores(
    call: Call, tiny_model: Path, stranger: Any
) -> None:
    name = stranger("doubler", DOUBLER)
    answer = call("bench", tiny_model, "--runtime", name, "--affinity", "0", "--json", *QUICK)
    told = json.loads(answer.out)
    assert (told["runtime"], told["plan"]["affinity"]) == (name, [0])
    assert call("bench", tiny_model, "--runtime", "dubler").is_refused()


def test_cores_are_read_as_taskset_reads_them() -> None:
    assert (_cores(""), _cores("4-7"), _cores("0,2-3,2")) == ((), (4, 5, 6, 7), (0, 2, 3))
    for wrong in ("7-4", "a", "1,", "-1", "1-2-3"):
        with pytest.raises(RecipeError, match="not core numbers"):
            _cores(wrong)


def test_several_lengths_give_one_measurement_each_and_one_table(
    call: Call, tiny_artifact: Any, tmp_path: Path
) -> None:
    artifact, folder = tiny_artifact
    artifact.write(folder / "artifact.json")
    answer = call("bench", folder, "--seconds", "2", "--seconds", "5", *QUICK, "-o", tmp_path / "out")
    assert answer.status == 0
    head, *rows = answer.out.splitlines()
    assert "real-time factor" in head
    assert [line.split()[0] for line in rows[:2]] == ["2", "5"]
    found = [Measurement.read(file) for file in (tmp_path / "out/measurements").iterdir()]
    assert sorted(one.audio_seconds or 0 for one in found) == [2.0, 5.0]
    told = json.loads(call("bench", folder, "--seconds", "2", "--seconds", "5", *QUICK, "--json").out)
    assert [one["audio_seconds"] for one in told] == [2.0, 5.0]


def test_percentiles_are_told_only_where_the_samples_support_them(call: Call, tiny_model: Path) -> None:
    line = ["--repetitions", "1", "--warmup-s", "0", "--min-seconds", "0", "--min-samples"]
    lines = call("bench", tiny_model, *line, "64").out.splitlines()
    told = {words[0]: " ".join(words[1:]) for words in map(str.split, lines) if words}
    assert told["p90"].endswith("ms")
    assert (told["p95"], told["p99"]) == ("n/a (needs 130)", "n/a (needs 662)")


def test_a_level_is_told_and_a_smoke_test_is_not_comparable(call: Call, tiny_model: Path) -> None:
    assert "custom" in call("bench", tiny_model, *QUICK).out
    smoke = call("bench", tiny_model, "--level", "smoke", "--min-seconds", "0", "--warmup-s", "0")
    assert "smoke (not comparable)" in smoke.out
    assert "no level is called 'fast'" in call("bench", tiny_model, "--level", "fast").err


def test_a_paced_stream_tells_its_misses_and_a_batch_its_throughput(call: Call, tiny_model: Path) -> None:
    paced = call("bench", tiny_model, "--scenario", "paced_stream", "--hop-s", "0.01", *QUICK)
    assert "deadline misses" in paced.out
    assert "inputs/s" in call("bench", tiny_model, "--scenario", "offline", "--batch", "4", *QUICK).out
    refused = call("bench", tiny_model, "--scenario", "paced_stream", *QUICK)
    assert refused.is_refused()
    assert "hop_s" in refused.err


def test_operators_are_told_when_asked_for_and_otherwise_why_not(call: Call, tiny_model: Path, stranger: Any) -> None:
    assert "MatMul" in call("bench", tiny_model, "--profile-operators", *QUICK).out
    answer = call("bench", tiny_model, "--profile-operators", "--runtime", stranger("doubler", DOUBLER), *QUICK)
    assert answer.status == 0
    assert "no profile of operators" in answer.err


@pytest.mark.parametrize(
    ("before", "after", "kept"), [([100, 90], [100], 0.9), ([100], [50, 200], 2.0), ([100], [], None)]
)
def test_the_clock_that_is_left_is_the_best_after_over_the_best_before(
    before: list[int], after: list[int], kept: float | None
) -> None:
    from edgecompress.cli.measured import clock_kept
    from edgecompress.phases import ClockLoop
    from edgecompress.records import Repetition

    def loops(ns: list[int]) -> list[ClockLoop]:
        return [ClockLoop(core=0, iterations=1000, ns=ns)] if ns else []

    one = Repetition(
        load_s=0, first_inference_s=0, warmup_ns=[], samples_ns=[1], peak_rss_bytes=1,
        clock_before=loops(before), clock_after=loops(after),
    )  # fmt: skip
    assert clock_kept(one) == kept


def test_what_speaks_against_a_measurement_is_told_and_a_void_one_called_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.build(tmp_path, made.RECIPES[:1])
    one = Measurement.read(next((tmp_path / "measurements").glob("*-fp32-*-pi4-*")))
    measured.told(one)
    assert "validity" in capsys.readouterr().out
    raised = [
        each.model_copy(update={"facts_after": {**each.facts_after, "throttled": "0x4"}}) for each in one.repetitions
    ]
    measured.told(one.model_copy(update={"repetitions": raised}))
    told = capsys.readouterr().out
    assert "void by E_THROTTLE_FLAG: kept, and compared with nothing" in told
