"""An exported Whisper writes on the command line what the torch model writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile

from edgecompress.exporters import export
from edgecompress.model import Model
from edgecompress.model.decoding import transcribe
from tests.calling import Call
from tests.library import library_network, ours
from tests.models import noise_clip

WORDS = {f"word{number}": number for number in range(40)}
TOKENIZER = {"version": "1.0", "model": {"type": "WordLevel", "vocab": WORDS, "unk_token": "word0"}}


@pytest.fixture(scope="module")
def model() -> Model:
    found = ours(library_network("whisper", head="ForConditionalGeneration"))
    found.origin.extra_files["tokenizer.json"] = json.dumps(TOKENIZER)
    found.keep_heads(0, [1, 3])
    return found


@pytest.fixture(scope="module")
def artifacts(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whisper")
    for form in ("waveform_cache", "cache", "step"):
        export(model, "onnx", root / form, input=form)
    return root


@pytest.mark.parametrize("encoder", ["waveform_cache", "cache"])
def test_the_text_of_an_exported_encoder_and_decoder_is_torchs(
    model: Model, artifacts: Path, call: Call, tmp_path: Path, encoder: str
) -> None:
    clip = noise_clip(1.5, seed=3)
    soundfile.write(tmp_path / "a.wav", clip, 16000, subtype="FLOAT")
    (wanted,) = transcribe(model, model.encode(model.features(clip)))
    assert len(wanted.split()) > 3
    answer = call(
        "transcribe",
        str(tmp_path / "a.wav"),
        "--encoder",
        str(artifacts / encoder),
        "--decoder",
        str(artifacts / "step"),
    )
    assert (answer.status, answer.out.strip()) == (0, wanted)


def test_what_is_no_decoder_or_too_long_is_refused(artifacts: Path, call: Call, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", noise_clip(3.0), 16000)
    given = ["transcribe", str(tmp_path / "long.wav"), "--encoder", str(artifacts / "waveform_cache"), "--decoder"]
    answer = call(*given, str(artifacts / "cache"))
    assert answer.status == 2
    assert "takes 'cache', wanted step or fixed_step" in answer.err
    answer = call(*given, str(artifacts / "step"))
    assert answer.status == 2
    assert "3.0 s of audio, and the encoder hears 2 s" in answer.err


def test_a_decoder_without_its_tokenizer_says_what_is_missing(artifacts: Path, call: Call, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise_clip(1.0), 16000)
    (artifacts / "step" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    answer = call(
        "transcribe",
        str(tmp_path / "a.wav"),
        "--encoder",
        str(artifacts / "cache"),
        "--decoder",
        str(artifacts / "step"),
    )
    (tmp_path / "tokenizer.json").rename(artifacts / "step" / "tokenizer.json")
    assert answer.status == 2
    assert "has no tokenizer.json: its tokens cannot become words" in answer.err
