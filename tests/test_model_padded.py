"""The module that is exported for padded batches says of each row what the row says alone, in torch and in each runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgecompress import exporters
from edgecompress.errors import ModelError
from edgecompress.model import Model
from edgecompress.model.forms import form_of
from edgecompress.model.padded import PaddedForm
from tests.models import VARIANT_NAMES, VARIANTS, tiny

CLASSIFIER = "ForSequenceClassification"
# What the shared list leaves out, each with its name: biases, norms, adapters and sums that padding could shine through.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "batch-norm": ("hubert", {"conv_pos_batch_norm": True}),
    "conv-bias": ("hubert", {"conv_bias": True}),
    "plain-projection": ("hubert", {"feat_proj_layer_norm": False}),
    "attention-adapter": ("wav2vec2", {"adapter_attn_dim": 8, "stable": True, "front_end": "layer"}),
    "adapter": ("wav2vec2", {"add_adapter": True}),
    "adapter-ForCTC": ("wav2vec2", {"add_adapter": True, "output_hidden_size": 48, "head": "ForCTC"}),
    "wavlm-adapter": ("wavlm", {"add_adapter": True}),
    "data2vec-adapter": ("data2vec-audio", {"add_adapter": True}),
    "data2vec-odd-config": ("data2vec-audio", {"do_stable_layer_norm": True}),
    "frame-classes": ("wav2vec2", {"head": "ForAudioFrameClassification"}),
    "frame-classes-sum": ("wavlm", {"head": "ForAudioFrameClassification", "use_weighted_layer_sum": True}),
    **{
        f"{family}-sum": (family, {"head": CLASSIFIER, "use_weighted_layer_sum": True})
        for family in ("hubert", "wavlm", "data2vec-audio", "melhubert")
    },
    "hubert-stable-sum": ("hubert", {"head": CLASSIFIER, "use_weighted_layer_sum": True, "stable": True}),
    "wavlm-stable-sum": ("wavlm", {"head": CLASSIFIER, "use_weighted_layer_sum": True, "stable": True}),
}
PADDABLE = {
    **{name: variant for name, variant in zip(VARIANT_NAMES, VARIANTS, strict=True) if not name.startswith("whisper")},
    **MORE,
}
# Samples: the whole batch, the least that makes a frame, one less than two frames, and odd numbers of 10 ms frames.
SAMPLES = (9000, 400, 719, 5213, 1040)
FRAMES = (40, 1, 2, 25, 7)


def built(name: str, edited: bool = False) -> Model:
    """A variant, and where ``edited`` with uneven heads, units and channels, a head-less and a unit-less layer, one dropped."""
    family, variant = PADDABLE[name]
    model = tiny(family, **variant)
    if edited:
        model.keep_heads(1, [0, 3])
        model.keep_heads(2, [])
        model.keep_units(1, range(10))
        model.keep_units(2, [])
        model.factor(1, "up", 8)
        model.factor(1, "q_proj", 8)
        if model.front_end.convs:
            model.keep_channels(0, range(1, 32, 2))
            model.keep_channels(6, range(9))
        model.keep_layers([1, 2])
    return model


def noise(model: Model, takes: str | None = None, batch: int = 5) -> tuple[torch.Tensor, tuple[int, ...]]:
    """A batch of loud noise, off zero, also where a row is padded; and how long its rows are."""
    form = form_of(model, takes)
    lengths = (SAMPLES if form.takes == "waveform" else FRAMES)[:batch]
    generator = torch.Generator().manual_seed(3)
    shape = [len(lengths), *(lengths[0] if isinstance(size, str) else size for size in form.inputs[0].shape[1:])]
    return 3 * torch.randn(shape, generator=generator) + 0.5, lengths


@torch.no_grad()
def worst(model: Model, takes: str | None, values: Any, lengths: Sequence[int], output: Any, frames: Any) -> float:
    """How far a row's output is from what its clip says alone, as a share of the greatest value of that; frames must agree."""
    core = form_of(model, takes).module(model)
    found = 0.0
    for row, length in enumerate(lengths):
        alone = core(torch.as_tensor(values)[row : row + 1, :length])[0].numpy()
        said = np.asarray(output[row])
        if said.ndim == 2:
            assert int(frames[row]) == alone.shape[0]
            assert not said[alone.shape[0] :].any()
            said = said[: alone.shape[0]]
        found = max(found, float(np.abs(said - alone).max() / np.abs(alone).max()))
    return found


@pytest.mark.parametrize("edited", [False, True], ids=["dense", "edited"])
@pytest.mark.parametrize("name", PADDABLE)
def test_each_row_says_what_its_clip_says_alone(name: str, edited: bool) -> None:
    model = built(name, edited)
    for takes in ("waveform", "features") if model.family == "melhubert" else (None,):
        values, lengths = noise(model, takes)
        with torch.no_grad():
            output, frames = PaddedForm(model, takes)(values, torch.tensor(lengths))
        assert worst(model, takes, values, lengths, output, frames) < 1e-5


@pytest.mark.parametrize("name", ["hubert-group", "wavlm-layer-stable", "data2vec-audio", "melhubert"])
def test_rows_of_one_length_say_what_the_form_without_lengths_says(name: str) -> None:
    model = built(name)
    values, _ = noise(model, batch=3)
    with torch.no_grad():
        output, frames = PaddedForm(model)(values, torch.full((3,), values.shape[1], dtype=torch.int32))
        wanted = form_of(model).module(model)(values)
    assert frames.dtype == torch.int32
    assert frames.tolist() == [wanted.shape[1]] * 3
    torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["hubert-group", f"wavlm-{CLASSIFIER}", "data2vec-audio", "melhubert", "adapter"])
def test_a_row_too_short_for_a_frame_has_none_and_harms_nobody(name: str) -> None:
    model = built(name)
    values, lengths = noise(model, batch=2)
    short = (lengths[0], 399)
    with torch.no_grad():
        output, frames = PaddedForm(model)(values, torch.tensor(short))
    assert frames[1] == 0
    assert output.isfinite().all()
    assert worst(model, None, values[:1], short[:1], output, frames) < 1e-5


@pytest.mark.parametrize("name", ["hubert-group", "wavlm-layer-stable", "data2vec-audio", "melhubert"])
def test_half_precision_holds_25_seconds(name: str) -> None:
    """Sums over 80000 steps and the scores of hidden frames are where float16 would give out."""
    model = built(name)
    values = torch.randn(2, 400_000, generator=torch.Generator().manual_seed(0)) * 0.3
    lengths = torch.tensor([400_000, 400])
    takes = None
    if model.family == "melhubert":  # log-mel of float16 samples is another matter
        takes, values, lengths = "features", values[:, :100_000].reshape(2, -1, 80), torch.tensor([1250, 1])
    with torch.no_grad():
        wanted, _ = PaddedForm(model, takes)(values, lengths)
        output, frames = PaddedForm(model.clone().half(), takes)(values.half(), lengths)
    assert frames[1] == 1
    for row in range(2):
        assert float((output[row].float() - wanted[row]).abs().max() / wanted[row].abs().max()) < 2e-2


def test_whisper_takes_no_lengths() -> None:
    with pytest.raises(ModelError, match="lengths input"):
        PaddedForm(tiny("whisper"))


@pytest.mark.parametrize(("family", "takes"), [("hubert", "waveform"), ("melhubert", "features")])
def test_an_artifact_with_a_lengths_input_passes_parity(family: str, takes: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    options = exporters.Options(padded=True)
    artifact = exporters.export(tiny(family), "onnx", tmp_path / "artifact", input=takes, options=options)
    assert [port.name for port in artifact.inputs][1:] == ["lengths"]
    assert [port.name for port in artifact.outputs] == ["last_hidden_state", "frames"]


def onnx_file(model: Model, file: Path, dtype: torch.dtype) -> Path:
    """The padded form traced into an ONNX file, batch and time free."""
    values, lengths = noise(model, batch=2)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                PaddedForm(model),
                (values, torch.tensor(lengths, dtype=dtype)),
                str(file),
                dynamo=False,
                opset_version=17,
                input_names=["values", "lengths"],
                output_names=["output", "frames"],
                dynamic_axes={"values": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}, "frames": {0: "batch"}},
            )
    finally:
        logging.disable(logging.NOTSET)
    return file


IN_A_FILE = (
    ("hubert-group", True, torch.int64),
    ("wav2vec2-layer-stable", False, torch.int64),
    ("wavlm-group", True, torch.int32),
    (f"wavlm-{CLASSIFIER}", False, torch.int64),
    ("data2vec-audio-ForCTC", True, torch.int64),
    (f"melhubert-{CLASSIFIER}", True, torch.int64),
    ("batch-norm", False, torch.int32),
    ("adapter", False, torch.int64),
)


@pytest.mark.parametrize(("name", "edited", "dtype"), IN_A_FILE, ids=[name for name, _, _ in IN_A_FILE])
def test_an_onnx_file_says_it_of_other_lengths_and_another_batch_than_it_was_traced_with(
    name: str, edited: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    openvino = pytest.importorskip("openvino")
    model = built(name, edited)
    file = onnx_file(model, tmp_path / "model.onnx", dtype)
    operators = {node.op_type for node in onnx.load(str(file)).graph.node}
    assert not operators & {"If", "Loop", "NonZero", "ScatterND"}  # nothing depends on the data but numbers
    values, _ = noise(model, batch=3)
    values, lengths = values[:, :7777], (7777, 400, 5213)
    feed = {"values": values.numpy(), "lengths": torch.tensor(lengths, dtype=dtype).numpy()}
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert worst(model, None, values, lengths, *session.run(["output", "frames"], feed)) < 1e-5
    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    said = compiled(feed)
    assert worst(model, None, values, lengths, said["output"], said["frames"]) < 1e-5


@pytest.mark.parametrize(("name", "edited"), [("hubert-group", True), ("wavlm-ForCTC", False)])
def test_a_tflite_file_of_one_bucket_takes_every_shorter_clip(name: str, edited: bool, tmp_path: Path) -> None:
    litert_torch = pytest.importorskip("litert_torch")
    interpreters = pytest.importorskip("ai_edge_litert.interpreter")
    model = built(name, edited)
    values, lengths = noise(model)
    traced = (values[:1], torch.tensor([values.shape[1]], dtype=torch.int32))
    litert_torch.convert(PaddedForm(model), traced).export(str(tmp_path / "model.tflite"))
    interpreter = interpreters.Interpreter(str(tmp_path / "model.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    inputs = {detail["dtype"]: detail["index"] for detail in interpreter.get_input_details()}
    outputs = {detail["dtype"]: detail["index"] for detail in interpreter.get_output_details()}
    for row, length in enumerate(lengths):
        interpreter.set_tensor(inputs[np.float32], values[row : row + 1].numpy())
        interpreter.set_tensor(inputs[np.int32], np.array([length], np.int32))
        interpreter.invoke()
        said, frames = (interpreter.get_tensor(outputs[kind]) for kind in (np.float32, np.int32))
        assert worst(model, None, values[row : row + 1], [length], said, frames) < 1e-5
