"""What hidden frames are asked for, and which frames are hidden."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgecompress.errors import TechniqueError
from edgecompress.training import Batch
from edgecompress.training.data import Corpus
from edgecompress.training.masked_prediction import MaskedObjective
from edgecompress.training.masking import spans
from edgecompress.training.settings import MaskedPrediction
from edgecompress.training.targets import LOG_MEL_HOP, Targets, frame_samples, hidden_frames, log_mel
from tests.models import FAMILIES, noise_clip, tiny

CLIPS = [noise_clip(seconds, seed) for seed, seconds in enumerate((0.6, 1.0, 1.4))]


def two_tones(change: int, samples: int = 32000) -> np.ndarray:
    """A low tone that becomes a high one at sample ``change``."""
    time = np.arange(samples) / 16000
    return np.where(np.arange(samples) < change, np.sin(880 * time), np.sin(16000 * time)).astype(np.float32) * 0.3


def log_mel_targets(clips: list[np.ndarray], clusters: int = 8, seed: int = 0) -> Targets:
    return Targets(Corpus.from_arrays(clips), log_mel, LOG_MEL_HOP, clusters, 10_000, seed)


# --- labels ----------------------------------------------------------------------------------------------------------
def test_the_same_seed_gives_the_same_labels_as_16_bit_numbers() -> None:
    first, again = log_mel_targets(CLIPS), log_mel_targets(CLIPS)
    for one, two in zip(first.labels, again.labels, strict=True):
        assert one.dtype == np.int16
        assert np.array_equal(one, two)
    assert len(np.unique(np.concatenate(first.labels))) == 8


def test_a_log_mel_frame_is_there_every_10_ms_where_its_window_fits() -> None:
    assert log_mel(np.zeros(400, np.float32)).shape == (1, 40)
    assert log_mel(CLIPS[1]).shape == (98, 40)
    assert log_mel(np.zeros(399, np.float32)).shape == (0, 40)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_change_in_the_frame_in_which_the_sound_does(family: str) -> None:
    """To one frame: the frame's own change is read off what the model's input says of the two tones."""
    change = 16000
    targets = log_mel_targets([two_tones(change)], clusters=2)
    model = tiny(family)
    step = frame_samples(model)
    frames = model.collate([two_tones(change)]).length
    labels = targets.of(Batch([two_tones(change)], [0], [0]), frames, step)[0]
    known = labels[labels >= 0].numpy()
    jumps = np.flatnonzero(np.diff(known)) + 1
    # The frame whose centre is nearest the change: windows of HuBERT and MelHuBERT are centred 200 samples in.
    offset = 0 if family == "whisper" else 200
    assert abs(float(jumps.mean()) - (change - offset) / step) <= 1.0
    assert 0 <= frames - len(known) <= 1


def test_a_crop_has_the_labels_of_its_place_in_the_clip() -> None:
    targets = log_mel_targets(CLIPS)
    whole = targets.of(Batch([CLIPS[2]], [2], [0]), 69, 320)[0]
    crop = targets.of(Batch([CLIPS[2][6400:12800]], [2], [6400]), 19, 320)[0]
    assert torch.equal(crop, whole[20:39])
    assert int(whole.min()) >= 0
    beyond = targets.of(Batch([CLIPS[2]], [2], [0]), 75, 320)[0]
    assert (beyond[70:] == -1).all()


def test_targets_of_a_hidden_state_are_those_of_the_model_when_the_training_began() -> None:
    model = tiny("hubert", hidden_dropout=0.5, attention_dropout=0.5)
    settings = MaskedPrediction(targets="hidden", layer=2, clusters=6)
    model.train()  # the labels are those of eval mode all the same
    objective = MaskedObjective(settings, model, corpus=Corpus.from_arrays(CLIPS), seed=0)
    before = [labels.copy() for labels in objective.targets.labels]
    assert [len(labels) for labels in before] == model.collate(CLIPS).frames.tolist()
    assert model.training
    states = model.eval().states(model.collate(CLIPS[1:2]))[2][0]
    again = Targets(Corpus.from_arrays(CLIPS), hidden_frames(model, 2), 320, 6, 100_000, 0).labels
    assert all(np.array_equal(*both) for both in zip(before, again, strict=True))
    assert np.allclose(hidden_frames(model, 2)(CLIPS[1]), states.detach().numpy(), atol=1e-5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert all(np.array_equal(*both) for both in zip(before, objective.targets.labels, strict=True))


def test_more_clusters_than_frames_are_refused() -> None:
    with pytest.raises(TechniqueError, match="400 clusters need at least as many frames"):
        log_mel_targets(CLIPS, clusters=400)


# --- masks -----------------------------------------------------------------------------------------------------------
def test_the_expected_number_of_spans_is_probability_times_frames_over_span(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    original = torch.randint
    monkeypatch.setattr(torch, "randint", lambda *given: drawn.append(given[2][0]) or original(*given))
    torch.manual_seed(0)
    spans(torch.full((2000,), 63), 63, 0.7, 5)  # 8.82 spans a clip
    assert set(drawn) == {8, 9}
    assert np.mean(drawn) == pytest.approx(0.7 * 63 / 5, abs=0.03)


def test_hidden_frames_lie_in_spans_within_the_clip_and_never_cover_all_of_a_short_one() -> None:
    torch.manual_seed(1)
    lengths = torch.tensor([1, 2, 4, 6, 20, 100])
    for _ in range(50):
        hidden = spans(lengths, 100, 0.7, 5)
        assert not (hidden & (torch.arange(100) >= lengths[:, None])).any()
        assert (hidden.sum(1)[:4] < lengths[:4]).all()
        assert hidden[0].sum() == 0
        runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], hidden[5].numpy(), [0]]).astype(int))))[::2]
        assert runs.min() >= 5


def test_about_half_of_the_frames_are_hidden_because_spans_overlap() -> None:
    torch.manual_seed(2)
    share = spans(torch.full((200,), 500), 500, 0.7, 5).float().mean()
    assert float(share) == pytest.approx(1 - np.exp(-0.7), abs=0.02)


# --- the objective ---------------------------------------------------------------------------------------------------
def test_only_hidden_frames_with_a_label_count_and_their_cross_entropy_is_the_loss() -> None:
    model = tiny("hubert", mask_time_prob=0.1)
    objective = MaskedObjective(MaskedPrediction(clusters=6), model, corpus=Corpus.from_arrays(CLIPS), seed=0)
    torch.manual_seed(7)
    loss = objective.loss(Batch(CLIPS, [0, 1, 2], [0, 0, 0]))
    torch.manual_seed(7)
    inputs = model.collate(CLIPS)
    hide = spans(inputs.frames, inputs.length, 0.7, 5)
    logits = objective.head(model.states(inputs, hide)[-1])
    labels = objective.targets.of(Batch(CLIPS, [0, 1, 2], [0, 0, 0]), inputs.length, 320)
    picked = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    assert loss.count == int(hide.sum())
    assert float(loss.value.detach()) == pytest.approx(float(-picked[hide].mean().detach()), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_steps_of_masked_prediction_teach_the_clusters(family: str) -> None:
    model = tiny(family, mask_time_prob=0.1)
    objective = MaskedObjective(MaskedPrediction(clusters=4), model, corpus=Corpus.from_arrays(CLIPS), seed=0)
    batch = Batch(CLIPS, [0, 1, 2], [0, 0, 0])
    optimizer = torch.optim.Adam([p for m in objective.modules().values() for p in m.parameters()], 3e-3)
    losses = []
    for step in range(12):
        torch.manual_seed(step)
        loss = objective.loss(batch)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        losses.append(float(loss.value.detach()))
    assert np.mean(losses[-4:]) < np.mean(losses[:2])
    first = objective.accuracy(objective.examples(CLIPS), seed=1)
    assert first == objective.accuracy(objective.examples(CLIPS), seed=1)
    assert 0 < first[0] <= 1


def test_a_pretraining_head_of_the_models_own_is_the_one_that_trains() -> None:
    model = tiny("melhubert", head="ForPreTraining")
    clusters = model.network.cluster_head.out_features
    corpus = Corpus.from_arrays(CLIPS)
    objective = MaskedObjective(MaskedPrediction(clusters=clusters), model, corpus=corpus, seed=0)
    trained = {id(p) for module in objective.modules().values() for p in module.parameters()}
    assert {id(p) for p in model.network.cluster_head.parameters()} <= trained
    with pytest.raises(TechniqueError, match=f"head has {clusters} clusters"):
        MaskedObjective(MaskedPrediction(clusters=clusters + 1), model, corpus=corpus, seed=0)
