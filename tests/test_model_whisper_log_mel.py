"""Whisper's log-mel frames inside a graph: those of the library's extractor, in torch and in every runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgecompress import cost, paths
from edgecompress.audio import read_clip
from edgecompress.errors import ModelError
from edgecompress.exporters import export, runner
from edgecompress.model.features import whisper_features
from edgecompress.model.forms import Port, form_of, forms_of
from edgecompress.model.log_mel import LogMel, LogMelSettings
from edgecompress.model.log_mel import log_mel as kaldi
from edgecompress.model.whisper_log_mel import WhisperLogMel, log_mel_of
from edgecompress.tasks import in_torch, of_runner
from tests.library import library_network, ours
from tests.models import noise_clip, tiny
from tests.runtimes_here import in_litert, in_onnxruntime, in_openvino

SECONDS = 5
SAMPLES = SECONDS * 16000
SPEECH = paths.expand("${EDGECOMPRESS_SPEECH}") / "barista"


def sounds(samples: int = SAMPLES) -> dict[str, np.ndarray]:
    """Digital silence, noise loud and quiet, tones, a tone that stops, and orders where there are some."""
    rng = np.random.default_rng(0)
    time = np.arange(samples) / 16000
    tone = 0.9 * np.sin(2 * np.pi * 440 * time)
    found = {
        "silence": np.zeros(samples),
        "noise": 0.3 * rng.standard_normal(samples),
        "quiet": 1e-4 * rng.standard_normal(samples),
        "voice": noise_clip(samples / 16000),
        "tone": tone,
        "stops": np.where(time < time[samples // 2], tone, 0),
        "short": noise_clip(0.3),
        "long": noise_clip(samples / 16000 + 1),
    }
    for path in sorted(SPEECH.glob("*.flac"))[::200]:
        found[path.stem] = read_clip(path).samples[:samples]
    return {name: clip.astype(np.float32) for name, clip in found.items()}


@pytest.mark.parametrize("seconds", [2, 7.5, 30])
def test_frames_are_those_of_the_librarys_extractor_for_any_context(seconds: float) -> None:
    model = tiny("whisper", max_source_positions=round(50 * seconds))
    module = log_mel_of(model)
    for name, clip in sounds().items():
        wanted = model.features(clip)
        said = module(torch.from_numpy(clip)[None])
        assert said.shape == wanted.shape == (1, 80, round(100 * seconds))
        torch.testing.assert_close(said, wanted, atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("bins", [80, 128])
def test_a_part_of_a_longer_context_hears_the_second_after_it(bins: int) -> None:
    model = tiny("whisper", max_source_positions=300, num_mel_bins=bins)
    module = WhisperLogMel(bins, positions=100, context=300)
    for clip in (noise_clip(1.0), noise_clip(2.4), noise_clip(8.0)):
        wanted = whisper_features(model, clip, 100)
        torch.testing.assert_close(module(torch.from_numpy(clip)[None]), wanted, atol=1e-4, rtol=0)


def test_each_clip_of_a_batch_has_its_own_floor() -> None:
    module = log_mel_of(tiny("whisper"))
    loud, quiet = noise_clip(1.0, 1), 1e-3 * noise_clip(1.0, 2)
    both = module(torch.from_numpy(np.stack([loud, quiet])))
    for row, clip in enumerate((loud, quiet)):
        torch.testing.assert_close(both[row], module(torch.from_numpy(clip)[None])[0])


def test_a_folder_with_other_features_is_refused() -> None:
    model = tiny("whisper")
    model.origin = replace(model.origin, preprocessor={"hop_length": 80})
    with pytest.raises(ModelError, match="hop_length is 80, wanted 160") as caught:
        log_mel_of(model)
    assert "features" in caught.value.hint
    with pytest.raises(ModelError, match="does not hear as Whisper"):
        log_mel_of(tiny("melhubert"))


IN, OUT = (Port("samples", ("batch", "samples")),), (Port("mel", ("batch", "bins", "frames")),)


def test_every_runtime_makes_the_same_frames(tmp_path: Path) -> None:
    model = tiny("whisper", max_source_positions=50 * SECONDS)
    module = log_mel_of(model).eval()
    traced = torch.from_numpy(np.stack([noise_clip(1.0, 1), noise_clip(1.0, 2)]))
    fixed = torch.from_numpy(noise_clip(SECONDS))[None]
    free = (
        in_onnxruntime(module, (traced,), IN, OUT, tmp_path),
        in_openvino(module, (traced,), IN, OUT),
    )
    lite = in_litert({"mel": (module, (fixed,), IN, OUT)}, tmp_path / "mel.tflite")("mel")
    for name, clip in sounds().items():
        wanted = model.features(clip).numpy()
        for run in free:
            np.testing.assert_allclose(run({"samples": clip[None]})["mel"], wanted, atol=1e-4, err_msg=name)
        filled = np.pad(clip[:SAMPLES], (0, max(0, SAMPLES - clip.size)))  # the host pads where lengths are fixed
        np.testing.assert_allclose(lite({"samples": filled[None]})["mel"], wanted, atol=1e-4, err_msg=name)


def test_every_runtime_makes_melhuberts_frames_as_torch_does(tmp_path: Path) -> None:
    """What the runtimes add is little; what float32 costs beside Kaldi's, which is float32 too, is told elsewhere."""
    module = LogMel(LogMelSettings(40)).eval()
    traced = torch.from_numpy(np.stack([noise_clip(1.0, 1), noise_clip(1.0, 2)]))
    fixed = torch.from_numpy(noise_clip(SECONDS))[None]
    runs = (
        in_onnxruntime(module, (traced,), IN, OUT, tmp_path),
        in_openvino(module, (traced,), IN, OUT),
        in_litert({"mel": (module, (fixed,), IN, OUT)}, tmp_path / "mel.tflite")("mel"),
    )
    for name, clip in sounds().items():
        if clip.size != SAMPLES:
            continue
        wanted = kaldi(clip, 40)
        for run in runs:
            apart = np.abs(run({"samples": clip[None]})["mel"][0] - wanted)
            assert np.quantile(apart, 0.9) < 1e-4, name
            assert apart.max() < 2e-3, name


def test_waveform_in_is_exported_and_scored_as_features_in(tmp_path: Path) -> None:
    model = tiny("whisper")
    model.keep_context(60)
    form = form_of(model, "waveform")
    assert form.outputs[0].shape == ("batch", 60, 64)
    artifact = export(model, "onnx", tmp_path / "a", input="waveform", clips=[noise_clip(0.9)])
    assert {case.length for case in artifact.parity.cases} >= {400, 60 * 320 - 1, 60 * 320, 60 * 320 + 700}
    assert artifact.audio is not None
    assert artifact.audio.preparation == {"kind": "none"}
    assert artifact.cost.macs.parts["log_mel"] == 121 * 402 * 400 + 120 * 201 * 80

    class Clip:
        def __init__(self, seed: int) -> None:
            self.name, self.samples = str(seed), noise_clip(0.5 + seed / 10, seed)

    clips = [Clip(seed) for seed in range(3)]
    run = runner("onnx", tmp_path / "a" / "model.onnx")
    said = of_runner(model, run, ["input_values"], "last_hidden_state").outputs(clips)
    for one, wanted in zip(said, in_torch(model).outputs(clips), strict=True):
        torch.testing.assert_close(one, wanted, atol=1e-3, rtol=1e-3)


def test_a_classifier_takes_samples_too(tmp_path: Path) -> None:
    model = tiny("whisper", head="ForAudioClassification")
    artifact = export(model, "onnx", tmp_path / "a", input="waveform")
    assert artifact.outputs[0].shape == ["batch", 5]


@pytest.mark.parametrize("takes", ["cache", "waveform_cache", "step", "fixed_step"])
def test_the_parts_that_write_text_are_exported_like_any_form(takes: str, tmp_path: Path) -> None:
    model = ours(library_network("whisper", head="ForConditionalGeneration", max_target_positions=20))
    assert takes in [form.takes for form in forms_of(model)]
    artifact = export(model, "onnx", tmp_path / "a", input=takes)
    form = form_of(model, takes)
    assert [tensor.name for tensor in artifact.inputs] == [port.name for port in form.inputs]
    assert {case.output for case in artifact.parity.cases} == {port.name for port in form.outputs}
    assert (artifact.audio is None) == (takes in ("step", "fixed_step"))
    held = sum(parameter.numel() for parameter in form.module(model).parameters())
    assert artifact.cost.parameters.total == held < cost.parameters(model).total
    assert "cross_keys_and_values" in artifact.cost.macs.parts or "words" in artifact.cost.macs.parts


def test_a_step_at_int8_multiplies_with_its_words_in_bytes_and_looks_them_up_in_floats(tmp_path: Path) -> None:
    model = ours(library_network("whisper", head="ForConditionalGeneration", max_target_positions=20))
    artifact = export(model, "onnx", tmp_path / "a", precision="int8", input="step")
    per_layer = 4 + 2 + 2  # own attention, queries and answers of the other, feed-forward
    assert artifact.quantized_nodes == per_layer + 1
    assert min(case.cosine for case in artifact.parity.cases) > 0.99
