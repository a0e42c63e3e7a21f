"""Features of whole clips are kept from step to step, and nothing changes by that but the time."""

from __future__ import annotations

import pytest
import torch

from edgecompress.training import Batch, loop, parts
from edgecompress.training.parts import Student
from edgecompress.training.settings import Training
from tests.models import FAMILIES, tiny
from tests.test_training_objectives import CLIPS, batch, corpus, states_objective


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_kept_features_is_bit_for_bit_the_batch_of_features_made_anew(family: str) -> None:
    """Crops, company and order change; the model collates all clips at once."""
    model = tiny(family)
    student = Student(model)
    crop = Batch([CLIPS[1], CLIPS[2][800:9600], CLIPS[0]], [1, 2, 0], [0, 800, 0])
    another = Batch([CLIPS[2][1600:10400]], [2], [1600])
    for asked in (batch(0, 2), batch(2), crop, another, batch(), crop):
        made, wanted = student.inputs(asked), model.collate(asked.clips, positions=model.context_positions)
        for name in ("values", "frames", "samples"):
            assert torch.equal(getattr(made, name), getattr(wanted, name)), name
        assert made.length == wanted.length
        assert made.values.dtype == wanted.values.dtype


def test_features_of_a_whole_clip_are_made_once_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = parts.collate
    monkeypatch.setattr(parts, "collate", lambda model, clips: made.append(len(clips)) or original(model, clips))
    model = tiny("melhubert")
    student = Student(model)
    crop = Batch([CLIPS[2][1600:9600]], [2], [1600])
    for asked in (batch(0), batch(0, 1), crop, crop):
        student.inputs(asked)
    assert len(made) == 4  # two clips, and a crop twice
    assert student.kept_bytes == sum(4 * model.features(clip).numel() for clip in CLIPS[:2])
    monkeypatch.setattr(parts, "KEPT_BYTES", 0)
    full = Student(model)
    for _ in range(2):
        full.inputs(batch(0))
    assert (len(made), full.kept_bytes) == (6, 0)


def test_a_trainings_steps_are_the_same_with_and_without_kept_features(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    settings = Training(steps=5, batch_seconds=2.0, crop_seconds=0.9)  # two clips come whole, one is cut
    for limit in (parts.KEPT_BYTES, 0):
        monkeypatch.setattr(parts, "KEPT_BYTES", limit)
        model = tiny("melhubert", hidden_dropout=0.2)
        loop.train(states_objective(model, tiny("melhubert", seed=3)), corpus(), settings)
        weights.append(model.state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
