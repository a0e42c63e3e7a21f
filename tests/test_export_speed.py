"""The benchmark that lets exported files take turns: its arithmetic, and its processes on a small real file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import blocks, candidates, export_speed
from benchmarks.candidates import Candidate, Recipe
from benchmarks.export_speed import Times

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
OURS = Candidate("onnxruntime", "fp32", "ours", "ours-onnx-fp32", ours=True)
PLAIN = Candidate("onnxruntime", "fp32", "plain", "plain")
SMALL = Candidate("onnxruntime", "int8", "ours", "ours-onnx-int8", ours=True)


def taken(of: dict[str, list[float]], threads: int = 1) -> list[dict[str, Any]]:
    """Blocks of five equal inferences, one a round, from milliseconds by candidate."""
    return [
        {"candidate": name, "threads": threads, "round": f"0.{number}", "ns": [round(ms * 1e6)] * 5}
        for name, each in of.items()
        for number, ms in enumerate(each)
    ]


def test_a_ratio_is_taken_within_rounds_so_that_a_slow_round_does_not_move_it() -> None:
    times = Times(taken({OURS.name: [10, 30, 10, 10], PLAIN.name: [20, 60, 20, 20]}))
    found = times.ratio(1, OURS.name, PLAIN.name)
    assert found is not None
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_rounds_that_only_one_was_in_do_not_count_in_a_ratio() -> None:
    times = Times(taken({OURS.name: [10, 10, 90], PLAIN.name: [20, 20]}))
    found = times.ratio(1, OURS.name, PLAIN.name)
    assert found is not None
    assert (found.value, found.n) == (0.5, 2)
    assert times.ratio(2, OURS.name, PLAIN.name) is None


def test_ours_is_held_against_the_best_of_the_others() -> None:
    slow = replace(PLAIN, label="slow")
    found = taken({OURS.name: [10] * 4, PLAIN.name: [9] * 4, slow.name: [30] * 4, SMALL.name: [4] * 4})
    refused = replace(OURS, label="refused", judged=False)
    found += taken({refused.name: [1] * 4})
    rows = [OURS, PLAIN, slow, SMALL, refused]
    checks = list(export_speed.speed_checks(Times(found), rows, [1], vnni=True))
    against = next(each for each in checks if each["what"].startswith("onnxruntime fp32"))
    assert against["others"] == PLAIN.name
    assert against["value"] == pytest.approx(10 / 9)
    assert against["kept"] is False
    speed_up = next(each for each in checks if each["what"] == "onnxruntime, 1 thread: our fp32 / our int8")
    assert (speed_up["value"], speed_up["kept"]) == (2.5, True)


def test_int8_is_not_judged_on_a_processor_without_the_instruction() -> None:
    times = Times(taken({OURS.name: [10], SMALL.name: [9]}))
    checks = export_speed.speed_checks(times, [OURS, SMALL], [1], vnni=False)
    assert {each["kept"] for each in checks} == {None}


def test_our_fp32_runs_beside_what_it_is_compared_with_in_both_waves() -> None:
    first, second = export_speed.waves([PLAIN, OURS, SMALL])
    assert first == [PLAIN, OURS]
    assert second == [OURS, SMALL]


def test_what_parity_refused_is_a_row_that_says_so_and_is_judged_only_where_there_is_nothing_else() -> None:
    assert export_speed.as_made(SMALL, {"file": "artifact/x"}) == [SMALL]
    kept, given_up = export_speed.as_made(SMALL, {"file": "artifact/x", "first": "first/x", "refused": "too far"})
    assert (kept, given_up.judged, given_up.which) == (SMALL, False, "first")
    (alone,) = export_speed.as_made(SMALL, {"file": "first/x", "refused": "too far; no artifact"})
    assert (alone.judged, alone.label) == (True, "ours, refused by parity")


def test_a_conversion_that_was_not_made_is_not_judged() -> None:
    facts = {"write_s": 5.0, "export_s": 9.0, "peak_rss_bytes": 4 * 2**30}
    checks = list(export_speed.conversion_checks({"ours-onnx-fp32": facts}))
    assert [each["kept"] for each in checks] == [None, False, None, None]


def test_samples_go_into_the_floating_input_and_their_length_into_lengths() -> None:
    samples = np.zeros((1, 320), np.float32)
    feeds = blocks.feeds_for({"input_values": "float16", "lengths": "int32"}, samples)
    assert feeds["input_values"].dtype == np.float16
    assert feeds["lengths"].tolist() == [320]
    with pytest.raises(RuntimeError, match="attention_mask"):
        blocks.feeds_for({"input_values": "float32", "attention_mask": "int64"}, samples)


def test_an_answer_of_another_shape_is_refused_and_an_equal_one_is_at_no_distance() -> None:
    reference = np.arange(1, 7, dtype=np.float32).reshape(1, 2, 3)
    assert blocks.distances([reference[0], reference], reference)["one_minus_cosine"] < 1e-15
    with pytest.raises(RuntimeError, match="torch's is"):
        blocks.distances([reference[0]], reference)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work folder with a file that doubles its input."""
    import onnx
    from onnx import TensorProto, helper

    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "samples"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "twice", ports[:1], ports[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for name in ("model", "plain"):
        (tmp_path / name).mkdir()
    onnx.save(made, tmp_path / "plain" / "model.onnx")
    samples = np.linspace(-1, 1, 64, dtype=np.float32)[None]
    np.save(tmp_path / "model" / "input.npy", samples)
    np.save(tmp_path / "model" / "reference.npy", samples * 2)
    return tmp_path


@pytest.fixture
def contestant(work: Path) -> Iterator[blocks.Contestant]:
    one = blocks.Contestant(PLAIN, work / "plain" / "model.onnx", 1, work)
    yield one
    one.end()


@LINUX
def test_a_process_opens_a_file_and_runs_as_many_inferences_as_it_is_told_to(contestant: blocks.Contestant) -> None:
    contestant.ready()
    assert contestant.told["greatest_difference"] == 0
    block = contestant.block(7)
    assert len(block["ns"]) == 7
    assert min(block["ns"]) > 0
    assert block["others"] >= 0
    assert block["peak_rss_bytes"] >= contestant.told["rss_bytes"]


@LINUX
def test_a_process_that_was_killed_is_told_with_its_signal(contestant: blocks.Contestant) -> None:
    contestant.ready()
    contestant.process.kill()
    contestant.process.wait()
    with pytest.raises(blocks.Dead, match="signal 9"):
        contestant.block(5)


@LINUX
def test_a_broken_file_is_a_row_with_its_reason_and_the_others_go_on(work: Path) -> None:
    (work / "broken").mkdir()
    (work / "broken" / "model.onnx").write_bytes(b"no model")
    rows = [PLAIN, replace(PLAIN, label="broken", recipe="broken"), replace(PLAIN, label="unmade", recipe="unmade")]
    files = {
        "plain": {"file": "model.onnx", "bytes": {"file": 9}},
        "broken": {"file": "model.onnx"},
        "unmade": {"error": "why|not"},
    }
    opened: dict[str, dict[str, Any]] = {}
    found = list(export_speed.measured(work, rows, files, 1, 3, opened))
    assert [block["candidate"] for block in found] == [PLAIN.name] * 3
    assert "INVALID_PROTOBUF" in opened["onnxruntime fp32 broken"]["error"]
    lines = list(export_speed.table(Times(found), rows, files, {1: opened}))
    assert "did not run: why/not" in lines[-1]
    assert lines[2].count("|") == lines[0].count("|")


@LINUX
def test_a_file_is_made_once_and_again_when_what_makes_it_changed(tmp_path: Path) -> None:
    recipe = Recipe(candidates.plain)
    assert candidates.made(tmp_path, "plain", recipe) is None
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "model.onnx").write_bytes(b"x")
    candidates.write_facts(tmp_path / "plain", recipe, {"file": "model.onnx"})
    assert candidates.made(tmp_path, "plain", recipe) is not None
    assert candidates.made(tmp_path, "plain", replace(recipe, ours=True)) is None


def test_every_need_of_a_recipe_is_a_recipe_and_every_row_has_one() -> None:
    rows, recipes = candidates.candidates()
    assert {row.recipe for row in rows} <= set(recipes)
    assert {need for recipe in recipes.values() for need in recipe.needs} <= set(recipes)
    assert len({row.name for row in rows}) == len(rows)


@LINUX
def test_memory_and_processor_time_of_the_machine_are_read() -> None:
    assert 0 < candidates.memory("VmRSS") <= candidates.memory("VmHWM")
    assert blocks.available_bytes() > 0
    before = blocks.busy_s()
    assert before > 0
    assert os.sysconf("SC_CLK_TCK") > 0
