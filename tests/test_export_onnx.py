"""Every family and variant, and every structural edit, exports to ONNX at fp32 and int8 and says what torch says."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgecompress.errors import ExportError
from edgecompress.exporters import Options, export
from edgecompress.exporters.onnx import OnnxExporter
from edgecompress.exporters.parity import distances
from edgecompress.model import Model
from edgecompress.model.forms import form_of
from edgecompress.records import Artifact
from tests.models import FAMILIES, LAYERS, VARIANT_NAMES, VARIANTS, noise_clip, tiny, variant_name

MATRICES = ("q_proj", "k_proj", "v_proj", "out_proj", "up", "down")


def both(model: Model, root: Path) -> tuple[Artifact, Artifact]:
    """The model as fp32 and int8 artifacts in ``root``; exporting is what checks parity."""
    full = export(model, "onnx", root / "fp32")
    return full, export(model, "onnx", root / "int8", precision="int8", reuse=root / "fp32")


def open_file(folder: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=VARIANTS, ids=VARIANT_NAMES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    family, variant = request.param
    model, root = tiny(family, **variant), tmp_path_factory.mktemp(variant_name(family, variant))
    both(model, root)
    return model, root


def test_parity_was_checked_at_six_lengths_from_the_least_and_in_batches(exported: tuple[Model, Path]) -> None:
    model, root = exported
    for precision in ("fp32", "int8"):
        artifact = Artifact.read(root / precision / "artifact.json")
        cases = {(case.batch, case.length) for case in artifact.parity.cases if case.signal == "noise"}
        assert [case.signal for case in artifact.parity.cases].count("synthetic") == 1
        assert {length for batch, length in cases if batch == 1} == set(form_of(model).lengths(model))
        assert len({length for _, length in cases}) >= 6
        assert {batch for batch, _ in cases} == {1, 3}
        assert min(length for _, length in cases) == (400 if model.context_positions is None else 2)
    assert max(case.relative for case in Artifact.read(root / "fp32" / "artifact.json").parity.cases) < 1e-4


def test_a_length_and_batch_that_nobody_tried_work_too(exported: tuple[Model, Path]) -> None:
    model, root = exported
    form = form_of(model)
    (inputs,) = form.example(model, 2, 138 if model.context_positions else 12_345, seed=5)
    feeds = {form.input_name: inputs.numpy()}
    said = open_file(root / "fp32").run(None, feeds)[0]
    assert distances(said, form.answer(model, feeds)[form.outputs[0].name])["relative"] < 1e-4


def test_int8_is_smaller_and_says_how_many_nodes_are_quantised(exported: tuple[Model, Path]) -> None:
    model, root = exported
    full, small = (Artifact.read(root / precision / "artifact.json") for precision in ("fp32", "int8"))
    assert full.quantized_nodes is None
    assert small.quantized_nodes is not None
    assert small.quantized_nodes >= 6 * LAYERS  # all six matrices of each layer
    fixed = 850_000 if model.family == "melhubert" else 0  # the matrix of the log-mel frames stays as precise as it was
    assert small.files["model.onnx"].bytes - fixed < 0.75 * (full.files["model.onnx"].bytes - fixed)
    weights = {each.name: each for each in onnx.load(str(root / "int8" / "model.onnx")).graph.initializer}
    kinds = {onnx.TensorProto.DataType.Name(each.data_type) for each in weights.values()}
    assert "INT8" in kinds


def test_the_record_names_inputs_outputs_and_free_dimensions(exported: tuple[Model, Path]) -> None:
    model, root = exported
    artifact = Artifact.read(root / "fp32" / "artifact.json")
    (given,), (said,) = artifact.inputs, artifact.outputs
    waveform = model.context_positions is None
    assert (given.name, given.dtype) == (form_of(model).input_name, "float32")
    assert given.shape == (["batch", "samples"] if waveform else ["batch", 80, "frames"])
    task_head = not model.architecture.endswith(("Model", "ForConditionalGeneration", "ForPreTraining"))
    assert said.name == ("logits" if task_head else "last_hidden_state")
    assert said.shape[0] == "batch"
    assert said.shape[-1] == open_file(root / "fp32").get_outputs()[0].shape[-1]


def test_the_golden_files_are_torch_and_the_file_reproduces_them(exported: tuple[Model, Path]) -> None:
    model, root = exported
    for precision in ("fp32", "int8"):
        artifact = Artifact.read(root / precision / "artifact.json")
        inputs = {name: np.load(root / precision / file) for name, file in artifact.golden.inputs.items()}
        (name, file), tolerance = next(iter(artifact.golden.outputs.items())), artifact.golden.tolerance
        said = open_file(root / precision).run([name], inputs)[0]
        apart = distances(said, np.load(root / precision / file))
        assert apart["relative"] <= tolerance.relative
        assert apart["cosine"] >= tolerance.cosine
        assert inputs[form_of(model).input_name].shape[-1] == artifact.audio.golden_seconds * artifact.audio.per_second


def heads(model: Model, layers: tuple[int, ...]) -> None:
    for layer in layers:
        model.keep_heads(layer, [])
    model.keep_heads(2, [1, 3])


def units(model: Model, layers: tuple[int, ...]) -> None:
    for layer in layers:
        model.keep_units(layer, [])
    model.keep_units(2, range(7, 30))


def factored(model: Model) -> None:
    for layer, matrix in enumerate(MATRICES):
        model.factor(layer % LAYERS, matrix, 9)  # type: ignore[arg-type]
    model.keep_heads(1, [0])
    model.keep_units(1, range(11))


def dropped(model: Model) -> None:
    model.keep_layers([1])


def everything(model: Model) -> None:
    model.keep_layers([1, 2])
    heads(model, (1,))
    units(model, (1,))
    model.factor(2, "out_proj", 5)


EDITS: dict[str, Callable[[Model], None]] = {
    "no-heads": partial(heads, layers=(0,)),
    "no-units": partial(units, layers=(0,)),
    "factored": factored,
    "dropped": dropped,
    "everything": everything,
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_an_edit_leaves_exports_at_both_precisions(family: str, edit: str, tmp_path: Path) -> None:
    model = tiny(family, **({} if family in ("whisper", "data2vec-audio") else {"stable": edit == "everything"}))
    EDITS[edit](model)
    full, small = both(model, tmp_path)
    assert full.lineage["edits"] == [change.model_dump(mode="json") for change in model.edits]
    assert max(case.relative for case in full.parity.cases) < 1e-4
    assert small.quantized_nodes


def test_a_trimmed_context_is_the_golden_length_and_the_longest(tmp_path: Path) -> None:
    model = tiny("whisper")
    model.keep_context(31)
    full, small = both(model, tmp_path)
    assert full.audio.max_seconds == full.audio.golden_seconds == pytest.approx(0.62)
    assert np.load(tmp_path / "int8" / "golden" / "input_features.npy").shape == (1, 80, 62)
    assert max(case.length for case in small.parity.cases) == 62


def test_a_weighted_sum_of_layers_survives_a_dropped_layer(tmp_path: Path) -> None:
    for family, head in (("whisper", "ForAudioClassification"), ("wavlm", "ForSequenceClassification")):
        model = tiny(family, head=head, use_weighted_layer_sum=True)
        model.keep_layers([0, 2])
        full, _ = both(model, tmp_path / family)
        assert max(case.relative for case in full.parity.cases) < 1e-4


def test_nothing_to_quantise_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    model = tiny("whisper")
    for layer in range(LAYERS):
        model.keep_heads(layer, [])
        model.keep_units(layer, [])
    export(model, "onnx", tmp_path / "fp32")
    left = OnnxExporter().quantizable(tmp_path / "fp32" / "model.onnx")
    assert left == ["conv1", "conv2"]
    with pytest.raises(ExportError, match="no matrix product was quantised"):
        export(model, "onnx", tmp_path / "int8", precision="int8", options=Options(float_nodes=tuple(left)))
    assert [path.name for path in tmp_path.iterdir()] == ["fp32"]


def test_the_file_tells_where_it_came_from_and_old_runtimes_can_read_it(tmp_path: Path) -> None:
    model = tiny("hubert")
    model.keep_heads(1, [0, 2])
    table = {"kind": "prune_heads", "ratio": 0.5}
    for precision in ("fp32", "int8"):
        export(
            model,
            "onnx",
            tmp_path / precision,
            precision=precision,
            recipe="thin",
            techniques=[table],
            reuse=tmp_path / "fp32",
        )
        graph = onnx.load(str(tmp_path / precision / "model.onnx"))
        told = open_file(tmp_path / precision).get_modelmeta().custom_metadata_map
        assert (told["edgecompress.recipe"], told["edgecompress.precision"]) == ("thin", precision)
        assert json.loads(told["edgecompress.techniques"]) == [table]
        assert json.loads(told["edgecompress.edits"]) == [{"kind": "keep_heads", "layer": 1, "heads": [0, 2]}]
        assert (told["edgecompress.source"], told["edgecompress.random_weights"]) == ("tiny-hubert", "true")
        assert told["edgecompress.tool"].startswith("edgecompress ")
        assert max(graph.ir_version, 8) == 8  # ONNX Runtime 1.16 reads IR 9 and operator set 19 at most
        assert {each.domain: each.version for each in graph.opset_import}[""] <= 17


def test_audio_that_is_given_is_compared_on_and_becomes_the_golden_input(tmp_path: Path) -> None:
    clips = [noise_clip(0.7, seed=1), noise_clip(1.1, seed=2), noise_clip(0.4, seed=3)]
    model = tiny("wav2vec2")
    artifact = export(model, "onnx", tmp_path / "a", clips=clips)
    assert [case.length for case in artifact.parity.cases][-2:] == [11_200, 17_600]
    assert artifact.audio.golden_seconds == pytest.approx(0.7)
    stored = np.load(tmp_path / "a" / "golden" / "input_values.npy")
    np.testing.assert_array_equal(stored, model.features(clips[0]).numpy())


def arguments() -> dict[str, Any]:
    """Settings of a layer-norm wav2vec2 with language adapters and a down-sampling adapter."""
    return {"head": "ForCTC", "stable": True, "add_adapter": True, "num_adapter_layers": 2, "adapter_attn_dim": 8}


def test_adapters_of_wav2vec2_export_too(tmp_path: Path) -> None:
    full = export(tiny("wav2vec2", **arguments()), "onnx", tmp_path / "a")
    assert max(case.relative for case in full.parity.cases) < 1e-4
