"""The contract of exporting: whole folders or none, honest parity, records that can be read back, reuse."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import edgecompress
from edgecompress import records
from edgecompress.errors import ExportError, ParityError, PluginNotFound
from edgecompress.exporters import Order, Written, export, lineage, onnx_graph, runner
from edgecompress.exporters.golden import synthetic_clip
from edgecompress.exporters.onnx import OnnxExporter
from edgecompress.exporters.parity import Runner, distances, tolerance_of
from edgecompress.model import Model, forms
from edgecompress.records import Artifact
from tests.models import example, noise_clip, tiny


class Lying(OnnxExporter):
    """Writes a right file, and says one per cent too much of everything when it runs it."""

    factor = 1.01

    def open(self, file: Path) -> Runner:
        run = super().open(file)
        return lambda inputs: {name: array * self.factor for name, array in run(inputs).items()}


class Mute(Lying):
    factor = float("nan")


class Broken(OnnxExporter):
    def write(self, order: Order) -> Written:
        (order.folder / "model.onnx").write_bytes(b"half of it")
        raise RuntimeError("the converter met an operator it does not know\nand says much more")


def said_by_torch(model: Model, inputs: torch.Tensor) -> np.ndarray:
    form = forms.form_of(model, "features" if model.family in ("whisper", "melhubert") else None)
    return form.answer(model, {form.input_name: inputs.numpy()})[form.outputs[0].name]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny("hubert", head="ForCTC")


@pytest.fixture(scope="module")
def artifact(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "dense"
    export(model, "onnx", folder, recipe="dense")
    return folder


def test_the_package_exports_by_name(model: Model, tmp_path: Path) -> None:
    told = edgecompress.export(model, "onnx", tmp_path / "a")
    assert told == Artifact.read(tmp_path / "a" / "artifact.json")
    assert (told.name, told.runtime, told.family) == ("tiny-hubert-onnx-fp32", "onnxruntime", "hubert")


def test_the_record_names_every_file_with_its_hash_and_size(artifact: Path) -> None:
    record = Artifact.read(artifact / "artifact.json")
    there = {file.relative_to(artifact).as_posix() for file in artifact.rglob("*") if file.is_file()}
    assert set(record.files) == there - {"artifact.json"}
    assert set(record.files) == {"model.onnx", "golden/input_values.npy", "golden/logits.npy"}
    for name, file in record.files.items():
        assert (file.sha256, file.bytes) == (records.file_sha256(artifact / name), (artifact / name).stat().st_size)


def test_the_record_has_cost_source_and_lineage(model: Model, artifact: Path) -> None:
    record = Artifact.read(artifact / "artifact.json")
    size = (artifact / record.model_file).stat().st_size
    assert record.cost == edgecompress.cost.of_export(model, record.audio.golden_seconds, size)
    assert record.source == model.origin.source
    assert record.lineage["weights_sha256"] == lineage.weights_sha256(model)
    assert record.lineage["versions"]["onnxruntime"]
    assert record.audio.golden_seconds == 5


@pytest.mark.parametrize(("exporter", "error"), [(Lying, r"logits differs .* at 400 samples"), (Mute, r"cosine -1")])
def test_a_file_that_says_something_else_is_an_error_and_no_folder(
    model: Model, exporter: type[Lying], error: str, tmp_path: Path
) -> None:
    with pytest.raises(ParityError, match=error):
        export(model, folder=tmp_path / "a", exporter=exporter())
    assert list(tmp_path.iterdir()) == []


def test_a_wrapper_that_loses_a_layer_is_found_out(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = forms.AudioForm.module

    def lossy(form: forms.AudioForm, model: Model) -> torch.nn.Module:
        less = model.clone()
        less.keep_layers([0, 1])
        return whole(form, less)

    monkeypatch.setattr(forms.AudioForm, "module", lossy)
    for precision in ("fp32", "int8"):
        with pytest.raises(
            ParityError, match=r"logits differs from torch at 400 samples, batch 1: .* cosine 0\.\d+; allowed"
        ):
            export(model, "onnx", tmp_path / precision, precision=precision)
    assert list(tmp_path.iterdir()) == []


def test_what_a_converter_raises_becomes_one_line_and_the_old_artifact_stays(model: Model, artifact: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in artifact.rglob("*")}
    with pytest.raises(ExportError, match=r"^onnx fp32: the converter met an operator it does not know$") as told:
        export(model, folder=artifact, exporter=Broken())
    assert isinstance(told.value.__cause__, RuntimeError)
    assert {file: file.stat().st_mtime_ns for file in artifact.rglob("*")} == before


def test_unknown_formats_and_precisions_are_named_with_the_nearest(model: Model, tmp_path: Path) -> None:
    with pytest.raises(PluginNotFound) as told:
        export(model, "onx", tmp_path / "a")
    assert told.value.hint == "did you mean 'onnx'?"
    with pytest.raises(ExportError, match="onnx has no precision 'int4'") as refused:
        export(model, "onnx", tmp_path / "a", precision="int4")
    assert "int8" in refused.value.hint


def test_a_model_in_training_is_exported_in_eval_mode_and_goes_on_training(tmp_path: Path) -> None:
    model = tiny("hubert", hidden_dropout=0.5, attention_dropout=0.5)
    model.train()
    model.base.feature_extractor.eval()
    export(model, "onnx", tmp_path / "a")
    assert model.encoder_module.training
    assert not model.base.feature_extractor.training


def test_int8_starts_from_the_fp32_artifact_of_the_same_weights(
    model: Model, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("exported again")

    monkeypatch.setattr(onnx_graph, "write_fp32", refuse)
    small = export(model, "onnx", tmp_path / "int8", precision="int8", reuse=artifact)
    assert small.quantized_nodes
    other = tiny("hubert", head="ForCTC", seed=3)
    for reuse in (artifact, tmp_path / "nothing there", None):
        with pytest.raises(ExportError, match="exported again"):
            export(other, "onnx", tmp_path / "other", precision="int8", reuse=reuse)


def test_int8_by_itself_leaves_no_fp32_file_behind(model: Model, tmp_path: Path) -> None:
    small = export(model, "onnx", tmp_path / "int8", precision="int8")
    assert [name for name in small.files if name.endswith(".onnx")] == ["model.onnx"]


def test_a_damaged_fp32_artifact_is_not_reused(model: Model, tmp_path: Path) -> None:
    weights = lineage.weights_sha256(model)
    export(model, "onnx", tmp_path / "a")
    assert lineage.matching_fp32(tmp_path / "a", "onnx", weights) == tmp_path / "a" / "model.onnx"
    with (tmp_path / "a" / "model.onnx").open("ab") as file:
        file.write(b"!")
    assert lineage.matching_fp32(tmp_path / "a", "onnx", weights) is None


def test_the_hash_of_the_weights_sees_one_number_and_one_edit() -> None:
    model, changed, edited = tiny("wavlm"), tiny("wavlm"), tiny("wavlm")
    assert lineage.weights_sha256(model) == lineage.weights_sha256(changed)
    with torch.no_grad():
        changed.layers[1].up.weight[3, 4] += 1e-3  # type: ignore[union-attr]
    edited.keep_heads(0, [1])
    assert len({lineage.weights_sha256(each) for each in (model, changed, edited)}) == 3


def test_whisper_below_its_context_is_compared_with_a_trimmed_copy_of_itself() -> None:
    model = tiny("whisper")
    inputs = example(model, length=60)
    wanted = said_by_torch(model, inputs)
    trimmed = tiny("whisper")
    trimmed.keep_context(30)
    np.testing.assert_array_equal(wanted, trimmed.encode(inputs).detach().numpy())
    assert (model.context_positions, model.edits) == (100, ())


def test_distances_are_relative_to_the_reference_and_nan_is_farthest() -> None:
    near = distances(np.array([1.0, -2.2]), np.array([1.0, -2.0]))
    assert near["max_abs"] == pytest.approx(0.2)
    assert near["relative"] == pytest.approx(0.1)
    assert near["cosine"] == pytest.approx(5.4 / np.sqrt(5.84 * 5))
    assert distances(np.zeros(3), np.zeros(3)) == {"max_abs": 0, "relative": 0, "cosine": 1}
    assert distances(np.array([np.nan]), np.ones(1))["cosine"] == -1


def test_int8_tolerance_would_notice_a_missing_layer() -> None:
    for family in ("hubert", "wavlm", "whisper"):
        model, less = tiny(family), tiny(family)
        less.keep_layers([0, 2])
        inputs = example(model)
        apart = distances(said_by_torch(less, inputs), said_by_torch(model, inputs))
        assert apart["cosine"] < tolerance_of("int8").cosine


def test_a_precision_of_a_strangers_exporter_gets_the_coarsest_tolerance() -> None:
    assert tolerance_of("int3") == tolerance_of("int8")


def test_the_synthetic_clip_is_the_same_sound_every_time_and_not_clipped() -> None:
    clip = synthetic_clip()
    assert (clip.shape, clip.dtype) == ((80_000,), np.float32)
    assert 0.05 < float(np.abs(clip).max()) < 1
    np.testing.assert_array_equal(clip, synthetic_clip())


def test_five_seconds_of_a_longer_clip_are_golden_for_a_waveform(model: Model, tmp_path: Path) -> None:
    told = export(model, "onnx", tmp_path / "a", clips=[noise_clip(6)])
    assert told.audio.golden_seconds == 5
    assert (told.audio.unit, told.audio.per_second, told.audio.max_seconds) == ("samples", 16000, None)


class Raising(OnnxExporter):
    """A graph with a baked-in length makes ONNX Runtime raise where it is not that length."""

    def open(self, file: Path) -> Runner:
        run = super().open(file)

        def picky(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            if next(iter(inputs.values())).shape[-1] != 400:
                raise RuntimeError("Reshape node: input shape {1,719}")
            return run(inputs)

        return picky


def test_a_runtime_that_raises_at_a_length_is_a_parity_error(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"the runtime fails on an input of \(1, 719\): Reshape"):
        export(model, folder=tmp_path / "a", exporter=Raising())
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_does_not_run_and_says_so(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes((artifact / "model.onnx").read_bytes()[:1000])
    with pytest.raises(ExportError, match="does not run in onnxruntime"):
        runner("onnx", tmp_path / "model.onnx")
