"""Files that other people made: exported to other formats, measured, costed; and what is said of files that are broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
from onnx import helper

from bench_remote import tensors
from edgecompress import plain, plugins
from edgecompress.errors import ExportError, ParityError, RecipeError
from edgecompress.exporters import foreign, foreign_formats, onnx_cost
from edgecompress.exporters.foreign import export_file
from edgecompress.records import Artifact, Measurement, file_sha256
from tests.calling import Call
from tests.foreign_files import WIDTH, classifier, save, voice_detector, weights

QUICK = ["--repetitions", "1", "--warmup-s", "0", "--min-samples", "2", "--min-seconds", "0"]
SIZES = {"samples": [2000, 1200, 400]}
CLIP = np.sin(np.arange(2000, dtype=np.float32) / 9)


def need(format: str) -> None:
    """Skip where the format's extra is not installed."""
    pytest.importorskip({"openvino": "openvino", "tflite": "litert_torch", "onnx": "onnx"}[format])
    if format not in plugins.names("exporters"):
        pytest.skip(f"no exporter is called {format}")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return voice_detector(tmp_path_factory.mktemp("vad") / "vad.onnx")


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("audio") / "a.wav"
    soundfile.write(file, np.tile(CLIP, 5), 16000)
    return file


# --- other formats ---------------------------------------------------------------------------------------------------
FORMATS = [
    ("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "fp16"),
    ("openvino", "int8"), ("openvino", "int8-static"), ("tflite", "fp32"), ("tflite", "int8-static"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "precision"), FORMATS)
def test_a_file_is_exported_and_says_what_it_said(
    format: str, precision: str, detector: Path, tmp_path: Path, call: Call
) -> None:
    need(format)
    artifact = export_file(detector, format, tmp_path / "out", precision=precision, sizes=SIZES, clip=CLIP)
    assert (artifact.family, artifact.recipe) == ("", "")
    assert (artifact.source.name, artifact.source.sha256) == ("vad", file_sha256(detector))
    assert artifact.parity.reference == "onnxruntime"
    lengths = {case.length for case in artifact.parity.cases}
    assert lengths == ({2000} if format == "tflite" else {2000, 1200, 400})
    assert artifact.parity.cases[0].signal == "speech"
    assert artifact.audio is not None
    assert (artifact.audio.golden_seconds, artifact.cost.seconds) == (0.125, 0.125)
    assert (artifact.quantized_nodes is None) == (not precision.startswith("int8"))
    assert Artifact.read(tmp_path / "out" / "artifact.json") == artifact
    answer = call("bench", tmp_path / "out", *QUICK, "--json")
    assert answer.status == 0
    told = json.loads(answer.out)
    assert told["repetitions"][0]["golden"][0]["passed"]
    assert told["audio_seconds"] == 0.125


def test_smaller_precisions_are_smaller_files(tmp_path: Path) -> None:
    file = classifier(tmp_path / "net.onnx")
    sizes = {
        precision: export_file(file, "onnx", tmp_path / precision, precision=precision).cost.bytes
        for precision in ("fp32", "fp16", "int8")
    }
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert sizes["int8"] < sizes["fp32"]


def test_metadata_that_a_file_brought_stays_beside_ours(tmp_path: Path) -> None:
    file = classifier(tmp_path / "net.onnx")
    proto = onnx.load(str(file))
    onnx.helper.set_model_props(proto, {"author": "somebody"})
    onnx.save(proto, str(file))
    export_file(file, "onnx", tmp_path / "out")
    found = {each.key: each.value for each in onnx.load(str(tmp_path / "out" / "model.onnx")).metadata_props}
    assert found["author"] == "somebody"
    assert found["edgecompress.source_sha256"] == file_sha256(file)


def test_weights_outside_the_file_are_in_the_artifact(tmp_path: Path, call: Call) -> None:
    file = classifier(tmp_path / "net.onnx")
    proto = onnx.load(str(file))
    onnx.save(proto, str(file), save_as_external_data=True, location="net.weights", size_threshold=100)
    assert call("bench", file, *QUICK).status == 0
    artifact = export_file(file, "onnx", tmp_path / "out")
    assert sorted(artifact.files) == ["golden/input_0.npy", "golden/output_0.npy", "model.onnx"]
    assert artifact.files["model.onnx"].bytes > 64 * 400 * 4


def test_an_operator_that_tflite_cannot_get_is_named_and_nothing_is_left(tmp_path: Path, call: Call) -> None:
    need("tflite")
    file = save(tmp_path / "x.onnx", [helper.make_node("Hardmax", ["x"], ["y"])], {"x": [1, 8]}, {"y": [1, 8]})
    answer = call("export", file, "--format", "tflite", "-o", tmp_path / "out")
    assert answer.is_refused()
    assert "no way to torch, and so to TFLite, for the operator Hardmax" in answer.err
    assert not (tmp_path / "out").exists()


def test_an_operator_that_openvino_cannot_read_is_named(tmp_path: Path, call: Call) -> None:
    need("openvino")
    nodes = [helper.make_node("CDist", ["x", "x"], ["y"], domain="com.microsoft", metric="euclidean")]
    file = save(tmp_path / "x.onnx", nodes, {"x": [2, 8]}, {"y": [2, 2]})
    answer = call("export", file, "--format", "openvino", "-o", tmp_path / "out")
    assert answer.is_refused()
    assert "CDist" in answer.err


def test_a_converter_that_writes_something_else_is_caught(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(order: Any) -> Any:
        other = onnx.ModelProto()
        other.CopyFrom(order.proto)
        weight = next(each for each in other.graph.initializer if each.name == "head")
        weight.CopyFrom(onnx.numpy_helper.from_array(-3 * onnx.numpy_helper.to_array(weight), "head"))
        order.proto.CopyFrom(other)
        return foreign_formats.write_onnx(order)

    monkeypatch.setitem(foreign.WRITERS, "onnx", foreign_formats.Writer(wrong, ("fp32",)))
    with pytest.raises(ParityError, match=r"speech differs from vad\.onnx at length \d+"):
        export_file(detector, "onnx", tmp_path / "out", sizes=SIZES)
    assert not (tmp_path / "out").exists()


# --- costs -----------------------------------------------------------------------------------------------------------
def test_parameters_and_macs_are_counted_from_the_graph(detector: Path) -> None:
    proto = onnx.load(str(detector))
    steps = (2000 - 400) // 320 + 1
    by_hand = {"Conv": steps * 16 * 400, "GRU": steps * 2 * 3 * WIDTH * (16 + WIDTH), "Gemm": WIDTH}
    counted = onnx_cost.macs(proto, {"audio": [1, 2000]}, 0.125)
    assert counted is not None
    assert counted.parts == by_hand
    assert (counted.total, counted.per_second) == (sum(by_hand.values()), sum(by_hand.values()) / 0.125)
    assert onnx_cost.parameters(proto).total == 16 * 400 + 16 + 6 * WIDTH * (16 + WIDTH) + 12 * WIDTH + WIDTH + 1
    assert onnx_cost.parameters(proto).nonzero == onnx_cost.parameters(proto).total - 1  # the offset is zero


def test_macs_of_what_cannot_be_counted_are_unknown(tmp_path: Path) -> None:
    nodes = [helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft")]
    file = save(tmp_path / "x.onnx", nodes, {"x": [2, 8]}, {"y": [2, 4]}, {"w": weights(8, 4)})
    artifact = export_file(file, "onnx", tmp_path / "out")
    assert artifact.cost.macs is None
    assert artifact.cost.parameters.total == 32


# --- what is fed -----------------------------------------------------------------------------------------------------
def tensor(shape: list[Any], name: str = "x", dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": shape}


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        (["n"], (2000,)),
        ([1, "n"], (1, 2000)),
        (["b", 1, None], (1, 1, 2000)),
        ([1, 16000], (1, 16000)),
        ([512], (512,)),
    ],
)
def test_audio_is_tiled_or_cut_to_what_the_input_takes(shape: list[Any], wanted: tuple[int, ...]) -> None:
    state = tensor([2, 1, 64], "state")
    fed, name = tensors.hear([state, tensor(shape)], {}, CLIP)
    assert (name, fed["x"].shape, fed["x"].dtype) == ("x", wanted, np.float32)
    assert np.array_equal(fed["x"].ravel(), np.resize(CLIP, wanted[-1]))
    assert not fed["state"].any()  # nothing was heard before


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([tensor([1, 80, "n"])], "no input takes audio"),
        ([tensor([1, 40])], "no input takes audio"),
        ([tensor([1, "n"], dtype="int8")], "no input takes audio"),
        ([tensor([1, "n"]), tensor([1, "m"], "z")], "several inputs take audio"),
    ],
)
def test_audio_that_does_not_fit_is_refused_with_what_there_is(inputs: list[Any], reason: str) -> None:
    with pytest.raises(tensors.BadInput, match=reason) as told:
        tensors.hear(inputs, {}, CLIP)
    assert all(each["name"] in str(told.value) for each in inputs)


def test_bytes_are_random_and_wider_integers_zero() -> None:
    inputs = [tensor([1, 400], "q", "int8"), tensor([1, 400], "u", "uint8"), tensor([1, 400], "ids", "int64")]
    fed, again = tensors.make(inputs, {}), tensors.make(inputs, {})
    assert fed["q"].min() < -100 < 100 < fed["q"].max()
    assert fed["u"].min() < 30 < 220 < fed["u"].max()
    assert not fed["ids"].any()
    assert all(np.array_equal(fed[name], again[name]) for name in fed)


def test_a_dimension_without_a_name_is_called_by_its_input_and_place() -> None:
    fed = tensors.make([tensor([None, -1, 3])], {"x.1": 7})
    assert fed["x"].shape == (1, 7, 3)


# --- bench -----------------------------------------------------------------------------------------------------------
def test_bench_hears_a_recording_and_knows_its_seconds(call: Call, detector: Path, wav: Path, tmp_path: Path) -> None:
    answer = call("bench", detector, "--audio", wav, *QUICK, "-o", tmp_path)
    assert answer.status == 0
    found = Measurement.read(next((tmp_path / "measurements").iterdir()))
    assert found.input == {"source": "audio", "shapes": {"audio": [1, 10000]}, "audio_samples": 10000}
    assert found.audio_seconds == 0.625
    assert "real-time factor" in answer.out


def test_bench_says_which_inputs_there_are_when_audio_does_not_fit(call: Call, tiny_model: Path, wav: Path) -> None:
    answer = call("bench", tiny_model, "--audio", wav, *QUICK)
    assert answer.is_refused()
    assert "no input takes audio" in answer.err
    assert "x float32 ['batch', 'time', 16]" in answer.err


def test_the_suffix_chooses_the_runtime(tmp_path: Path, call: Call) -> None:
    kinds = {name: plain.kind_of(tmp_path / f"m{name}").runtime for name in (".onnx", ".XML", ".tflite")}
    assert kinds == {".onnx": "onnxruntime", ".XML": "openvino", ".tflite": "tflite"}
    (tmp_path / "m.pb").write_bytes(b"x")
    answer = call("bench", tmp_path / "m.pb", *QUICK)
    assert answer.is_refused()
    assert "which runtime runs this?" in answer.err


def test_an_xml_without_its_weights_is_refused(tmp_path: Path, call: Call) -> None:
    (tmp_path / "m.xml").write_text("<net/>")
    answer = call("bench", tmp_path / "m.xml", *QUICK)
    assert answer.is_refused()
    assert "its weights, m.bin, are not beside it" in answer.err


def test_an_openvino_file_is_measured_with_its_weights(detector: Path, tmp_path: Path, call: Call, wav: Path) -> None:
    need("openvino")
    export_file(detector, "openvino", tmp_path / "out", sizes=SIZES)
    answer = call("bench", tmp_path / "out" / "model.xml", "--audio", wav, *QUICK, "--json")
    told = json.loads(answer.out)
    assert (told["runtime"], told["format"], told["audio_seconds"]) == ("openvino", "xml", 0.625)


# --- a board's model: bytes in, bytes out ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def keyword_spotter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """As MLPerf Tiny's: (1, 49, 10, 1) int8 -> 12 classes int8; and the float32 ONNX file it was made of."""
    need("tflite")
    from ai_edge_quantizer import qtyping, quantizer

    place = tmp_path_factory.mktemp("kws")
    nodes = [
        helper.make_node("Transpose", ["mfcc"], ["image"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["image", "a"], ["first"], strides=[2, 2], kernel_shape=[10, 4]),
        helper.make_node("Relu", ["first"], ["positive"]),
        helper.make_node("Conv", ["positive", "b"], ["second"], group=8, kernel_shape=[3, 3]),
        helper.make_node("GlobalAveragePool", ["second"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "c"], ["classes"]),
    ]
    given = {"a": weights(8, 1, 10, 4), "b": weights(8, 1, 3, 3), "c": weights(8, 12)}
    file = save(place / "kws.onnx", nodes, {"mfcc": [1, 49, 10, 1]}, {"classes": [1, 12]}, given)
    export_file(file, "tflite", place / "fp32")
    work = quantizer.Quantizer(str(place / "fp32" / "model.tflite"))
    work.add_static_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, 8, 8)
    random = np.random.default_rng(0)
    seen = [{"mfcc": random.standard_normal((1, 49, 10, 1)).astype(np.float32)} for _ in range(8)]
    work.quantize(work.calibrate({foreign_formats.SIGNATURE: seen}), serialize_to_path=str(place / "kws.tflite"))
    return place / "kws.tflite", file


def test_a_file_that_takes_bytes_is_measured_on_random_ones(keyword_spotter: tuple[Path, Path], call: Call) -> None:
    answer = call("bench", keyword_spotter[0], *QUICK, "--json")
    told = json.loads(answer.out)
    assert (told["runtime"], told["input"]["source"]) == ("tflite", "random")
    assert list(told["input"]["shapes"].values()) == [[1, 49, 10, 1]]


def test_a_file_that_takes_bytes_is_compared_in_real_numbers(keyword_spotter: tuple[Path, Path], call: Call) -> None:
    small, full = keyword_spotter
    assert call("parity", small, full, "--precision", "int8-static").status == 0
    assert call("parity", full, small, "--precision", "int8-static").status == 0
    assert call("parity", small, full).status == 1  # not to fp32's tolerance


# --- what is wrong ---------------------------------------------------------------------------------------------------
def test_sizes_of_no_dimension_are_refused_with_those_there_are(call: Call, detector: Path, tmp_path: Path) -> None:
    answer = call("export", detector, "-o", tmp_path / "out", "--dim", "sample=400")
    assert answer.is_refused()
    assert "no dimension is called sample; there are: batch, samples" in answer.err


def test_sizes_that_the_file_cannot_take_are_told_with_the_runtimes_words(
    call: Call, detector: Path, tmp_path: Path
) -> None:
    answer = call("export", detector, "-o", tmp_path / "out", "--dim", "samples=100")
    assert answer.is_refused()
    assert "vad.onnx fails in onnxruntime on audio float32 [1, 100]" in answer.err


def test_arrays_with_other_names_are_refused(call: Call, detector: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", sound=np.ones((1, 800), np.float32))
    answer = call("export", detector, "-o", tmp_path / "out", "--inputs", tmp_path / "x.npz")
    assert answer.is_refused()
    assert "the model takes ['audio'], given are ['sound']" in answer.err
    assert call("bench", detector, "--inputs", tmp_path / "x.npz", *QUICK).is_refused()


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x09"])
def test_what_is_no_model_is_refused_by_every_command(
    content: bytes, call: Call, tmp_path: Path, detector: Path
) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(content)
    assert call("export", bad, "-o", tmp_path / "out").is_refused()
    assert call("bench", bad, *QUICK).is_refused()
    assert call("parity", bad, detector).is_refused()
    assert call("parity", detector, bad).is_refused()


@pytest.mark.parametrize(
    "asked", [["--seconds", "1"], ["--padded"], ["--input", "waveform"], ["--for-runtime", "tflite-runtime"]]
)
def test_options_of_models_are_refused_for_files(asked: list[str], call: Call, detector: Path, tmp_path: Path) -> None:
    answer = call("export", detector, "-o", tmp_path / "out", *asked)
    assert answer.is_refused()
    assert f"{asked[0]}: only for models that are loaded into PyTorch" in answer.err


def test_a_precision_that_a_plain_file_does_not_have_is_refused(detector: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="onnx of a plain file has no precision 'int4-weights'"):
        export_file(detector, "onnx", tmp_path / "out", precision="int4-weights")


def test_a_folder_with_several_models_asks_for_one(tmp_path: Path, write: Callable[[str, str], Path]) -> None:
    for name in ("a.onnx", "b.onnx"):
        classifier(tmp_path / name)
    with pytest.raises(RecipeError, match="2 model files in it"):
        plain.model_file(tmp_path)
