"""Commands that load a model: what they say of a good one, and how they refuse a bad one."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgecompress import audio
from tests.calling import Call
from tests.library import library_network

Write = Callable[[str, str], Path]
THIN = 'name = "thin"\n[[technique]]\nkind = "prune_heads"\nratio = 0.5\n'
AWARE = THIN + 'score = "activation"\n'


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny HuBERT as transformers saves one. Tests that change it make a copy."""
    folder = tmp_path_factory.mktemp("models") / "tiny-hubert"
    library_network("hubert").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stereo at 44.1 kHz, mono at 16 kHz, an empty file and one that is text."""
    folder = tmp_path_factory.mktemp("recordings")
    for number, clip in enumerate(audio.synthetic(2, 1.0).arrays):
        soundfile.write(folder / f"mono-{number}.flac", clip, 16000)
    clip = np.repeat(audio.synthetic(1, 1.0, seed=1).arrays[0], 3)[:44100]
    soundfile.write(folder / "stereo.wav", np.stack([clip, 0.5 * clip], axis=1), 44100)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("not audio")
    return folder


@pytest.fixture(scope="module")
def checkpoint(hubert: Path, recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny HuBERT with half of its heads, by the command line."""
    from edgecompress import cli

    folder = tmp_path_factory.mktemp("made")
    (folder / "aware.toml").write_text(AWARE)
    line = [
        "compress",
        hubert,
        "--recipe",
        folder / "aware.toml",
        "-o",
        folder / "thin",
        "--audio",
        recordings,
        "--clips",
        1,
    ]
    assert cli.main([str(word) for word in line]) == 0
    return folder / "thin"


def test_inspect_says_what_a_model_costs(call: Call, hubert: Path) -> None:
    facts = json.loads(call("inspect", hubert, "--json", "--seconds", "2").out)
    assert facts["family"] == "hubert"
    assert facts["seconds"] == 2
    assert facts["parameters"]["total"] >= facts["parameters"]["nonzero"] > 0
    assert facts["bytes"] == (hubert / "model.safetensors").stat().st_size
    assert facts["macs"]["total"] == sum(facts["macs"]["parts"].values())
    assert facts["macs"]["per_second"] == pytest.approx(facts["macs"]["total"] / 2)
    assert f"{facts['parameters']['total']:,}" in call("inspect", hubert).out


def test_compress_writes_a_checkpoint_that_inspect_reads(call: Call, hubert: Path, checkpoint: Path) -> None:
    before, after = (json.loads(call("inspect", path, "--json").out) for path in (hubert, checkpoint))
    assert [layer["heads"] for layer in after["layers"]] == [2, 2, 2]
    assert after["parameters"]["total"] < before["parameters"]["total"]
    assert after["macs"]["total"] < before["macs"]["total"]


def test_compress_prints_its_folder_last_and_the_steps_beside(
    call: Call, hubert: Path, write: Write, tmp_path: Path
) -> None:
    answer = call("compress", hubert, "--recipe", write("thin.toml", THIN), "-o", tmp_path / "out")
    assert answer.lines == [str(tmp_path / "out")]
    assert "prune_heads: " in answer.err


def test_broken_recordings_are_named_and_counted_and_the_others_used(
    call: Call, hubert: Path, recordings: Path, write: Write, tmp_path: Path
) -> None:
    line = ["compress", hubert, "--recipe", write("aware.toml", AWARE), "-o", tmp_path / "out", "--audio", recordings]
    answer = call(*line)
    assert answer.status == 0
    assert "skipped 2 audio files:" in answer.err
    assert "  empty.wav: the file is empty" in answer.err
    assert "  text.wav: " in answer.err


def test_an_exported_checkpoint_can_be_scored_and_measured(
    call: Call, hubert: Path, checkpoint: Path, recordings: Path, tmp_path: Path
) -> None:
    artifact = tmp_path / "artifact"
    assert call("export", checkpoint, "-o", artifact).lines == [str(artifact)]
    scored = call("score", artifact, "--task", "fidelity", "--audio", recordings, "--source", hubert, "--json")
    record = json.loads(scored.out)
    assert (record["recipe"], record["format"], len(record["items"])) == ("thin", "onnx", 2)
    calibrated = {name for name, reason in record["skipped"].items() if reason == "the model was calibrated on it"}
    assert len(calibrated) == 1
    assert set(record["skipped"]) - calibrated == {"empty.wav", "text.wav"}
    quick = ["--repetitions", 1, "--min-samples", 2, "--min-seconds", 0, "--warmup-s", 0]
    measured = call("bench", artifact, "-o", tmp_path / "bench", *quick)
    assert json.loads(Path(measured.lines[-1]).read_text())["recipe"] == "thin"
    assert ["golden", "output", "right"] in [line.split() for line in measured.lines]
    page = call("report", tmp_path / "bench").lines[-1]
    assert Path(page).name == "index.html"
    assert "thin" in Path(page).read_text()


def test_a_changed_model_is_scored_against_its_source_only(
    call: Call, hubert: Path, checkpoint: Path, recordings: Path, tmp_path: Path
) -> None:
    line = ["score", checkpoint, "--task", "fidelity", "--audio", recordings]
    assert "--source" in call(*line).err
    library_network("hubert", seed=5).save_pretrained(tmp_path / "other")
    other = call(*line, "--source", tmp_path / "other")
    assert other.is_refused()
    assert "its files have another hash" in other.err
    record = json.loads(call(*line, "--source", hubert, "--json").out)
    values = [item["numerator"] / item["denominator"] for item in record["items"]]
    assert all(0 < value < 0.99999 for value in values)
    same = json.loads(call("score", hubert, "--task", "fidelity", "--audio", recordings, "--json").out)
    assert all(item["numerator"] / item["denominator"] == pytest.approx(1) for item in same["items"])


def test_a_task_takes_its_fields_and_refuses_wrong_ones(call: Call, hubert: Path, recordings: Path) -> None:
    line = ["score", hubert, "--audio", recordings, "--json", "--task"]
    assert json.loads(call(*line, "fidelity:metric=relative_error").out)["metric"] == "fidelity_relative_error"
    for task in ("fidelty", "fidelity:metrik=cosine", "fidelity:metric=cos"):
        assert call(*line, task).is_refused()


# --- bad input -------------------------------------------------------------------------------------------------------
def copied(model: Path, to: Path) -> Path:
    to.mkdir()
    for file in model.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def absent(model: Path, to: Path) -> Path:
    return to


def of_another_architecture(model: Path, to: Path) -> Path:
    copied(model, to)
    (to / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2Model"]}))
    return to


def truncated(model: Path, to: Path) -> Path:
    weights = copied(model, to) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return to


def only_a_pickle(model: Path, to: Path) -> Path:
    (copied(model, to) / "model.safetensors").unlink()
    (to / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": 1}))
    return to


def without_config(model: Path, to: Path) -> Path:
    (copied(model, to) / "config.json").unlink()
    return to


def with_broken_config(model: Path, to: Path) -> Path:
    (copied(model, to) / "config.json").write_text('{"model_type": ')
    return to


BAD_MODELS = [
    (absent, "no such model"), (of_another_architecture, "gpt2"), (truncated, "do not load"),
    (only_a_pickle, "pickle"), (without_config, "config.json"), (with_broken_config, "config.json"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "word"), BAD_MODELS, ids=lambda value: getattr(value, "__name__", None))
@pytest.mark.parametrize("command", ["inspect", "compress", "export"])
def test_a_bad_model_is_refused_and_nothing_is_written(
    call: Call, hubert: Path, write: Write, tmp_path: Path, spoil: Callable[[Path, Path], Path], word: str, command: str
) -> None:
    bad = spoil(hubert, tmp_path / "bad")
    recipe = write("thin.toml", THIN)
    more = {"compress": ["--recipe", recipe, "-o", tmp_path / "out"], "export": ["-o", tmp_path / "out"]}.get(
        command, []
    )
    answer = call(command, bad, *more)
    assert answer.is_refused()
    assert word in answer.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (THIN.replace("ratio", "ration"), "did you mean 'ratio'?"),
        (THIN.replace("0.5", "1.5"), "it is 1.5"),
        (THIN.replace("prune_heads", "prune_hats"), "did you mean 'prune_heads'?"),
        (THIN.replace("0.5", "0.5]"), "not readable as TOML"),
    ],
)
def test_a_bad_recipe_is_refused_before_the_model_is_looked_at(
    call: Call, write: Write, tmp_path: Path, text: str, word: str
) -> None:
    answer = call("compress", "no-model-there", "--recipe", write("bad.toml", text), "-o", tmp_path / "out")
    assert answer.is_refused()
    assert word in answer.err


def test_a_technique_that_needs_audio_says_so(call: Call, hubert: Path, write: Write, tmp_path: Path) -> None:
    answer = call("compress", hubert, "--recipe", write("aware.toml", AWARE), "-o", tmp_path / "out")
    assert answer.is_refused()
    assert "--audio" in answer.err


def test_a_folder_without_usable_audio_is_refused(call: Call, hubert: Path, write: Write, tmp_path: Path) -> None:
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "empty.wav").touch()
    line = ["compress", hubert, "--recipe", write("aware.toml", AWARE), "-o", tmp_path / "out", "--audio"]
    for folder, word in ((tmp_path / "sounds", "the file is empty"), (tmp_path / "absent", "no such audio folder")):
        answer = call(*line, folder)
        assert answer.is_refused()
        assert word in answer.err


def test_an_unknown_format_or_precision_is_refused(call: Call, hubert: Path, tmp_path: Path) -> None:
    assert "'onnx'" in call("export", hubert, "--format", "onxx", "-o", tmp_path / "out").err
    assert call("export", hubert, "--precision", "int3", "-o", tmp_path / "out").is_refused()
    assert not (tmp_path / "out").exists()
