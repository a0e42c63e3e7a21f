"""Audio: what is read, what is resampled, and what is skipped by name."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from edgecompress import audio
from edgecompress.errors import AudioError


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def loudest_hertz(samples: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * audio.SAMPLE_RATE / samples.size)


def test_stereo_at_44100_becomes_the_mean_of_its_channels_at_16000(tmp_path: Path) -> None:
    left = tone(44100)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, np.zeros_like(left)], axis=1), 44100)
    clip = audio.read_clip(tmp_path / "stereo.wav")
    assert clip.samples.dtype == np.float32
    assert clip.samples.shape == (8000,)
    assert loudest_hertz(clip.samples) == pytest.approx(440, abs=2)
    assert np.abs(clip.samples[1000:7000]).max() == pytest.approx(0.15, rel=0.02)


@pytest.mark.parametrize(("rate", "name"), [(8000, "a.flac"), (16000, "b.ogg"), (22050, "c.aiff"), (48000, "d.wav")])
def test_any_rate_and_format_keeps_its_pitch_and_length(tmp_path: Path, rate: int, name: str) -> None:
    soundfile.write(tmp_path / name, tone(rate), rate)
    clip = audio.read_clip(tmp_path / name)
    assert clip.seconds == pytest.approx(0.5, abs=0.001)
    assert loudest_hertz(clip.samples) == pytest.approx(440, abs=2)


def test_16_khz_mono_is_taken_as_it_is(tmp_path: Path) -> None:
    samples = tone(16000)
    soundfile.write(tmp_path / "same.wav", samples, 16000, subtype="FLOAT")
    assert np.array_equal(audio.read_clip(tmp_path / "same.wav").samples, samples)


@pytest.fixture
def mixed_folder(tmp_path: Path) -> Path:
    """Two good recordings among broken ones, and a file that is no recording."""
    soundfile.write(tmp_path / "good.wav", tone(16000), 16000)
    (tmp_path / "deeper").mkdir()
    soundfile.write(tmp_path / "deeper" / "also-good.FLAC", tone(8000), 8000, format="FLAC")
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    soundfile.write(tmp_path / "whole.flac", noise, 16000)
    whole = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "whole.flac").unlink()
    (tmp_path / "truncated.flac").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is no audio\n" * 50)
    soundfile.write(tmp_path / "short.wav", tone(16000, 0.01), 16000)
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0, np.float32), 16000)
    unfinite = tone(16000)
    unfinite[3] = np.nan
    soundfile.write(tmp_path / "nan.wav", unfinite, 16000, subtype="FLOAT")
    (tmp_path / "README.md").write_text("about")
    return tmp_path


def test_broken_files_are_skipped_by_name_and_reason_and_the_rest_is_read(mixed_folder: Path) -> None:
    clips = audio.read_folder(mixed_folder)
    assert [clip.name for clip in clips] == ["deeper/also-good.FLAC", "good.wav"]
    broken = {"truncated.flac", "empty.wav", "text.wav", "short.wav", "nothing.wav", "nan.wav"}
    assert set(clips.skipped) == broken
    assert clips.skipped["empty.wav"] == "the file is empty"
    assert "not finite" in clips.skipped["nan.wav"]
    assert all(str(mixed_folder) not in reason for reason in clips.skipped.values())


def test_a_folder_without_usable_audio_names_what_was_skipped(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match=r"all 1 files were skipped \(empty.wav: the file is empty\)"):
        audio.read_folder(tmp_path)


def test_a_folder_without_any_audio_and_a_missing_one_are_errors(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no audio file is there"):
        audio.read_folder(tmp_path)
    with pytest.raises(AudioError, match="no such audio folder"):
        audio.read_folder(tmp_path / "absent")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = []
    for dataset, count in (("digits", 3), ("orders", 6)):
        for number in range(count):
            path = f"{dataset}/{number}.wav"
            (tmp_path / dataset).mkdir(exist_ok=True)
            soundfile.write(tmp_path / path, tone(16000, 0.1 + 0.01 * number), 16000)
            rows.append({"dataset": dataset, "path": path, "label": str(number)})
    with (tmp_path / "manifest.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["dataset", "path", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / "manifest.csv"


def test_a_manifest_gives_one_dataset_under_its_own_names(manifest: Path) -> None:
    assert [clip.name for clip in audio.read_manifest(manifest, dataset="digits")] == [
        f"digits/{i}.wav" for i in range(3)
    ]
    assert len(audio.read_manifest(manifest)) == 9


def test_an_unknown_dataset_names_those_that_are_there(manifest: Path) -> None:
    with pytest.raises(AudioError) as caught:
        audio.read_manifest(manifest, dataset="order")
    assert "'order'" in caught.value.message
    assert caught.value.hint == "there are: digits, orders"


def test_a_seed_chooses_the_same_clips_every_time_and_another_seed_others(manifest: Path) -> None:
    def pick(seed: int) -> list[str]:
        return [clip.name for clip in audio.read_manifest(manifest, limit=4, seed=seed)]

    assert pick(1) == pick(1)
    assert len(pick(1)) == 4
    assert {tuple(pick(seed)) for seed in range(5)} != {tuple(pick(0))}


def test_a_broken_file_does_not_use_up_the_limit(manifest: Path) -> None:
    (manifest.parent / "digits/0.wav").write_bytes(b"")
    clips = audio.read_manifest(manifest, dataset="digits", limit=2)
    assert [clip.name for clip in clips] == ["digits/1.wav", "digits/2.wav"]
    assert clips.skipped == {"digits/0.wav": "the file is empty"}


def test_calibration_and_evaluation_never_share_a_clip(manifest: Path) -> None:
    calibration, evaluation = audio.split(audio.read_manifest(manifest, seed=0), calibration=4, evaluation=5)
    assert len(calibration) == 4
    assert len(evaluation) == 5
    assert {clip.name for clip in calibration}.isdisjoint(clip.name for clip in evaluation)


def test_more_calibration_leaves_the_evaluation_clips_as_they_were(manifest: Path) -> None:
    def scored(calibration: int) -> list[str]:
        clips = audio.read_manifest(manifest, seed=0, limit=4 + calibration)
        return [clip.name for clip in audio.split(clips, calibration=calibration, evaluation=4)[1]]

    assert scored(1) == scored(5)


def test_asking_for_more_clips_than_there_are_is_an_error(manifest: Path) -> None:
    with pytest.raises(AudioError, match="9 usable clips, but 5 for calibration and 6 for evaluation"):
        audio.split(audio.read_manifest(manifest), calibration=5, evaluation=6)


def test_synthetic_clips_are_the_same_for_the_same_seed_and_unlike_each_other() -> None:
    first, again = audio.synthetic(3, 1.5, seed=7), audio.synthetic(3, 1.5, seed=7)
    assert [clip.name for clip in first] == ["synthetic-000", "synthetic-001", "synthetic-002"]
    assert all(np.array_equal(a, b) for a, b in zip(first.arrays, again.arrays, strict=True))
    assert not np.array_equal(first.arrays[0], first.arrays[1])
    assert not np.array_equal(first.arrays[0], audio.synthetic(1, 1.5, seed=8).arrays[0])


def test_synthetic_clips_are_voiced_and_pause_as_speech_does() -> None:
    clip = audio.synthetic(1, 4.0, seed=0).arrays[0]
    frames = clip[: clip.size // 400 * 400].reshape(-1, 400)
    loudness = np.sqrt((frames**2).mean(1))
    assert (loudness < 0.1 * loudness.max()).mean() > 0.05, "no pauses"
    spectrum = np.abs(np.fft.rfft(clip)) ** 2
    hertz = np.fft.rfftfreq(clip.size, 1 / audio.SAMPLE_RATE)
    assert spectrum[hertz < 4000].sum() > 0.8 * spectrum.sum(), "as much at high frequencies as noise has"


@given(count=st.integers(1, 3), seconds=st.floats(0.1, 2.0), seed=st.integers(0, 10_000))
def test_synthetic_clips_are_always_finite_and_of_the_length_asked_for(count: int, seconds: float, seed: int) -> None:
    for clip in audio.synthetic(count, seconds, seed):
        assert clip.samples.shape == (round(seconds * audio.SAMPLE_RATE),)
        assert np.isfinite(clip.samples).all()
        assert np.abs(clip.samples).max() <= 1.0


def test_a_clip_listed_twice_is_one_clip(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, np.full(800, 0.1, "float32"), 16000)
    (tmp_path / "manifest.csv").write_text("dataset,path\nx,a.wav\nx,a.wav\nx,b.wav\n")
    assert [clip.name for clip in audio.read_manifest(tmp_path / "manifest.csv")] == ["a.wav", "b.wav"]


def test_a_clip_is_known_by_name_and_samples() -> None:
    one, other = audio.Clip("a", np.zeros(400, "float32")), audio.Clip("a", np.ones(400, "float32"))
    assert one.key == audio.Clip("a", np.zeros(400, "float32")).key
    assert len({one.key, other.key, audio.Clip("b", one.samples).key}) == 3
