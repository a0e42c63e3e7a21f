"""The probe task: labels that can be heard are told apart, labels that cannot are not, and nobody is in both halves."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from pydantic import ValidationError

from edgecompress import plugins
from edgecompress.audio import Clip, read_clip
from edgecompress.errors import AudioError
from edgecompress.job import scores_checkpoints
from edgecompress.tasks import encoding, labelled, weighted_sum
from edgecompress.tasks.labelled import Fold, Labelled, held_back
from edgecompress.tasks.probe import PENALTIES, Probe, _best_penalty
from tests.models import tiny

COLUMNS = ("dataset", "path", "label", "speaker", "split")
PITCHES = {"low": 200, "middle": 600, "high": 1500}


def tone(hertz: float, seconds: float, generator: np.random.Generator) -> np.ndarray:
    """A tone in noise, float32."""
    time = np.arange(round(seconds * 16000)) / 16000
    return (0.2 * np.sin(2 * np.pi * hertz * time) + 0.02 * generator.standard_normal(time.size)).astype(np.float32)


def write_manifest(folder: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = COLUMNS) -> None:
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)


def tones(folder: Path, *, takes: int = 4, speakers: tuple[str, ...] = ("ann", "ben", "cem")) -> list[dict[str, str]]:
    """Recordings of three pitches by each speaker, half of them in the split test, and their manifest."""
    generator = np.random.default_rng(5)
    rows = []
    for speaker in speakers:
        for label, hertz in PITCHES.items():
            for take in range(takes):
                name = f"{speaker}-{label}-{take}.wav"
                pitch = hertz * generator.uniform(0.95, 1.05)
                soundfile.write(folder / name, tone(pitch, generator.uniform(0.2, 0.5), generator), 16000)
                split = "test" if take < takes // 2 else "train"
                rows.append(dict(zip(COLUMNS, ("tones", name, label, speaker, split), strict=True)))
    write_manifest(folder, rows)
    return rows


def accuracy(result: Any) -> float:
    total: float = sum(item.numerator for item in result.items) / sum(item.denominator for item in result.items)
    return total


def test_the_probe_is_found_by_its_kind_and_scores_checkpoints() -> None:
    assert plugins.find("tasks", "probe") is Probe
    assert scores_checkpoints(Probe())


@pytest.mark.parametrize("family", ["hubert", "whisper"])
def test_what_can_be_heard_is_told_apart_from_an_encoder_and_from_log_mel(family: str, tmp_path: Path) -> None:
    tones(tmp_path)
    told: list[str] = []
    result = Probe(dataset="tones").score_model(tiny(family), str(tmp_path), told.append)
    assert (result.metric, result.higher_is_better) == ("accuracy", True)
    assert accuracy(result) > 0.9
    assert [item.denominator for item in result.items] == [1] * 36
    assert told[-1] == "probe 3 of 3: cem"
    assert accuracy(Probe(dataset="tones").baseline(str(tmp_path))) > 0.95


def test_labels_that_mean_nothing_are_told_apart_no_better_than_by_chance(tmp_path: Path) -> None:
    rows = tones(tmp_path, takes=12)
    shuffled = np.random.default_rng(0).permutation([row["label"] for row in rows])
    write_manifest(tmp_path, [{**row, "label": label} for row, label in zip(rows, shuffled, strict=True)])
    assert accuracy(Probe(dataset="tones").score_model(tiny("hubert"), str(tmp_path))) == pytest.approx(1 / 3, abs=0.15)
    assert accuracy(Probe(dataset="tones").baseline(str(tmp_path))) == pytest.approx(1 / 3, abs=0.15)


def test_a_speaker_is_never_in_both_halves(tmp_path: Path) -> None:
    """A label that only its speaker tells is not told of a speaker who was left out."""
    rows = tones(tmp_path, speakers=("ann", "ben", "cem", "dan"))
    labels = labelled.read_labels("manifest.csv", str(tmp_path), dataset="tones", label="label", group="speaker")
    folds = list(labelled.leave_one_group_out(labels.rows, None, None))
    assert [fold.name for fold in folds] == ["ann", "ben", "cem", "dan"]
    for fold in folds:
        train, test = ({labels.rows[row].group for row in part} for part in (fold.train, fold.test))
        assert (train, test) == ({"ann", "ben", "cem", "dan"} - {fold.name}, {fold.name})
    assert sorted(row for fold in folds for row in fold.test.tolist()) == list(range(len(rows)))
    result = Probe(dataset="tones", label="speaker").score_model(tiny("hubert"), str(tmp_path))
    assert accuracy(result) == 0
    assert {item.detail["group"] for item in result.items} == {"ann", "ben", "cem", "dan"}


def test_few_takes_of_each_class_train_and_the_other_split_is_scored(tmp_path: Path) -> None:
    tones(tmp_path)
    task = Probe(dataset="tones", protocol="few_takes", takes=2, draws=3, label="label")
    labels = task._labels(str(tmp_path))
    folds = task._folds(labels)
    for fold in folds:
        trained = [labels.rows[row] for row in fold.train]
        assert sorted(row.label for row in trained) == ["high", "high", "low", "low", "middle", "middle"]
        assert {row.split for row in trained} == {"train"}
        assert {labels.rows[row].split for row in fold.test} == {"test"}
    assert len({tuple(fold.train.tolist()) for fold in folds}) == 3
    result = task.score_model(tiny("hubert"), str(tmp_path))
    assert [item.denominator for item in result.items] == [3] * 18
    assert accuracy(result) > 0.8


def test_a_split_narrows_who_trains_and_who_is_scored(tmp_path: Path) -> None:
    tones(tmp_path)
    task = Probe(dataset="tones", train_split="train", test_split="test")
    labels = task._labels(str(tmp_path))
    for fold in task._folds(labels):
        assert {labels.rows[row].split for row in fold.train} == {"train"}
        assert {(labels.rows[row].split, labels.rows[row].group) for row in fold.test} == {("test", fold.name)}


def test_the_same_seed_gives_the_same_score_and_another_seed_other_takes(tmp_path: Path) -> None:
    tones(tmp_path)
    task = Probe(dataset="tones", protocol="few_takes", takes=1)
    first, again = (task.score_model(tiny("hubert"), str(tmp_path)) for _ in range(2))
    assert first == again
    other = Probe(dataset="tones", protocol="few_takes", takes=1, seed=7)
    drawn = [
        [tuple(fold.train.tolist()) for fold in each._folds(each._labels(str(tmp_path)))] for each in (task, other)
    ]
    assert drawn[0] != drawn[1]


# --- the frozen encoder ----------------------------------------------------------------------------------------------
def test_the_encoder_is_left_bit_for_bit_and_in_its_mode_and_is_heard_in_eval_mode(tmp_path: Path) -> None:
    tones(tmp_path)
    model = tiny("hubert", hidden_dropout=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quiet = Probe(dataset="tones").score_model(model, str(tmp_path))
    encoding._pooled.clear()
    model.train()
    busy = Probe(dataset="tones").score_model(model, str(tmp_path))
    assert model.training
    assert quiet == busy
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("family", ["hubert", "wavlm", "whisper"])
def test_a_clip_is_pooled_over_its_own_frames_whatever_it_is_batched_with(family: str, tmp_path: Path) -> None:
    tones(tmp_path)
    model = tiny(family)
    clips = [read_clip(path, path.name) for path in sorted(tmp_path.glob("*.wav"))[:6]]
    for pool in ("mean", "mean_std"):
        together = encoding.pooled(model, clips, pool)  # type: ignore[arg-type]
        for clip, pooled in zip(clips, together, strict=True):
            inputs = model.collate([clip.samples])
            with torch.no_grad():
                states = torch.stack(model.states(inputs), dim=1)[0, :, : int(inputs.frames[0])].numpy()
            wanted = states.mean(1) if pool == "mean" else np.concatenate([states.mean(1), states.std(1)], axis=-1)
            np.testing.assert_allclose(pooled, wanted, atol=2e-5)


def test_a_model_that_changed_is_encoded_anew_and_one_that_did_not_is_not(tmp_path: Path) -> None:
    tones(tmp_path)
    model, told = tiny("hubert"), []
    clips = [read_clip(path, path.name) for path in sorted(tmp_path.glob("*.wav"))[:3]]
    first = encoding.pooled(model, clips, "mean", told.append)
    assert told
    told.clear()
    np.testing.assert_array_equal(encoding.pooled(model.clone(), clips, "mean", told.append), first)
    assert told == []
    with torch.no_grad():
        model.layers[-1].up.weight[0, 0] += 1
    assert not np.array_equal(encoding.pooled(model, clips, "mean"), first)


# --- the classifier --------------------------------------------------------------------------------------------------
def test_on_one_layer_the_probe_is_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    generator = np.random.default_rng(1)
    labels = generator.integers(0, 3, 90)
    values = (generator.standard_normal((90, 8)) * 3 + labels[:, None] * generator.uniform(0, 1, 8)).astype(np.float32)
    probe = weighted_sum.fit(values[:, None], labels, 3, penalty=2.0)
    scaled = StandardScaler().fit_transform(values)
    wanted = LogisticRegression(C=0.5, tol=1e-8, max_iter=1000).fit(scaled, labels).predict_proba(scaled)
    found = torch.softmax(probe.logits(values[:, None]), dim=1).numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    assert probe.shares.tolist() == [1.0]


def test_the_probe_listens_to_the_layer_that_knows() -> None:
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 2, 200)
    values = generator.standard_normal((200, 4, 6)).astype(np.float32)
    values[:, 2] += 2.0 * labels[:, None]
    probe = weighted_sum.fit(values, labels, 2, penalty=1.0)
    assert int(probe.shares.argmax()) == 2
    assert float(probe.shares.sum()) == pytest.approx(1.0)
    values[:, 1, 3] = 7.0  # a dead unit: constant over all the training clips
    assert np.isfinite(weighted_sum.fit(values, labels, 2, 1.0).logits(values).numpy()).all()


# --- what cannot be scored -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fields", [{"protocol": "hold_out"}, {"takes": 0}, {"manifest": "labels.json"}, {"layers": 2}])
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Probe(**fields)


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (Probe(dataset="birds"), "lists nothing of dataset 'birds'"),
        (Probe(dataset="tones", label="word"), "has no column word"),
        (Probe(dataset="tones", group="city"), "has no column city"),
        (Probe(dataset="tones", group="dataset"), "needs two groups"),
        (Probe(dataset="tones", label="dataset"), "nothing to tell apart"),
        (Probe(dataset="tones", protocol="few_takes", takes=7), "has 6 recordings to train on, 7 are asked for"),
        (Probe(dataset="tones", test_split="dev"), "recordings to train on and 0 to score"),
        (Probe(dataset="tones", manifest="other.csv"), "no such manifest"),
    ],
)
def test_a_manifest_that_has_not_what_is_asked_for_is_refused(task: Probe, says: str, tmp_path: Path) -> None:
    tones(tmp_path)
    with pytest.raises(AudioError, match=says) as caught:
        task.score_model(tiny("hubert"), str(tmp_path))
    assert caught.value.hint


def test_missing_recordings_are_an_error_and_damaged_ones_are_skipped_and_named(tmp_path: Path) -> None:
    tones(tmp_path)
    (tmp_path / "ann-low-0.wav").write_bytes(b"RIFF")
    result = Probe(dataset="tones").score_model(tiny("hubert"), str(tmp_path))
    assert set(result.skipped) == {"ann-low-0.wav"}
    assert len(result.items) == 35
    (tmp_path / "ann-low-1.wav").unlink()
    labelled._read.cache_clear()
    with pytest.raises(AudioError, match=r"1 of 36 recordings are not there, the first is ann-low-1\.wav") as caught:
        Probe(dataset="tones").score_model(tiny("hubert"), str(tmp_path))
    assert "manifest's folder" in caught.value.hint


def test_a_manifest_is_found_by_a_variable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tones(tmp_path)
    monkeypatch.setenv("EDGECOMPRESS_SPEECH", str(tmp_path))
    task = Probe(dataset="tones", manifest="${EDGECOMPRESS_SPEECH}/manifest.csv")
    assert accuracy(task.baseline("/nowhere")) > 0.95
    assert task.truth_files == (str(tmp_path / "manifest.csv"),)
    assert Probe().truth_files == ("manifest.csv",)


def test_a_setting_is_chosen_on_training_recordings_alone_by_every_group_in_turn_or_thirds_of_each_label() -> None:
    def rows(groups: str, labels: str) -> list[Labelled]:
        clip = Clip("x", np.zeros(400, np.float32))
        return [Labelled(clip, label, group, "") for group, label in zip(groups, labels, strict=True)]

    def inner(rows: list[Labelled], fold: Fold, **parts: int) -> list[tuple[list[int], list[int]]]:
        return [(part.train.tolist(), part.test.tolist()) for part in held_back(rows, fold, **parts)]

    three = rows("aabbcc", "xyxyxy")
    fold = Fold("b", np.array([0, 1, 4, 5]), np.array([2, 3]))
    assert inner(three, fold) == [([4, 5], [0, 1]), ([0, 1], [4, 5])]
    many = Fold("c", np.array([0, 1, 2, 3]), np.array([4, 5]))
    assert inner(rows("abcdee", "xyxyxy"), many, parts=2) == [([1, 3], [0, 2]), ([0, 2], [1, 3])]
    one_group = rows(" " * 7, "xxxyyyx")
    fold = Fold("draw 0", np.arange(6), np.array([6]))
    assert inner(one_group, fold) == [([1, 2, 4, 5], [0, 3]), ([0, 2, 3, 5], [1, 4]), ([0, 1, 3, 4], [2, 5])]
    assert inner(one_group, Fold("draw 0", np.array([0, 3]), np.array([6]))) == []


def test_noise_in_many_units_is_penalised_more_than_a_clear_label() -> None:
    folds = [Fold("", np.arange(4), np.arange(4, 8)), Fold("", np.arange(4, 8), np.arange(4))]
    numbers = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    only_strong = _best_penalty(
        folds, lambda fold, penalty: numbers[fold.test] if penalty == 100 else 1 - numbers[fold.test], numbers
    )
    assert only_strong == 100
    assert _best_penalty(folds, lambda fold, penalty: numbers[fold.test], numbers) == max(PENALTIES)
    assert _best_penalty(folds, lambda fold, penalty: numbers[fold.test] ^ int(penalty > 1), numbers) == 1
    assert _best_penalty([], lambda fold, penalty: numbers[fold.test], numbers) == 10
