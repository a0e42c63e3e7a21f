"""Only what was measured under the same conditions, of the same weights, in the last run of a job, is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgecompress import report
from edgecompress.records import Artifact, Measurement, Run
from edgecompress.report.conditions import key, labels
from tests import report_builder as made

DENSE, CONTEXT = made.RECIPES[0], made.RECIPES[10]


def again(folder: Path, pattern: str, stem: str, factor: float = 1.0, **changed: Any) -> None:
    """Measure what matches once more, ``factor`` times as slow, with other fields."""
    for number, file in enumerate(sorted((folder / "measurements").glob(pattern))):
        one = Measurement.read(file)
        slower = [
            part.model_copy(update={"samples_ns": [int(factor * sample) for sample in part.samples_ns]})
            for part in one.repetitions
        ]
        one.model_copy(update={"repetitions": slower, **changed}).write(file.parent / f"{stem}-{number}.json")


def rows_of(folder: Path, **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in report.summary(folder) if all(row[key] == value for key, value in wanted.items())]


def test_measurements_with_other_threads_are_told_apart_and_never_compared(tmp_path: Path) -> None:
    made.build(tmp_path, made.RECIPES[:6])
    again(tmp_path, "*-fp32-*-pi4-*", "one-thread", 1.8, plan={"threads": 1}, options={"intra_op_num_threads": 1})
    report.write(tmp_path)
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "pi4 (1 thread), fp32: rank correlation" in text
    assert "pi4 (2 threads), fp32: rank correlation" in text
    assert "Latency against multiply-accumulates (1 thread)" in (tmp_path / "report/index.html").read_text("utf-8")
    assert "| recipe | format | precision | input, s | threads |" in text
    (heads,) = rows_of(tmp_path, recipe="heads-1-l1", device="pi4", precision="fp32", threads=1)
    assert 0.9 < heads["speedup_over_dense"] < 1.2, "against dense with one thread, not with two"
    slower = rows_of(tmp_path, device="pi4", precision="fp32", threads=1)
    assert any(row["pareto_front"] for row in slower), "beaten by two threads is not beaten"


def test_a_device_whose_board_was_exchanged_is_not_compared_with_itself(tmp_path: Path) -> None:
    made.build(tmp_path, [DENSE, CONTEXT])
    for file in (tmp_path / "measurements").glob("context-12s-onnx-fp32-*-pi4-*"):
        other = {**made.IDENTITY, "model": "Raspberry Pi 5 Model B", "cpu": ["0x41/0xd0b"]}
        Measurement.read(file).model_copy(update={"identity": other}).write(file)
    (context,) = rows_of(tmp_path, recipe="context-12s", device="pi4", precision="fp32")
    assert context["speedup_over_dense"] is None
    report.write(tmp_path)
    assert "pi4 (Raspberry Pi 5 Model B" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_dense_of_other_weights_is_no_reference_for_times_or_scores(tmp_path: Path) -> None:
    made.build(tmp_path, [DENSE, CONTEXT])
    for file in (tmp_path / "artifacts").glob("context-12s-onnx-fp32-*/artifact.json"):
        other = made.source().model_copy(update={"sha256": "99" * 32})
        Artifact.read(file).model_copy(update={"source": other}).write(file)
    stranger, own = (rows_of(tmp_path, recipe="context-12s", precision=one)[0] for one in ("fp32", "int8"))
    assert (stranger["speedup_over_dense"], stranger["barista_slot_recall_minus_dense"]) == (None, None)
    assert own["speedup_over_dense"] > 1
    assert own["barista_slot_recall_minus_dense"] is not None


def test_of_files_measured_alone_two_dense_ones_are_no_reference(tmp_path: Path) -> None:
    made.build(tmp_path, [DENSE, CONTEXT], scored=False)
    for folder in (tmp_path / "artifacts").iterdir():
        (folder / "artifact.json").unlink()
    assert rows_of(tmp_path, recipe="context-12s", device="pi4", precision="fp32")[0]["speedup_over_dense"]
    again(tmp_path, "dense-onnx-fp32-*-pi4-*", "other", 3.0, artifact="other", artifact_sha256="99" * 32)
    (context,) = rows_of(tmp_path, recipe="context-12s", device="pi4", precision="fp32")
    assert context["speedup_over_dense"] is None


def test_cells_of_an_earlier_form_of_the_job_are_passed_over_but_not_bench_nor_failures(tmp_path: Path) -> None:
    made.build(tmp_path, [DENSE, made.RECIPES[3], CONTEXT])
    again(tmp_path, "dense-onnx-fp32-*-pi4-*", "bench-model-pi4", artifact="model.onnx", recipe="")
    run = Run.read(tmp_path / "run.json")
    cells = [path.stem if path.is_file() else path.name for path in tmp_path.glob("*/*")]
    kept = [name for name in cells if not name.startswith(("context", "bench"))]
    run.model_copy(update={"recipes": ["dense", "heads-1-l1"], "cells": kept}).write(tmp_path / "run.json")
    assert {row["recipe"] for row in report.summary(tmp_path)} == {"dense", "heads-1-l1", "model.onnx"}
    report.write(tmp_path)
    assert "leave the attention projections unquantised" in (tmp_path / "report/report.md").read_text("utf-8")
    run.write(tmp_path / "run.json")
    assert "context-12s" in {row["recipe"] for row in report.summary(tmp_path)}


def test_a_single_process_gives_no_interval_and_no_answer(tmp_path: Path) -> None:
    made.build(tmp_path, [DENSE, CONTEXT])
    for file in (tmp_path / "measurements").iterdir():
        one = Measurement.read(file)
        one.model_copy(update={"repetitions": one.repetitions[:1]}).write(file)
    report.write(tmp_path)
    (context,) = rows_of(tmp_path, recipe="context-12s", device="pi4", precision="fp32")
    assert (context["latency_median_low95_ms"], context["against_dense"]) == (None, "unclear")
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "Nothing here can answer yet: 4 timings lack a second fresh process" in text


def test_timings_disturbed_by_others_are_told_in_the_first_sentence(tmp_path: Path) -> None:
    made.build(tmp_path, [DENSE, CONTEXT])
    quiet = {**made.STATE, "cpu_ticks": {"user": 0, "idle": 0}}
    busy = {**made.STATE, "cpu_ticks": {"user": 300, "idle": 100}}  # three of four CPUs, ours are two
    part = made.repetition(1.0, np.random.default_rng(0), facts_before=quiet, facts_after=busy)
    again(tmp_path, "context-12s-onnx-fp32-*-pi4-*", "disturbed", repetitions=[part] * 3)
    report.write(tmp_path)
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    lead = text.partition("**Is smaller")[2].partition("\n")[0]
    assert "1 of all 9 timings were taken while other programs used more than half a CPU." in lead


def test_what_is_kept_out_of_every_comparison_is_counted(tmp_path: Path) -> None:
    made.build(tmp_path, [DENSE, CONTEXT])
    raised = made.repetition(1.0, np.random.default_rng(0), facts_after={**made.STATE, "throttled": "0x4"})
    again(tmp_path, "context-12s-onnx-fp32-*-pi4-*", "hot", repetitions=[raised] * 3)
    report.write(tmp_path)
    assert "1 of 9 timings are kept out of this" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_runtimes_are_told_apart_by_name_and_not_by_the_options_that_each_of_them_has(tmp_path: Path) -> None:
    made.build(tmp_path, [DENSE])
    file = next((tmp_path / "measurements").glob("*-fp32-*-pi4-*"))
    one = Measurement.read(file).model_copy(update={"runtime_version": "1.31.1", "options": {"spinning": True}})
    openvino = {"runtime": "openvino", "runtime_version": "2026.4.1-22982-abc"}
    other = one.model_copy(update={**openvino, "options": {"precision": "f32"}})
    assert set(labels([one, other]).values()) == {"onnxruntime 1.31.1", "openvino 2026.4.1"}
    third = one.model_copy(update={**openvino, "options": {"precision": "bf16"}})
    told = set(labels([one, other, third]).values())
    assert {"openvino 2026.4.1, f32", "openvino 2026.4.1, bf16"} <= told
    pinned = [one.model_copy(update={"options": {"pinning": True, "precision": word}}) for word in ("f32", "bf16")]
    assert set(labels(pinned).values()) == {"f32", "bf16"}, "what is the same for all tells nothing"


def test_what_a_file_brings_along_is_no_condition(tmp_path: Path) -> None:
    made.build(tmp_path, [DENSE])
    one = Measurement.read(next((tmp_path / "measurements").glob("*-fp32-*-pi4-*")))
    grouped = one.model_copy(update={"options": {**one.options, "dynamic_quantization_group_size": 128}})
    assert key(one) == key(grouped)
    assert key(one) != key(one.model_copy(update={"options": {**one.options, "precision": "bf16"}}))


def test_another_scenario_is_told_apart_and_never_compared(tmp_path: Path) -> None:
    made.build(tmp_path, made.RECIPES[:6])
    paced = {"threads": 2, "scenario": "paced_stream", "hop_s": 0.5}
    again(tmp_path, "heads-1-l1-*-fp32-*-pi4-*", "paced", 1.8, plan=paced)
    again(tmp_path, "heads-1-l1-*-fp32-*-pi4-*", "tight", 1.0, plan={"threads": 2, "scenario": "single_stream"})
    told = rows_of(tmp_path, recipe="heads-1-l1", device="pi4", precision="fp32")
    assert {row["conditions"] for row in told} == {"single stream", "paced stream every 0.5 s"}
    speedups = {row["conditions"]: row["speedup_over_dense"] for row in told}
    assert speedups["paced stream every 0.5 s"] is None, "no dense was measured so"
    assert speedups["single stream"] is not None, "what was measured before there were scenarios is a single stream"


def test_batches_are_a_condition_of_their_own() -> None:
    dense = made.RECIPES[0]
    alone, eight = (
        made.measurement("x", dense, "fp32", "pi4", [], plan={"threads": 2, "scenario": "offline", "batch": batch})
        for batch in (1, 8)
    )
    assert set(labels([alone, eight]).values()) == {"offline", "offline, batches of 8"}


def test_a_percentile_that_the_samples_do_not_support_says_how_many_it_needs(tmp_path: Path) -> None:
    made.build(tmp_path, made.RECIPES[:1])
    report.write(tmp_path)
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "n/a (needs 662)" in text
    assert "n/a (needs 130)" not in text
    (first, *_) = report.summary(tmp_path)
    assert first["latency_p90_ms"] <= first["latency_p95_ms"]
    assert first["latency_p99_ms"] is None
