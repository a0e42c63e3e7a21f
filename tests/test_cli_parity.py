"""``edgecompress parity``: two files, an artifact's golden files, or a file and PyTorch; in and out of tolerance."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile

from edgecompress.exporters import export
from edgecompress.exporters.foreign import export_file
from edgecompress.model import load
from tests.calling import Call
from tests.foreign_files import classifier, save, voice_detector
from tests.library import library_network


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A voice detector, and the same with its matrix product in integers."""
    place = tmp_path_factory.mktemp("pair")
    file = voice_detector(place / "vad.onnx")
    export_file(file, "onnx", place / "small", precision="int8", sizes={"samples": [2000]})
    return file, place / "small" / "model.onnx"


@pytest.fixture(scope="module")
def optimum_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Laid out as optimum-onnx's ``main_export`` does: model.onnx and config.json; and the model's own folder."""
    place = tmp_path_factory.mktemp("optimum")
    library_network("hubert", head="ForCTC").save_pretrained(place / "source")
    export(load(str(place / "source")), "onnx", place / "ours")
    (place / "exported").mkdir()
    shutil.copy(place / "ours" / "model.onnx", place / "exported" / "model.onnx")
    shutil.copy(place / "source" / "config.json", place / "exported" / "config.json")
    return place / "exported", place / "source"


def changed(file: Path, to: Path, weight: str, factor: float) -> Path:
    """A copy whose weights of one name are multiplied."""
    proto = onnx.load(str(file))
    found = next(each for each in proto.graph.initializer if each.name == weight)
    found.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(found) * np.float32(factor), weight))
    onnx.save(proto, str(to))
    return to


# --- two files -------------------------------------------------------------------------------------------------------
def test_two_files_are_compared_at_each_size_that_is_asked_for(pair: tuple[Path, Path], call: Call) -> None:
    file, small = pair
    asked = [
        "--dim",
        "samples=2000",
        "--dim",
        "samples=720",
        "--dim",
        "samples=400",
        "--dim",
        "batch=1",
        "--dim",
        "batch=3",
    ]
    answer = call("parity", small, file, *asked, "--precision", "int8", "--json")
    assert answer.status == 0
    told = json.loads(answer.out)
    (compared,) = told["comparisons"]
    assert told["passed"]
    assert compared["reference"] == "vad.onnx"
    assert {(case["length"], case["batch"]) for case in compared["cases"]} == {(2000, 1), (720, 1), (400, 1), (2000, 3)}


def test_without_sizes_some_of_each_dimension_are_chosen(pair: tuple[Path, Path], call: Call) -> None:
    answer = call("parity", pair[1], pair[0], "--precision", "int8")
    assert answer.status == 0
    assert answer.lines[0].split() == ["reference", "output", "signal", "length", "batch", "max", "relative", "cosine"]
    assert [line.split()[3:5] for line in answer.lines[1:]] == [["16000", "1"], ["16000", "2"], ["9601", "1"]]


def test_files_that_differ_end_with_one_and_name_output_length_and_error(
    pair: tuple[Path, Path], tmp_path: Path, call: Call
) -> None:
    other = changed(pair[0], tmp_path / "other.onnx", "head", -2.0)
    answer = call("parity", other, pair[0], "--dim", "samples=2000")
    assert answer.status == 1
    assert "error: speech differs from vad.onnx at length 2000, batch" in answer.err
    assert "allowed are 0.001 and 0.9999" in answer.err
    assert len(answer.lines) == 3  # the table is there all the same
    told = json.loads(call("parity", other, pair[0], "--dim", "samples=2000", "--json").out)
    assert not told["passed"]
    assert "speech differs" in told["error"]


def test_the_tolerance_may_be_given_in_numbers(pair: tuple[Path, Path], tmp_path: Path, call: Call) -> None:
    other = changed(pair[0], tmp_path / "other.onnx", "offset", 1.0)
    near = changed(pair[0], tmp_path / "near.onnx", "head", 1.05)
    assert call("parity", other, pair[0], "--relative", "1e-9", "--cosine", "0.999999").status == 0
    assert call("parity", near, pair[0], "--relative", "0.5", "--cosine", "0.9").status == 0
    assert call("parity", near, pair[0], "--relative", "1e-6", "--cosine", "0.9").status == 1


def test_recordings_and_arrays_are_compared_on(pair: tuple[Path, Path], tmp_path: Path, call: Call) -> None:
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(3000) / 7), 16000)
    np.savez(tmp_path / "x.npz", audio=np.ones((2, 900), np.float32))
    heard = json.loads(
        call("parity", *reversed(pair), "--audio", tmp_path / "a.wav", "--precision", "int8", "--json").out
    )
    cases = heard["comparisons"][0]["cases"]
    assert (cases[0]["signal"], cases[0]["length"]) == ("speech", 3000)
    given = json.loads(
        call("parity", *reversed(pair), "--inputs", tmp_path / "x.npz", "--precision", "int8", "--json").out
    )
    assert [(case["batch"], case["length"]) for case in given["comparisons"][0]["cases"]] == [(2, 900)]


def test_a_fixed_size_of_one_file_is_used_for_both(tmp_path: Path, call: Call) -> None:
    free, fixed = classifier(tmp_path / "free.onnx"), classifier(tmp_path / "fixed.onnx", 4000)
    for line in ((fixed, free), (free, fixed)):
        answer = call("parity", *line)
        assert answer.status == 0
        assert [row.split()[3] for row in answer.lines[1:]] == ["4000"]


def test_files_with_other_names_are_compared_by_place(tmp_path: Path, call: Call) -> None:
    file = classifier(tmp_path / "a.onnx")
    text = onnx.load(str(file))
    for node in text.graph.node:
        node.output[:] = ["said" if name == "classes" else name for name in node.output]
    text.graph.output[0].name = "said"
    onnx.save(text, str(tmp_path / "b.onnx"))
    answer = call("parity", tmp_path / "b.onnx", file)
    assert answer.status == 0
    assert answer.lines[1].split()[:2] == ["a.onnx", "said"]


def test_files_that_cannot_be_compared_say_what_they_take(pair: tuple[Path, Path], tmp_path: Path, call: Call) -> None:
    node = onnx.helper.make_node("Add", ["a", "b"], ["speech"])
    other = save(tmp_path / "add.onnx", [node], {"a": [3], "b": [3]}, {"speech": [3]})
    answer = call("parity", other, pair[0])
    assert answer.is_refused()
    assert "inputs differ: add.onnx has a float32 [3], b float32 [3]" in answer.err


def test_a_dimension_fixed_in_the_graph_is_a_difference(tmp_path: Path, call: Call) -> None:
    """The file says that any length goes in; what it was traced at is in a reshape."""
    make = onnx.helper.make_node
    free = save(tmp_path / "free.onnx", [make("Relu", ["x"], ["y"])], {"x": ["b", "n"]}, {"y": ["b", "n"]})
    nodes = [make("Relu", ["x"], ["r"]), make("Reshape", ["r", "baked"], ["y"])]
    held = {"baked": np.array([-1, 80], np.int64)}
    baked = save(tmp_path / "baked.onnx", nodes, {"x": ["b", "n"]}, {"y": ["b", "n"]}, held)
    assert call("parity", baked, free, "--dim", "n=80").status == 0
    answer = call("parity", baked, free, "--dim", "n=80", "--dim", "n=81")
    assert answer.status == 1
    assert "baked.onnx fails in onnxruntime on x float32 [1, 81]" in answer.err


# --- artifacts and PyTorch -------------------------------------------------------------------------------------------
def test_an_artifact_is_compared_with_its_golden_files_and_with_torch(
    optimum_folder: tuple[Path, Path], call: Call
) -> None:
    ours = optimum_folder[0].parent / "ours"
    answer = call("parity", ours, "--source", optimum_folder[1], "--json")
    assert answer.status == 0
    golden, torch = json.loads(answer.out)["comparisons"]
    assert (golden["reference"], torch["reference"]) == ("golden", "torch")
    assert [case["length"] for case in golden["cases"]] == [80000]
    assert len({case["length"] for case in torch["cases"]}) >= 6


def test_an_artifact_that_was_changed_is_refused(optimum_folder: tuple[Path, Path], tmp_path: Path, call: Call) -> None:
    shutil.copytree(optimum_folder[0].parent / "ours", tmp_path / "ours")
    with (tmp_path / "ours" / "golden" / "input_values.npy").open("ab") as file:
        file.write(b"x")
    answer = call("parity", tmp_path / "ours")
    assert answer.is_refused()
    assert "has changed since it was exported" in answer.err


def test_what_optimum_exported_is_compared_with_torch(optimum_folder: tuple[Path, Path], call: Call) -> None:
    folder, source = optimum_folder
    answer = call("parity", folder, "--source", source)
    assert answer.status == 0
    assert {line.split()[1] for line in answer.lines[1:]} == {"logits"}


def test_a_model_with_its_weights_beside_it_needs_no_source(
    optimum_folder: tuple[Path, Path], tmp_path: Path, call: Call
) -> None:
    shutil.copytree(optimum_folder[1], tmp_path / "both")
    shutil.copy(optimum_folder[0] / "model.onnx", tmp_path / "both" / "model.onnx")
    assert call("parity", tmp_path / "both").status == 0


def test_other_weights_are_noticed(optimum_folder: tuple[Path, Path], tmp_path: Path, call: Call) -> None:
    library_network("hubert", head="ForCTC", seed=5).save_pretrained(tmp_path / "other")
    answer = call("parity", optimum_folder[0], "--source", tmp_path / "other")
    assert answer.status == 1
    assert "error: logits differs from torch at 400 samples, batch 1" in answer.err


def test_a_source_of_another_kind_is_refused(optimum_folder: tuple[Path, Path], tmp_path: Path, call: Call) -> None:
    library_network("bert").save_pretrained(tmp_path / "other")
    answer = call("parity", optimum_folder[0], "--source", tmp_path / "other")
    assert answer.is_refused()
    assert "model.onnx has inputs input_values" in answer.err


def test_what_optimum_exported_is_measured_and_exported_further(
    optimum_folder: tuple[Path, Path], tmp_path: Path, call: Call
) -> None:
    folder, _ = optimum_folder
    quick = ["--repetitions", "1", "--warmup-s", "0", "--min-samples", "2", "--min-seconds", "0"]
    assert call("bench", folder, "--dim", "samples=8000", *quick).status == 0
    answer = call("export", folder, "-o", tmp_path / "out", "--precision", "int8", "--dim", "samples=8000")
    assert answer.status == 0
    assert json.loads((tmp_path / "out" / "artifact.json").read_text())["name"] == "exported-onnx-int8"
    assert "greatest difference from the given file" in answer.err


# --- what does not go together ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ([], "compare it with what?"),
        (["--source", "x", "--dim", "n=1"], "--dim: only for two files"),
        (["REFERENCE", "--source", "x"], "exclude each other"),
        (["REFERENCE", "--precision", "int9"], "no precision is called 'int9'"),
        (["REFERENCE", "--dim", "samples"], "not NAME=SIZE"),
        (["REFERENCE", "--dim", "smaples=3"], "no dimension is called smaples; there are: batch, samples"),
        (["REFERENCE", "--inputs", "x.npz", "--audio", "a.wav"], "--inputs and --audio exclude each other"),
        (["nowhere.onnx"], "no such file"),
    ],
)
def test_what_makes_no_sense_is_refused(more: list[str], reason: str, pair: tuple[Path, Path], call: Call) -> None:
    answer = call("parity", pair[1], *[pair[0] if one == "REFERENCE" else one for one in more])
    assert answer.is_refused()
    assert reason in answer.err
