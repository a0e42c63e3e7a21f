"""Traps that code for these techniques is known to fall into, where no other test of a technique has them in passing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgecompress import PruneHeads, PruneWeights
from edgecompress.model import Model, load, save
from edgecompress.techniques import Context, compress
from edgecompress.training import Batch, Hook, Loss, loop, optimizer
from edgecompress.training.data import Corpus
from edgecompress.training.match_states import StatesObjective
from edgecompress.training.objectives import build
from edgecompress.training.settings import MatchLogits, MatchStates, Training
from tests.library import assert_same, says
from tests.models import FAMILIES, HEADS, LAYERS, example, noise_clip, tiny

CLIPS = [noise_clip(0.3 + seed / 20, seed) for seed in range(4)]


def short(steps: int = 3, **more: Any) -> Training:
    return Training(steps=steps, learning_rate=1e-3, batch_seconds=1.0, crop_seconds=0.5, save_every_s=1e-9, **more)


def context_for(model: Model, work: Path | None = None) -> Context:
    return Context(clips=CLIPS, seed=3, source=model.clone(), work=work)


def same_weights(one: Model, other: Model) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def stopping_at(call: int) -> Callable[[StatesObjective, Batch], Loss]:
    """A loss that is interrupted the ``call``-th time that it is asked for."""
    original, calls = StatesObjective.loss, []

    def loss(self: StatesObjective, batch: Batch) -> Loss:
        calls.append(batch)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(self, batch)

    return loss


# --- interruption ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("call", [2, 6])
@pytest.mark.parametrize(
    "technique",
    [
        PruneHeads(ratio=0.75, rounds=3, score="first_order", scope="global", recovery=short()),
        PruneWeights(rounds=(0.2, 0.5, 0.7), recovery=short()),
    ],
    ids=["heads", "weights"],
)
def test_pruning_that_was_stopped_within_a_rounds_training_saves_what_one_left_alone_saves(
    technique: Any, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the schedule that is left, and a list of heads that fits the weights beside it: the folder loads."""
    monkeypatch.setattr(loop, "SAVING_SHARE", 0)
    start = tiny("hubert", hidden_dropout=0.1)
    alone, resumed = start.clone(), start.clone()
    (wanted,) = compress(alone, [technique], context_for(start))
    with monkeypatch.context() as patch:
        patch.setattr(StatesObjective, "loss", stopping_at(call))
        with pytest.raises(KeyboardInterrupt):
            compress(start.clone(), [technique], context_for(start, tmp_path / "work"))
    (step,) = compress(resumed, [technique], context_for(start, tmp_path / "work"))
    save(resumed, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert step.rounds == wanted.rounds
    assert again.edits == alone.edits
    assert same_weights(alone, again)


@pytest.mark.parametrize("technique", [PruneHeads, PruneWeights])
def test_two_equal_steps_that_share_a_folder_are_two_steps(technique: Any, tmp_path: Path) -> None:
    """The second must not go on with the rounds that the first one kept."""
    start = tiny("hubert")
    steps = [technique(ratio=0.5, rounds=2, recovery=short())] * 2
    shared, apart = start.clone(), start.clone()
    compress(shared, steps, context_for(start, tmp_path))
    compress(apart, steps, context_for(start))
    assert shared.edits == apart.edits
    assert same_weights(shared, apart)


def test_rounds_that_were_kept_of_another_model_or_other_audio_are_not_gone_on_with(tmp_path: Path) -> None:
    technique = PruneHeads(ratio=0.5, rounds=2, recovery=short())
    other, audio = tiny("hubert", seed=5), Corpus.from_arrays(CLIPS[:2])
    compress(tiny("hubert"), [technique], context_for(tiny("hubert"), tmp_path))
    for model, corpus in ((other, None), (tiny("hubert"), audio)):
        kept, anew, told = model.clone(), model.clone(), list[str]()
        for copy, work in ((kept, tmp_path), (anew, None)):
            context = context_for(model, work)
            context.corpus, context.say = corpus, told.append
            compress(copy, [technique], context)
        assert same_weights(kept, anew)
        assert told.count("the rounds that were kept are of another run: from the beginning") == 1


def test_rounds_whose_record_is_damaged_are_done_again_and_that_is_said(tmp_path: Path) -> None:
    technique = PruneHeads(ratio=0.5, rounds=2, recovery=short())
    again, alone, told = tiny("hubert"), tiny("hubert"), list[str]()
    compress(alone, [technique], context_for(tiny("hubert"), tmp_path))
    (tmp_path / "kept" / "rounds.json").write_text("{")
    context = context_for(again, tmp_path)
    context.say = told.append
    compress(again, [technique], context)
    assert same_weights(again, alone)
    assert "the rounds that were kept cannot be read" in told[0]


def test_the_state_on_disk_is_text_and_tensors_alone(tmp_path: Path) -> None:
    """Nothing that runs code, or that a later version of a library refuses to read."""
    model = tiny("hubert")
    compress(model, [PruneWeights(ratio=0.5, rounds=2, recovery=short())], context_for(model, tmp_path))
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert {path.suffix for path in files} == {".json", ".safetensors"}


# --- modes -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_after_a_recovery_with_dropout_a_pruned_model_answers_without_it(family: str) -> None:
    model = tiny(family, hidden_dropout=0.5, attention_dropout=0.5, activation_dropout=0.5)
    techniques = [PruneHeads(ratio=0.5, recovery=short(1)), PruneWeights(ratio=0.5, recovery=short(1))]
    compress(model, techniques, context_for(model))
    inputs = example(model)
    assert_same(says(model, inputs), says(model, inputs), tolerance=0)
    assert not any(module.training for module in model.modules())


class Watch(Hook):
    """Notes after every step which modules of a teacher are in train mode, and which of its weights have moved."""

    def __init__(self, teacher: Model) -> None:
        self.teacher, self.first = teacher, {n: t.clone() for n, t in teacher.state_dict().items()}
        self.steps, self.faults = 0, list[str]()

    def after_step(self, step: int) -> None:
        self.steps += 1
        self.faults += [name for name, module in self.teacher.named_modules() if module.training]
        self.faults += [name for name, value in self.teacher.state_dict().items() if not value.equal(self.first[name])]


@pytest.mark.parametrize("settings", [MatchStates(), MatchLogits(), MatchLogits(masked=True)])
def test_a_teacher_that_is_the_student_at_the_start_neither_trains_nor_drops_out(settings: Any) -> None:
    model = tiny("hubert", head="ForCTC", hidden_dropout=0.5, mask_time_prob=0.1)
    corpus = Corpus.from_arrays(CLIPS)
    objective: Any = build(settings, model, source=model, corpus=corpus, seed=0)
    watch = Watch(objective.teacher.model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loop.train(objective, corpus, short(4), hooks=[watch])
    assert (watch.steps, watch.faults) == (4, [])
    assert any(not tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    moved = {id(one) for one in optimizer.parameters_of(optimizer.trained_modules(objective, [watch])).values()}
    assert moved.isdisjoint(id(one) for one in watch.teacher.parameters())


# --- counts ----------------------------------------------------------------------------------------------------------
def test_heads_go_one_by_one_from_every_layer_until_none_is_left(tmp_path: Path) -> None:
    """Whatever the number of layers; an attention without heads is its output bias, and the folder still loads."""
    model = tiny("hubert")
    (step,) = compress(model, [PruneHeads(ratio=1, rounds=HEADS)])
    assert [[len(heads) for heads in one["removed"].values()] for one in step.rounds] == [[1] * LAYERS] * HEADS
    assert [layer.heads for layer in model.layers] == [()] * LAYERS
    save(model, tmp_path / "m")
    inputs = example(model)
    assert_same(says(load(tmp_path / "m"), inputs), says(model, inputs), tolerance=0)


def test_a_context_that_is_used_again_measures_shares_of_the_new_model() -> None:
    from edgecompress import PruneFfn, cost

    context, target = Context(), {"parameters": 0.9}
    for model in (tiny("hubert"), tiny("hubert", num_hidden_layers=2)):
        whole = cost.parameters(model).total
        compress(model, [PruneFfn(target=target)], context)  # type: ignore[arg-type]
        assert cost.parameters(model).total == pytest.approx(0.9 * whole, rel=0.02)
