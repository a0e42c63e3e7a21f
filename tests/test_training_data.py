"""Training audio: what is read, what is skipped, and which clips a step sees."""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from edgecompress import audio
from edgecompress.errors import AudioError
from edgecompress.training import data
from edgecompress.training.batches import ahead, batches_of, left_out
from edgecompress.training.data import Corpus
from edgecompress.training.settings import TaskLoss, Training
from tests.models import noise_clip

SECONDS = (0.3, 0.5, 0.9, 1.4, 0.4, 2.2, 0.6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven recordings at three rates, with a manifest; an empty file, a cut one and one that is no audio."""
    rows = []
    for number, seconds in enumerate(SECONDS):
        rate = (16000, 8000, 22050)[number % 3]
        clip = noise_clip(seconds * rate / 16000, seed=number)
        name = f"{'digits' if number < 4 else 'orders'}/{number}.flac"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, clip, rate, subtype="PCM_24" if number == 6 else "PCM_16")
        rows.append((name.split("/")[0], name, str(number), "test" if number == 3 else "train"))
    (tmp_path / "orders/empty.wav").write_bytes(b"")
    (tmp_path / "orders/note.wav").write_text("no audio")
    whole = (tmp_path / "orders/5.flac").read_bytes()
    (tmp_path / "orders/cut.flac").write_bytes(whole[: len(whole) // 2])
    rows += [("orders", f"orders/{name}", "", "train") for name in ("empty.wav", "note.wav", "cut.flac", "gone.wav")]
    with (tmp_path / "manifest.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("dataset", "path", "label", "split"), *rows])
    return tmp_path


def settings(**more: object) -> Training:
    return Training(**{"steps": 10, "batch_seconds": 3.0, "crop_seconds": 1.0, **more})  # type: ignore[arg-type]


def numbered(lengths: list[int]) -> Corpus:
    """Clips whose samples count up, so that a cut shows where it was made."""
    return Corpus.from_arrays([np.arange(length, dtype=np.float32) for length in lengths])


# --- files ---
def test_a_folder_gives_16_khz_clips_and_says_what_it_skipped(folder: Path) -> None:
    corpus = Corpus.from_folder(folder)
    assert corpus.names == [f"digits/{n}.flac" for n in range(4)] + [f"orders/{n}.flac" for n in (4, 5, 6)]
    assert corpus.seconds == pytest.approx(SECONDS, abs=0.001)
    assert corpus.skipped["orders/empty.wav"] == "the file is empty"
    assert set(corpus.skipped) == {"orders/empty.wav", "orders/note.wav", "orders/cut.flac"}
    assert {clip.dtype for clip in corpus} == {np.dtype(np.float32)}


def test_16_bit_audio_keeps_its_very_samples_and_other_audio_is_rounded_96_db_below_its_peak(folder: Path) -> None:
    corpus = Corpus.from_folder(folder)
    for row, name in enumerate(corpus.names):
        samples = audio.read_clip(folder / name).samples
        difference = np.abs(corpus.clip(row) - samples).max()
        assert difference <= (0 if row in (0, 3) else np.abs(samples).max() / 60000), name
    quiet = data._Kept.of(1e-5 * noise_clip(0.1))
    assert np.abs(quiet.clip() - 1e-5 * noise_clip(0.1)).max() < 1e-9


def test_what_does_not_fit_into_memory_is_decoded_later_to_the_same_samples(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "AT_ONCE", 2)
    kept, lean = Corpus.from_folder(folder), Corpus.from_folder(folder, keep_bytes=20_000)
    kinds = [type(source).__name__ for source in lean._sources]
    assert kinds[:2] == ["_Kept", "_Kept"]
    assert set(kinds[2:]) == {"_OnDisk"}
    common = [name for name in lean.names if name in kept.names]
    assert len(common) == 7
    for name in common:
        assert np.array_equal(lean.clip(lean.names.index(name)), kept.clip(kept.names.index(name)))


def test_a_file_that_turns_out_damaged_is_left_out_of_its_batch_and_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "AT_ONCE", 1)
    corpus = Corpus.from_folder(folder, keep_bytes=1)
    assert "orders/cut.flac" in corpus.names
    made = [batch for step in range(4) for batch in batches_of(corpus, settings(), 0)(step)]
    seen = {corpus.names[row] for batch in made for row in batch.rows}
    assert "orders/cut.flac" not in seen
    assert len(seen) == 7
    assert all(len(batch.rows) == len(batch.clips) == len(batch.starts) == len(batch.labels) for batch in made)
    assert "orders/cut.flac" in corpus.skipped


def test_a_manifest_gives_labels_datasets_and_splits(folder: Path) -> None:
    corpus = Corpus.from_manifest(folder / "manifest.csv", where={"split": "train"})
    assert corpus.names == [f"digits/{n}.flac" for n in (0, 1, 2)] + [f"orders/{n}.flac" for n in (4, 5, 6)]
    assert [corpus.label(row) for row in range(6)] == ["0", "1", "2", "4", "5", "6"]
    assert corpus.labels[3]["dataset"] == "orders"
    assert "orders/gone.wav" in corpus.skipped
    orders = Corpus.from_manifest(folder / "manifest.csv", ["orders"])
    assert orders.names == corpus.only(["orders"]).names == ["orders/4.flac", "orders/5.flac", "orders/6.flac"]
    assert orders.without(["orders/5.flac"]).names == ["orders/4.flac", "orders/6.flac"]
    assert np.array_equal(corpus.only(["orders"]).clip(1), corpus.clip(4))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"datasets": ["songs"]}, "nothing of dataset 'songs'"),
        ({"where": {"speaker": "ann"}}, "no column 'speaker'"),
        ({"where": {"split": "dev"}}, "no row with"),
    ],
)
def test_a_manifest_without_what_is_asked_is_an_error(folder: Path, arguments: dict, said: str) -> None:
    with pytest.raises(AudioError, match=said):
        Corpus.from_manifest(folder / "manifest.csv", **arguments)


def test_no_usable_audio_is_an_error_that_names_reasons(tmp_path: Path) -> None:
    (tmp_path / "note.wav").write_text("no audio")
    with pytest.raises(AudioError, match=r"all 1 files were skipped \(note.wav"):
        Corpus.from_folder(tmp_path)
    with pytest.raises(AudioError, match="no clips"):
        Corpus.from_arrays([])
    with pytest.raises(AudioError, match="left of what was chosen"):
        numbered([800]).without(["clip-00000"])


def test_a_fingerprint_tells_audio_names_and_labels_apart(folder: Path) -> None:
    clips = [noise_clip(0.1, seed=seed) for seed in range(3)]
    first = Corpus.from_arrays(clips).fingerprint
    assert Corpus.from_arrays([clip.copy() for clip in clips]).fingerprint == first
    assert Corpus.from_arrays([clips[0], clips[1], -clips[2]]).fingerprint != first
    assert Corpus.from_arrays(clips, ["a", "b", "c"]).fingerprint != first
    manifest = Corpus.from_manifest(folder / "manifest.csv", where={"split": "train"})
    assert manifest.fingerprint != Corpus.from_folder(folder).without(["digits/3.flac"]).fingerprint


# --- batches ---
@given(
    lengths=st.lists(st.integers(400, 60_000), min_size=1, max_size=40),
    accumulate=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_a_batch_keeps_its_limit_and_an_epoch_shows_every_clip_once(
    lengths: list[int], accumulate: int, seed: int
) -> None:
    corpus = numbered(lengths)
    asked = settings(accumulate=accumulate)
    batches = batches_of(corpus, asked, seed)
    seen: list[int] = []
    step = 0
    while len(seen) < 2 * len(lengths):
        made = batches(step)
        assert len(made) == accumulate
        for batch in made:
            padded = max(clip.size for clip in batch.clips) * len(batch.clips)
            assert padded <= 48_000
            seen += batch.rows
            for clip, row, start in zip(batch.clips, batch.rows, batch.starts, strict=True):
                assert clip.size == min(lengths[row], 16_000)
                assert clip[0] == start
        step += 1
    for epoch in (0, 1):
        assert sorted(seen[epoch * len(lengths) : (epoch + 1) * len(lengths)]) == list(range(len(lengths)))


def contents(batches: list) -> list:
    return [(batch.rows, batch.starts) for batch in batches]


def test_batches_hang_on_seed_and_step_alone() -> None:
    corpus = numbered([1000 + 37 * number for number in range(60)])
    ask = settings(batch_seconds=1.0, crop_seconds=0.1, accumulate=2)
    one, other = batches_of(corpus, ask, 5), batches_of(corpus, ask, 5)
    in_order = [contents(one(step)) for step in range(30)]
    at_random = {step: contents(other(step)) for step in (29, 3, 17, 0, 8)}
    assert all(in_order[step] == at_random[step] for step in at_random)
    assert [contents(batches_of(corpus, ask, 6)(step)) for step in range(30)] != in_order


def test_epochs_differ_and_cuts_are_drawn_anew() -> None:
    corpus = numbered([48_000] * 6)
    batches = batches_of(corpus, settings(batch_seconds=6.0), 0)
    assert [sorted(batch.rows) for step in range(3) for batch in batches(step)] == [list(range(6))] * 3
    starts = [dict(zip(batch.rows, batch.starts, strict=True)) for step in range(3) for batch in batches(step)]
    assert starts[0] != starts[1] != starts[2]
    assert len({start for cut in starts for start in cut.values()}) == 18


def test_clips_of_like_length_come_together() -> None:
    generator = np.random.default_rng(0)
    lengths = [int(length) for length in generator.integers(1000, 100_000, 500)]
    batches = batches_of(numbered(lengths), settings(batch_seconds=30.0, crop_seconds=None), 0)
    made = [batch for step in range(40) for batch in batches(step)]
    padded = sum(max(clip.size for clip in batch.clips) * len(batch.clips) for batch in made)
    assert sum(clip.size for batch in made for clip in batch.clips) > 0.8 * padded


def test_a_clip_longer_than_a_batch_goes_alone_where_nothing_is_cut() -> None:
    batches = batches_of(numbered([900_000, 1000, 1000]), settings(crop_seconds=None), 0)
    assert sorted(len(batch.clips) for step in range(2) for batch in batches(step)) == [1, 2]


def test_rows_count_in_the_whole_corpus_whatever_datasets_are_taken(folder: Path) -> None:
    corpus = Corpus.from_manifest(folder / "manifest.csv")
    made = [batch for step in range(6) for batch in batches_of(corpus, settings(datasets=("orders",)), 0)(step)]
    assert {corpus.label(row, "dataset") for batch in made for row in batch.rows} == {"orders"}
    assert {label for batch in made for label in batch.labels} == {"4", "5", "6"}
    with pytest.raises(AudioError, match="no training audio is left"):
        batches_of(corpus, settings(datasets=("songs",)), 0)


def test_labelled_clips_are_left_out_rather_than_cut() -> None:
    corpus = numbered([10_000, 20_000, 12_000])
    ask = settings(objective=TaskLoss())
    assert left_out(corpus, ask) == 1
    assert {row for step in range(4) for batch in batches_of(corpus, ask, 0)(step) for row in batch.rows} == {0, 2}


# --- ahead ---
def test_batches_are_made_in_another_thread_ahead_of_their_step_and_in_order() -> None:
    corpus = numbered([1000 + number for number in range(30)])
    plain = batches_of(corpus, settings(batch_seconds=1.0), 0)
    asked: list[tuple[int, bool]] = []

    def told(step: int) -> list:
        asked.append((step, threading.current_thread() is threading.main_thread()))
        return plain(step)

    assert [contents(made) for made in ahead(told, 3, 9)] == [contents(plain(step)) for step in range(3, 9)]
    assert asked == [(step, False) for step in range(3, 9)]


def test_a_fault_while_reading_ahead_is_raised_in_its_step() -> None:
    def broken(step: int) -> list:
        if step == 2:
            raise AudioError("gone", hint="")
        return []

    def steps() -> Iterator[int]:
        for number, _ in enumerate(ahead(broken, 0, 5)):
            yield number

    seen: list[int] = []
    with pytest.raises(AudioError, match="gone"):
        seen.extend(steps())
    assert seen == [0, 1]


def test_with_a_context_every_clip_counts_as_that_long() -> None:
    corpus = Corpus.from_arrays([noise_clip(0.5, seed) for seed in range(12)])
    settings = Training(steps=1, batch_seconds=6.0, crop_seconds=3.0)
    assert [len(batch.rows) for batch in batches_of(corpus, settings, 0)(0)] == [12]
    assert [len(batch.rows) for batch in batches_of(corpus, settings, 0, context_seconds=2.0)(0)] == [3]
