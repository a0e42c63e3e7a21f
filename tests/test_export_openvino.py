"""Every family and structural edit exports to OpenVINO and says what torch says, in the precision that the file is for."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench_remote.openvino import openvino as on_device
from edgecompress.errors import ExportError
from edgecompress.exporters import Options, Order, export
from edgecompress.exporters.openvino import Compiled, OpenVinoExporter, runtime
from edgecompress.exporters.openvino_graph import at_precision, converted, dynamic_group, products, weights_of
from edgecompress.exporters.openvino_graph import write as write_model
from edgecompress.exporters.parity import cases_of, distances
from edgecompress.exporters.tracing import evaluating
from edgecompress.model import Model
from edgecompress.model.forms import form_of
from edgecompress.records import Artifact
from tests.models import FAMILIES, LAYERS, noise_clip, tiny

pytest.importorskip("openvino")
pytest.importorskip("nncf")

EXPORTER = OpenVinoExporter()
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((family, {}) for family in FAMILIES),
    ("wav2vec2", {"front_end": "layer", "stable": True}),
    ("wavlm", {"front_end": "layer"}),
    ("hubert", {"head": "ForCTC"}),
    ("data2vec-audio", {"head": "ForSequenceClassification"}),
)
WEIGHTS = {"fp16": "f16", "int8": "i8", "int8-static": "i8", "int8-weights": "i8", "int4-weights": "i4"}


def feeds_of(model: Model) -> list[dict[str, np.ndarray]]:
    """Calibration that is like what is compared on: noise of all lengths, and audio."""
    form = form_of(model)
    noise = [{form.input_name: form.example(model, 1, length, seed=9)[0].numpy()} for length in form.lengths(model)]
    return noise + [form.feeds(model, noise_clip(0.5 + 0.3 * seed, seed)) for seed in range(3)]


def ask(model: Model, folder: Path, precision: str = "fp32", **more: Any) -> Artifact:
    return export(model, "openvino", folder, precision=precision, exporter=EXPORTER, **more)


def answers(file: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return next(iter(Compiled(file, 1)(feeds).values()))


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A tiny HuBERT and the folder of its fp32 artifact."""
    model, folder = tiny("hubert"), tmp_path_factory.mktemp("hubert") / "fp32"
    ask(model, folder)
    return model, folder


@pytest.mark.parametrize(("family", "variant"), VARIANTS, ids=lambda value: str(value))
def test_a_family_keeps_parity_dense_and_after_uneven_edits(
    family: str, variant: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny(family, **variant)
    for name in ("dense", "edited"):
        artifact = ask(model, tmp_path / name)
        assert max(case.relative for case in artifact.parity.cases) < 1e-4
        assert {case.batch for case in artifact.parity.cases} == {1, 3}
        assert min(case.length for case in artifact.parity.cases) == (2 if family == "whisper" else 400)
        assert sorted(file for file in artifact.files if "/" not in file) == ["model.bin", "model.xml"]
        model.keep_heads(0, [])
        model.keep_heads(2, [1, 3])
        model.keep_units(1, range(7, 30))
        model.keep_units(2, [])
        model.factor(1, "up", 9)
        model.factor(0, "q_proj" if model.layers[0].heads else "down", 5)


def test_lengths_after_a_single_frame_are_answered_right_where_the_plain_graph_is_not(
    hubert: tuple[Model, Path],
) -> None:
    model, folder = hubert
    form, run = form_of(model), Compiled(folder / "model.xml", 1)
    for length in (400, 8001, 400, 37777, 16000):
        feeds = {form.input_name: form.example(model, 1, length, seed=length)[0].numpy()}
        with evaluating(model):
            (wanted,) = form.answer(model, feeds).values()
        assert distances(run(feeds)["last_hidden_state"], wanted)["relative"] < 1e-4


@pytest.mark.parametrize("family", ["wavlm", "whisper"])
def test_every_precision_stores_its_weights_so_and_keeps_its_tolerance(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    full = ask(model, tmp_path / "fp32")
    for precision, stored in WEIGHTS.items():
        artifact = ask(
            model, tmp_path / precision, precision, reuse=tmp_path / "fp32", calibration_feeds=feeds_of(model)
        )
        made = runtime().Core().read_model(str(tmp_path / precision / "model.xml"))
        kinds = [weights_of(node) for node in products(made)]
        assert kinds.count(stored) >= 6 * LAYERS
        assert artifact.files["model.bin"].bytes < 0.6 * full.files["model.bin"].bytes
        assert (artifact.quantized_nodes or 0) >= (0 if precision == "fp16" else 6 * LAYERS)
        assert artifact.parity.conditions["inference_precision"] == "f32"
        assert artifact.lineage["inference_precision"] == "f32"


def test_dynamic_int8_quantises_inputs_at_run_time_and_int8_weights_does_not(
    hubert: tuple[Model, Path], tmp_path: Path
) -> None:
    model, full = hubert
    feeds = {"input_values": noise_clip(1.0)[None]}
    said = {}
    for precision in ("int8", "int8-weights"):
        artifact = ask(model, tmp_path / precision, precision, reuse=full)
        said[precision] = artifact.parity.conditions["dynamic_quantization_group_size"]
    assert said == {"int8": 64, "int8-weights": 0}  # the widest product takes 96 inputs
    one, other = (answers(tmp_path / precision / "model.xml", feeds) for precision in said)
    assert 0 < distances(one, other)["relative"] < 0.2


def test_a_file_is_computed_in_float32_though_the_plug_in_would_rather_not(hubert: tuple[Model, Path]) -> None:
    model, folder = hubert
    form = form_of(model)
    file = str(folder / "model.xml")
    feeds = {form.input_name: form.example(model, 1, 16000, seed=3)[0].numpy()}
    with evaluating(model):
        (wanted,) = form.answer(model, feeds).values()
    assert distances(answers(folder / "model.xml", feeds), wanted)["relative"] < 1e-4
    run, about = on_device(file, {"threads": 1})
    assert about["options"]["inference_precision_hint"] == "f32"
    assert (about["inputs"][0]["name"], about["inputs"][0]["shape"]) == ("input_values", ["batch", "samples"])
    assert distances(run(feeds)["last_hidden_state"], wanted)["relative"] < 1e-4
    if "BF16" not in runtime().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16 to fall into")
    unpinned = runtime().Core().compile_model(file, "CPU")
    assert unpinned.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "bf16"
    assert distances(unpinned(feeds)[0], wanted)["relative"] > 1e-3  # so the checks above would see it


def test_one_length_may_be_fixed_and_no_more(hubert: tuple[Model, Path], tmp_path: Path) -> None:
    model, _ = hubert
    full = ask(model, tmp_path / "fp32", options=Options(seconds=(0.75,)))
    assert (full.inputs[0].shape, full.outputs[0].shape) == ([1, 12000], [1, 37, 64])
    small = ask(
        model, tmp_path / "static", "int8-static", options=Options(seconds=(0.75,)), reuse=tmp_path / "fp32",
        calibration_clips=[noise_clip(0.4), noise_clip(1.2)],
    )  # fmt: skip
    assert small.inputs[0].shape == [1, 12000]
    with pytest.raises(ExportError, match="one fixed length or none, asked are 2"):
        ask(model, tmp_path / "two", options=Options(seconds=(1.0, 2.0)))
    assert not (tmp_path / "two").exists()


def test_the_file_tells_where_it_came_from_and_nothing_of_this_machine(
    hubert: tuple[Model, Path], tmp_path: Path
) -> None:
    model, full = hubert
    ask(model, tmp_path / "int8", "int8", reuse=full, recipe="thin")
    told = ET.parse(tmp_path / "int8" / "model.xml").getroot().find("rt_info/edgecompress")
    assert told is not None
    values = {each.tag: each.get("value") for each in told}
    assert (values["recipe"], values["precision"], values["source"]) == ("thin", "int8", "tiny-hubert")
    assert values["inference_precision"] == "f32"
    assert str(tmp_path) not in (tmp_path / "int8" / "model.xml").read_text(encoding="utf-8")


def test_named_products_stay_in_fp32_and_an_unknown_name_is_refused_with_the_nearest(
    hubert: tuple[Model, Path], tmp_path: Path
) -> None:
    model, full = hubert
    names = EXPORTER.quantizable(full / "model.xml")
    kept = [name for name in names if "layers.1/feed_forward" in name]
    assert len(kept) == 2
    for precision in ("int8-static", "int8-weights", "int4-weights"):
        artifact = ask(
            model, tmp_path / precision, precision, reuse=full, options=Options(float_nodes=tuple(kept)),
            calibration_feeds=feeds_of(model),
        )  # fmt: skip
        made = runtime().Core().read_model(str(tmp_path / precision / "model.xml"))
        stored = {node.get_friendly_name(): weights_of(node) for node in products(made)}
        assert [stored[name] for name in kept] == ["f32", "f32"]
        assert artifact.lineage["float_nodes"] == kept
    with pytest.raises(ExportError, match="no node 'Conf' to leave"):
        ask(model, tmp_path / "x", "int8-weights", reuse=full, options=Options(float_nodes=("Conf",)))


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ([], "needs calibration audio"),
        ([{"audio": np.zeros((1, 800), np.float32)}], "calibration has \\['audio'\\]"),
        ([{"input_values": np.zeros((1, 800), np.float64)}], "is float64, the model takes float32"),
        ([{"input_values": np.zeros(800, np.float32)}], "has shape \\(800,\\)"),
        ([{"input_values": np.zeros((1, 0), np.float32)}], "has shape \\(1, 0\\)"),
    ],
    ids=["none", "another name", "another dtype", "no batch", "empty"],
)
def test_calibration_that_does_not_fit_is_refused_and_nothing_is_left(
    hubert: tuple[Model, Path], tmp_path: Path, feeds: list[dict[str, np.ndarray]], message: str
) -> None:
    model, full = hubert
    with pytest.raises(ExportError, match=message) as caught:
        ask(model, tmp_path / "a", "int8-static", reuse=full, calibration_feeds=feeds)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_nothing_to_quantise_is_refused(tmp_path: Path) -> None:
    opset = runtime().opset13
    given = opset.parameter([-1, -1], np.float32, name="input_values")
    made = runtime().Model([opset.relu(given)], [given], "no weights")
    with pytest.raises(ExportError, match="nothing was quantised"):
        at_precision(made, "int8-weights", form_of(tiny("hubert")), [])
    assert dynamic_group(made) == 0


def test_a_form_with_lengths_keeps_parity(tmp_path: Path) -> None:
    artifact = ask(tiny("hubert"), tmp_path / "a", options=Options(padded=True))
    assert [tensor.name for tensor in artifact.inputs] == ["input_values", "lengths"]
    assert any(case.padded for case in artifact.parity.cases)


def test_the_front_end_is_rewritten_only_where_a_norm_over_time_stands_in_it(tmp_path: Path) -> None:
    for front_end, rank in (("group", 4), ("layer", 3)):
        model = tiny("wav2vec2", front_end=front_end)
        with evaluating(model):
            made = converted(model, form_of(model), tmp_path)
        ranks = [
            node.get_output_partial_shape(0).rank.get_length()
            for node in products(made)
            if node.get_type_name() == "Convolution"
        ]
        assert ranks == [rank] * 7
        assert list(tmp_path.iterdir()) == []


def test_exporting_is_silent_and_tries_no_network() -> None:
    """In a process of its own, since the quantiser keeps quiet under pytest by itself."""
    code = """
import os, socket, sys, tempfile, urllib.request
from pathlib import Path
tried = []
def refuse(*arguments, **named):
    tried.append(arguments)
    raise OSError("no network here")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = urllib.request.urlopen = refuse
forked = []
os.register_at_fork(before=lambda: forked.append(1))
from edgecompress.exporters import export
from edgecompress.exporters.openvino import OpenVinoExporter
from tests.models import noise_clip, tiny
with tempfile.TemporaryDirectory() as folder:
    forked.clear()
    for precision in ("fp32", "int8-weights"):
        export(tiny("whisper"), "openvino", Path(folder) / precision, precision=precision, exporter=OpenVinoExporter())
assert "pytest" not in sys.modules and "nncf" in sys.modules
assert tried == [] and forked == [], (tried, forked)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_without_openvino_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ExportError, match="openvino is not here") as caught:
        EXPORTER.write(Order(tiny("hubert"), form_of(tiny("hubert")), "fp32", Path("nowhere")))
    assert "edgecompress[openvino]" in (caught.value.hint or "")
    with pytest.raises(ImportError):
        on_device("", {})


@pytest.mark.parametrize("family", ["hubert", "data2vec-audio", "melhubert"])
def test_calibrated_int8_is_near_torch_on_audio_like_its_calibration(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    form = form_of(model)
    clips = [form.feeds(model, noise_clip(0.5 + 0.3 * seed, seed)) for seed in range(4)]
    file = tmp_path / "model.xml"
    with evaluating(model):
        made = at_precision(converted(model, form, tmp_path), "int8-static", form, clips)
        written = write_model(made, "int8-static", form, file, {})
        (case,) = [case for case in cases_of(model, form, [noise_clip(1.0, seed=99)]) if case.signal == "speech"]
        (wanted,) = form.answer(model, case.feeds).values()
    assert written.lineage["fake_quantize"] >= 3 * LAYERS
    assert (written.quantized_nodes or 0) >= 6 * LAYERS
    assert distances(answers(file, case.feeds), wanted)["cosine"] > 0.99
