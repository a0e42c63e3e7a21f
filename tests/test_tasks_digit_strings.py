"""Digit strings: the same for every model, of one speaker each, in a room; read by CTC, counted by edit distance."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile
import torch
from pydantic import ValidationError

from edgecompress import plugins
from edgecompress.audio import Clip
from edgecompress.errors import AudioError
from edgecompress.job import scores_checkpoints
from edgecompress.tasks import ctc, strings
from edgecompress.tasks.digit_strings import DigitStrings
from edgecompress.tasks.weighted_sum import Scale
from tests.models import tiny
from tests.test_tasks_probe import COLUMNS, tone, write_manifest
from tests.test_tasks_probe import accuracy as error_rate  # both are sums over items, one by the other

PITCHES = {"a": 250, "b": 700, "c": 1500, "d": 3000}
TASK = DigitStrings(dataset="tones", strings=40, steps=80, learning_rate=1e-2, folds=1)


def single_tones(folder: Path, *, takes: int = 8) -> list[dict[str, str]]:
    """Four "digits" by three speakers, an eighth of a second each and more, half of them in the split test."""
    generator = np.random.default_rng(3)
    rows = []
    for speaker, label, take in itertools.product(("ann", "ben", "cem"), PITCHES, range(takes)):
        name = f"{speaker}-{label}-{take}.wav"
        samples = tone(PITCHES[label] * generator.uniform(0.95, 1.05), generator.uniform(0.12, 0.25), generator)
        soundfile.write(folder / name, samples, 16000)
        split = "test" if take < takes // 2 else "train"
        rows.append(dict(zip(COLUMNS, ("tones", name, label, speaker, split), strict=True)))
    write_manifest(folder, rows)
    return rows


def test_the_task_is_found_by_its_kind_and_scores_checkpoints() -> None:
    assert plugins.find("tasks", "digit_strings") is DigitStrings
    assert scores_checkpoints(DigitStrings())


# --- reading strings -------------------------------------------------------------------------------------------------
def test_strings_that_can_be_heard_are_read(tmp_path: Path) -> None:
    single_tones(tmp_path)
    told: list[str] = []
    model = tiny("melhubert")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = replace(TASK, steps=140).score_model(model.train(), str(tmp_path), told.append)
    assert (result.metric, result.higher_is_better) == ("digit_error_rate", False)
    assert error_rate(result) < 0.3
    assert len(result.items) == 40
    assert all(item.denominator == len(item.detail["reference"].split()) for item in result.items)
    assert told[-1].startswith("speaker 1 of 1 held out: ann")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_strings_whose_labels_mean_nothing_are_not_read(tmp_path: Path) -> None:
    rows = single_tones(tmp_path)
    shuffled = np.random.default_rng(0).permutation([row["label"] for row in rows])
    write_manifest(tmp_path, [{**row, "label": label} for row, label in zip(rows, shuffled, strict=True)])
    assert error_rate(TASK.score_model(tiny("melhubert"), str(tmp_path))) > 0.6


def test_the_same_seed_gives_the_same_score(tmp_path: Path) -> None:
    single_tones(tmp_path)
    task = DigitStrings(dataset="tones", strings=4, steps=20, folds=1)
    first, again = (task.score_model(tiny("melhubert"), str(tmp_path)) for _ in range(2))
    assert first == again
    assert {item.detail["group"] for item in first.items} == {"ann"}


def test_fine_tuning_reads_better_and_leaves_the_scored_model_as_it_is(tmp_path: Path) -> None:
    single_tones(tmp_path)
    model = tiny("whisper")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen, tuned = (
        DigitStrings(dataset="tones", strings=8, steps=20, folds=1, finetune=steps, finetune_rate=1e-3).score_model(
            model, str(tmp_path)
        )
        for steps in (0, 30)
    )
    assert error_rate(tuned) < error_rate(frozen)
    assert (frozen.conditions["encoder"], tuned.conditions["encoder_trained_steps"]) == ("frozen", 30)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_log_mel_has_a_score_too(tmp_path: Path) -> None:
    single_tones(tmp_path)
    result = TASK.baseline(str(tmp_path))
    assert error_rate(result) < 0.3
    assert result.conditions["encoder"] == "none: log-mel, 40 bins"


# --- making strings --------------------------------------------------------------------------------------------------
def test_a_string_is_of_one_speaker_and_its_speaker_never_trains(tmp_path: Path) -> None:
    single_tones(tmp_path)
    work = TASK._prepare(str(tmp_path))
    for group in ("ann", "ben", "cem"):
        train, test = work.rows_of(group)
        assert {work.strings[row].group for row in test} == {group}
        assert {work.strings[row].group for row in train} == {"ann", "ben", "cem"} - {group}
        assert (len(train), len(test)) == (80, 40)
        assert all(work.strings[row].clip.name.startswith(f"{group}/") for row in test)
    assert {len(one.labels) for one in work.strings} <= {5, 6, 7, 8}
    assert len({len(one.labels) for one in work.strings}) > 1


def test_strings_to_score_are_made_of_the_test_split_alone(tmp_path: Path) -> None:
    rows = single_tones(tmp_path)
    write_manifest(tmp_path, [{**row, "label": row["label"] + "!" * (row["split"] == "test")} for row in rows])
    task = DigitStrings(dataset="tones", strings=6, train_split="train", test_split="test")
    work = task._prepare(str(tmp_path))
    train, test = work.rows_of("ben")
    assert (len(train), len(test)) == (12, 6)
    assert {label for row in test for label in work.strings[row].labels} <= {"a!", "b!", "c!", "d!"}
    assert {label for row in train for label in work.strings[row].labels} <= set("abcd")


def test_strings_are_the_same_for_every_model_and_others_for_another_seed(tmp_path: Path) -> None:
    single_tones(tmp_path)
    one, same, other = (
        DigitStrings(dataset="tones", strings=5, seed=seed)._prepare(str(tmp_path)).clips for seed in (0, 0, 1)
    )
    assert [clip.key for clip in one] == [clip.key for clip in same]
    assert {clip.key for clip in one}.isdisjoint(clip.key for clip in other)


def test_digits_stand_at_one_level_in_order_with_gaps_and_noise_under_all_of_it() -> None:
    quiet, loud = 0.001 * np.ones(3200, np.float32), 0.9 * np.ones(4800, np.float32)
    joined = strings.joined([quiet, loud], np.ones(strings.BANDS), np.random.default_rng(0))
    assert joined.dtype == np.float32
    gaps = joined.size - 8000
    assert 3 * 0.05 <= gaps / 16000 <= 3 * 0.4
    loudness = np.abs(joined.reshape(-1)[: joined.size // 80 * 80].reshape(-1, 80).mean(axis=1))
    spoken = loudness > 0.6 * strings.LEVEL
    assert np.count_nonzero(np.diff(spoken.astype(int)) == 1) == 2
    assert spoken.sum() * 80 == pytest.approx(8000, rel=0.1)
    assert (np.abs(joined[: round(0.05 * 16000)]) > 0).all()  # noise before the first digit


def test_a_room_has_the_colour_of_the_quiet_parts_of_a_recording() -> None:
    generator = np.random.default_rng(4)
    hiss = np.concatenate([tone(300, 1.0, generator), np.diff(generator.standard_normal(16001)) * 1e-3])
    silent = Clip("silent.wav", np.concatenate([np.zeros(16000), tone(300, 1.0, generator)]).astype(np.float32))
    spectrum = strings.quiet_rooms([Clip("hiss.wav", hiss.astype(np.float32)), silent])
    assert spectrum.shape == (1, strings.BANDS)  # the silent one has no room
    assert spectrum[0, 200:].mean() > 4 * spectrum[0, 5:40].mean()  # a differentiated noise rises with frequency
    noise = strings.coloured(spectrum[0], 30011, generator)
    assert noise.shape == (30011,)
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(1.0, abs=0.05)
    found = np.abs(np.fft.rfft(noise))
    assert found[11000:].mean() > 4 * found[200:2000].mean()
    with pytest.raises(AudioError, match="no recording has a quiet part"):
        strings.quiet_rooms([silent])


def test_rooms_of_a_dataset_are_used_when_it_is_named(tmp_path: Path) -> None:
    rows = single_tones(tmp_path)
    soundfile.write(tmp_path / "room.wav", 0.01 * np.random.default_rng(0).standard_normal(16000), 16000)
    rows.append({"dataset": "rooms", "path": "room.wav", "label": "", "speaker": "", "split": "train"})
    write_manifest(tmp_path, rows)
    real = DigitStrings(dataset="tones", strings=2, noise="rooms")._prepare(str(tmp_path))
    made_up = DigitStrings(dataset="tones", strings=2)._prepare(str(tmp_path))
    assert [one.labels for one in real.strings] == [one.labels for one in made_up.strings]
    assert real.clips[0].key != made_up.clips[0].key


# --- CTC ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(20))
def test_edits_are_counted_as_a_reference_counts_them(seed: int) -> None:
    generator = np.random.default_rng(seed)
    said, wanted = (generator.integers(1, 4, generator.integers(low, 9)).tolist() for low in (0, 1))
    counted = jiwer.process_words(" ".join(map(str, wanted)), " ".join(map(str, said)) or "nothing")
    reference = counted.substitutions + counted.deletions + counted.insertions if said else len(wanted)
    assert ctc.edits(said, wanted) == reference


def test_the_loss_is_minus_the_log_of_all_paths_that_say_the_string() -> None:
    said = torch.log_softmax(torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    total = 0.0
    for path in itertools.product(range(3), repeat=4):
        read = [now for before, now in zip((0, *path), path, strict=False) if now not in (0, before)]
        if read == [2, 1]:
            total += float(torch.stack([said[0, frame, label] for frame, label in enumerate(path)]).sum().exp())
    loss = ctc.ctc_loss(said, torch.tensor([4]), [[2, 1]])
    assert float(loss) == pytest.approx(-np.log(total) / 2, rel=1e-5)  # the mean over the string's two labels


def test_padding_is_not_part_of_a_clip() -> None:
    generator = torch.Generator().manual_seed(1)
    clips = [torch.randn(3, frames, 5, generator=generator) for frames in (20, 9)]
    head = ctc.Head(ctc.scale_of(clips), 4, reach=5).eval()
    batch, frames = ctc.padded(clips)
    together = ctc.ctc_loss(head(batch, frames), frames, [[1, 2], [3]])
    batch[:, 1, 9:] = 1e3
    assert torch.equal(ctc.ctc_loss(head(batch, frames), frames, [[1, 2], [3]]), together)
    alone = [ctc.ctc_loss(head(c[:, None]), f[None], [w])
             for c, f, w in zip(clips, frames, [[1, 2], [3]], strict=True)]  # fmt: skip
    assert together.item() == pytest.approx(sum(loss.item() for loss in alone) / 2, rel=1e-5)


def test_the_head_hears_standardised_states_mixed_by_its_shares() -> None:
    generator = torch.Generator().manual_seed(2)
    clips = [5 + 3 * torch.randn(2, 30, 4, generator=generator) for _ in range(3)]
    every = torch.cat(clips, dim=1).transpose(0, 1)
    scale, wanted = ctc.scale_of(clips), Scale.of(every)
    torch.testing.assert_close(scale.mean, wanted.mean)
    torch.testing.assert_close(scale.deviation, wanted.deviation)
    head = ctc.Head(scale, 3, reach=5)
    with torch.no_grad():
        head.mix.copy_(torch.tensor([1.0, -1.0]))
    mixed = torch.einsum("nsd,s->nd", wanted(every), torch.softmax(head.mix, 0))
    torch.testing.assert_close(head.mixed(every.transpose(0, 1)[:, None])[0], mixed, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fields", [{"strings": 0}, {"noise_db": 3}, {"manifest": "m.txt"}, {"finetune": -1}])
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DigitStrings(**fields)


def test_a_speaker_with_too_few_recordings_and_an_unknown_noise_are_refused(tmp_path: Path) -> None:
    single_tones(tmp_path, takes=2)
    for task, says in (
        (DigitStrings(dataset="tones", train_split="train", test_split="test"), "'ann' has 4 recordings"),
        (DigitStrings(dataset="tones", noise="rooms"), "lists nothing of dataset 'rooms'"),
    ):
        with pytest.raises(AudioError, match=says) as caught:
            task.score_model(tiny("hubert"), str(tmp_path))
        assert caught.value.hint


def test_states_are_heard_as_means_over_80_ms_and_a_rest_that_is_not_full_is_left_out() -> None:
    states = torch.arange(2 * 9 * 1).reshape(2, 9, 1).half()
    stride = ctc.stride_of([states, states], 18 * 0.02)
    assert stride == 4
    assert ctc.averaged(states, stride)[:, :, 0].tolist() == [[1.5, 5.5], [10.5, 14.5]]
    assert ctc.stride_of([states], 9 * 0.01) == 8
    assert ctc.stride_of([states], 9 * 0.2) == 1
    assert ctc.averaged(states, 1).tolist() == states.tolist()
