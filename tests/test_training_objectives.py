"""What trainings go towards: which frames count, what the teacher is, which parameters move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from edgecompress.errors import TechniqueError
from edgecompress.model import Model, load, save
from edgecompress.model.states import states as real_states
from edgecompress.training import Batch
from edgecompress.training.data import Corpus
from edgecompress.training.match_states import StatesObjective, pairs_of
from edgecompress.training.objectives import build
from edgecompress.training.settings import MaskedPrediction, MatchLogits, MatchStates, TaskLoss
from edgecompress.training.teacher import Teacher, frozen_copy
from tests.models import FAMILIES, noise_clip, tiny

CLIPS = [noise_clip(seconds, seed) for seed, seconds in enumerate((0.5, 0.83, 1.0))]
WITH_HEAD = [(family, "ForAudioClassification" if family == "whisper" else "ForCTC") for family in FAMILIES]


def corpus(labels: Sequence[str] = ()) -> Corpus:
    made = Corpus.from_arrays(CLIPS)
    for row, label in enumerate(labels):
        made.labels[row] = {"label": label}
    return made


def batch(*rows: int, labels: Sequence[str] = ()) -> Batch:
    """These clips of the corpus, whole; all of them unless told."""
    rows = rows or tuple(range(len(CLIPS)))
    return Batch([CLIPS[row] for row in rows], rows, [0] * len(rows), list(labels))


def states_objective(model: Model, source: Model | None, **settings: object) -> StatesObjective:
    return StatesObjective(MatchStates(**settings), model, source=source, corpus=corpus(), seed=0)


SETTINGS = {
    "last": MatchStates(),
    "even": MatchStates(layers="even"),
    "second layer": MatchStates(layers=((2, 2),)),
    "projected": MatchStates(project=True),
    "masked": MaskedPrediction(clusters=5, fit_frames=200),
    "task": TaskLoss(),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_trains_is_what_gets_a_gradient(family: str, name: str) -> None:
    model = tiny(family, mask_time_prob=0.1)
    labels = ("one", "two", "one")
    objective = build(SETTINGS[name], model, source=tiny(family, seed=3), corpus=corpus(labels), seed=0)
    for module in objective.modules().values():
        module.train()
    objective.loss(batch(labels=labels)).value.backward()
    trained = {
        (part, inner): parameter
        for part, module in objective.modules().items()
        for inner, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    assert trained
    assert [where for where, parameter in trained.items() if parameter.grad is None] == []
    theirs = {id(parameter) for parameter in trained.values()}
    assert [n for n, p in model.network.named_parameters() if p.grad is not None and id(p) not in theirs] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_teacher_is_frozen_in_eval_mode_and_out_of_the_optimiser(family: str) -> None:
    source = tiny(family, hidden_dropout=0.5, attention_dropout=0.5, activation_dropout=0.5)
    model = source.clone()
    objective = states_objective(model, source)
    for module in objective.modules().values():
        module.train()
    teacher = objective.teacher.model
    first = objective.teacher.answers(batch(0), torch.device("cpu"))
    objective.teacher._kept.clear()
    again = objective.teacher.answers(batch(0), torch.device("cpu"))
    assert torch.equal(first[0][0], again[0][0])
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    trained = {id(p) for module in objective.modules().values() for p in module.parameters()}
    assert trained.isdisjoint(id(p) for p in [*teacher.parameters(), *source.parameters()])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_that_is_its_teacher_has_no_loss(family: str) -> None:
    model = tiny(family)
    loss = states_objective(model, model, layers="even").loss(batch(1))
    assert loss.parts["l1"] < 2e-3  # the teacher's answer is rounded to 16 bits
    assert loss.parts["cosine"] < 1e-5


def test_standardized_states_weigh_all_channels_alike() -> None:
    """A teacher whose last state has one channel a thousand times as loud teaches what one with even channels teaches."""
    model, source = tiny("hubert"), tiny("hubert", seed=3)
    loud = source.clone()
    norm = loud.layers[-1].module.final_layer_norm
    with torch.no_grad():
        norm.weight[0] *= 1000
        norm.bias[0] += 500
    student = model.clone()
    losses = []
    for teacher in (source, loud):
        objective = states_objective(student, teacher, standardize=True, project=True, layers="last")
        losses.append(float(objective.loss(batch()).value.detach()))
        mean, deviation = objective.scales[0]  # type: ignore[index]
        said = torch.cat([teacher.states(teacher.collate([clip]))[-1][0] for clip in CLIPS]).detach()
        torch.testing.assert_close(mean, said.mean(0), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(deviation, said.std(0, correction=0), rtol=1e-3, atol=1e-3)
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert float(states_objective(model, model, standardize=True).loss(batch(1)).value.detach()) < 5e-3


def test_frames_that_no_audio_fills_have_exactly_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("hubert")
    objective = states_objective(model, tiny("hubert", seed=3))
    inputs = objective.student.inputs(batch())
    said = [state.detach().requires_grad_() for state in model.states(inputs)]
    monkeypatch.setattr(Model, "states", lambda asked, *given: said if asked is model else real_states(asked, *given))
    loss = objective.loss(batch())
    loss.value.backward()
    gradient = said[-1].grad
    assert gradient is not None
    assert gradient[~inputs.mask].abs().max() == 0
    assert gradient[inputs.mask].abs().amin(-1).min() > 0
    assert loss.count == int(inputs.frames.sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_clips_in_one_batch_lose_what_they_lose_one_by_one(family: str) -> None:
    objective = states_objective(tiny(family), tiny(family, seed=3))
    together = objective.loss(batch())
    alone = [objective.loss(batch(row)) for row in range(len(CLIPS))]
    total = sum(float(loss.value.detach()) * loss.count for loss in alone)
    assert together.count == sum(loss.count for loss in alone)
    assert float(together.value.detach()) * together.count == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_teacher_says_of_a_clip_hangs_on_no_other_clip(family: str) -> None:
    teacher = frozen_copy(tiny(family))
    asked = [Teacher(teacher, corpus(), lambda m, i: [m.states(i)[-1]], limit_bytes=2**20) for _ in range(2)]
    cpu = torch.device("cpu")
    in_company = asked[0].answers(batch(), cpu)
    alone = [asked[1].answers(batch(row), cpu)[0] for row in (2, 0, 1)]
    for row, answer in zip((2, 0, 1), alone, strict=True):
        assert torch.equal(in_company[row][0], answer[0])


def test_a_clip_is_asked_once_while_there_is_room_and_a_crop_every_time() -> None:
    calls: list[int] = []

    def ask(model: Model, inputs: object) -> list[torch.Tensor]:
        calls.append(1)
        return [model.states(inputs)[-1]]

    cpu = torch.device("cpu")
    roomy, full = (Teacher(frozen_copy(tiny("hubert")), corpus(), ask, limit_bytes=limit) for limit in (2**20, 0))
    said = [roomy.answers(batch(0), cpu)[0][0] for _ in range(3)]
    assert len(calls) == 1
    assert roomy.kept_bytes == said[0].numel() * 2
    assert torch.equal(said[0], full.answers(batch(0), cpu)[0][0])
    full.answers(batch(0), cpu)
    assert (len(calls), full.kept_bytes) == (3, 0)
    crop = Batch([CLIPS[2][1600:9600]] * 2, [2, 2], [1600, 1600])
    roomy.answers(crop, cpu)
    roomy.answers(crop, cpu)
    assert len(calls) == 5


def test_whisper_is_taught_at_the_context_in_which_it_is_used() -> None:
    model = tiny("whisper")
    model.keep_context(60)
    filled, whole = (states_objective(model, tiny("whisper"), padding=padding) for padding in (False, True))
    assert filled.teacher.model.context_positions == 60
    inputs = filled.student.inputs(batch(0))
    assert torch.equal(inputs.values, model.features(CLIPS[0]))
    assert filled.loss(batch(0)).count == 25
    assert whole.loss(batch(0)).count == 60
    assert filled.loss(batch(0)).parts["l1"] < 2e-3


def test_padding_is_refused_for_families_that_are_never_used_on_it() -> None:
    with pytest.raises(TechniqueError, match="never used on padding"):
        states_objective(tiny("hubert"), tiny("hubert"), padding=True)


def test_a_loss_without_any_part_is_refused() -> None:
    with pytest.raises(ValidationError, match="nothing would be learned"):
        MatchStates(l1=0, cosine=0)


def test_the_layer_maps() -> None:
    teacher, student = tiny("hubert", num_hidden_layers=6), tiny("hubert", num_hidden_layers=6)
    student.keep_layers([0, 2, 5])
    assert pairs_of("last", student, teacher) == [(3, 6)]
    assert pairs_of("same", student, teacher) == [(0, 0), (1, 1), (2, 3), (3, 6)]
    assert pairs_of("even", student, teacher) == [(0, 0), (1, 2), (2, 4), (3, 6)]
    assert pairs_of([(-1, -2), (0, 0)], student, teacher) == [(3, 5), (0, 0)]
    with pytest.raises(TechniqueError, match="student has no state 4"):
        pairs_of([(4, 4)], student, teacher)
    with pytest.raises(TechniqueError, match="teacher has no layer 5"):
        pairs_of("same", student, tiny("hubert"))


@pytest.mark.parametrize("family", ["hubert", "melhubert"])
def test_a_whisper_teaches_a_student_of_another_family_and_width(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tiny("whisper", d_model=32), tmp_path / "teacher")
    model = tiny(family)
    monkeypatch.setenv("OUR_MODELS", str(tmp_path))
    objective = states_objective(model, None, layers="even", teacher="${OUR_MODELS}/teacher")
    loss = objective.loss(batch())
    loss.value.backward()
    assert loss.count == int(model.collate(CLIPS).frames.sum())  # Whisper's may be one more a clip
    assert {p.shape for p in objective.modules()["projections"].parameters()} == {(32, 64), (32,)}
    with pytest.raises(TechniqueError, match="only a projection"):
        states_objective(model, None, teacher=str(tmp_path / "teacher"), project=False)


def test_distillation_without_a_teacher_is_refused() -> None:
    with pytest.raises(TechniqueError, match="needs a teacher"):
        states_objective(tiny("hubert"), None)


@pytest.mark.parametrize("name", [*SETTINGS, "logits"])
@pytest.mark.parametrize("family", ["hubert", "melhubert", "whisper"])
def test_a_loss_in_bfloat16_is_near_that_in_float32(family: str, name: str) -> None:
    model, labels = tiny(family, mask_time_prob=0.1), ("one", "two", "one")
    if name == "logits":
        model = tiny(family, head=dict(WITH_HEAD)[family])
    source = tiny(family, seed=3, head=model.architecture.removeprefix(model.anatomy.prefix))
    objective = build({**SETTINGS, "logits": MatchLogits()}[name], model, source=source, corpus=corpus(labels), seed=0)
    values = []
    for half in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = objective.loss(batch(labels=labels))
        assert loss.value.dtype == torch.float32
        values.append(float(loss.value.detach()))
    assert values[1] == pytest.approx(values[0], rel=0.05)  # bfloat16 has 8 bits of precision


# --- logits ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("family", "head"), WITH_HEAD)
def test_the_divergence_of_a_student_that_is_its_teacher_is_zero(family: str, head: str) -> None:
    model = tiny(family, head=head)
    loss = build(MatchLogits(), model, source=model, corpus=corpus(), seed=0).loss(batch())
    assert abs(float(loss.value.detach())) < 1e-5


def test_logits_are_matched_as_the_formula_says() -> None:
    student, teacher = tiny("hubert", head="ForCTC"), tiny("hubert", head="ForCTC", seed=3)
    objective = build(MatchLogits(temperature=2.0), student, source=teacher, corpus=corpus(), seed=0)
    total = frames = 0.0
    for clip in CLIPS:
        mine, its = (torch.softmax(m.logits(m.collate([clip]))[0] / 2, -1).double() for m in (student, teacher))
        total += float((its * (its.log() - mine.log())).sum().detach())
        frames += len(mine)
    loss = objective.loss(batch())
    assert loss.count == frames
    assert float(loss.value.detach()) == pytest.approx(total / frames, rel=2e-3)


def test_alpha_weighs_divergence_against_cluster_labels() -> None:
    student, teacher = tiny("hubert", head="ForCTC", seed=3), tiny("hubert", head="ForCTC")
    values = {}
    for alpha in (0.0, 0.25, 1.0):
        settings = MatchLogits(alpha=alpha, clusters=20)
        values[alpha] = float(
            build(settings, student, source=teacher, corpus=corpus(), seed=0).loss(batch()).value.detach()
        )
    assert values[0.25] == pytest.approx(0.75 * values[0.0] + 0.25 * values[1.0], rel=1e-5)


def test_a_hard_loss_that_the_head_cannot_give_is_refused() -> None:
    """Rather than left out in silence, or found out by an index that is out of bounds."""
    for head, wanted in (("ForSequenceClassification", "answers for whole clips"), ("ForCTC", "loss 500 clusters")):
        model = tiny("hubert", head=head)
        with pytest.raises(TechniqueError, match=wanted) as caught:
            build(MatchLogits(alpha=0.5, clusters=500), model, source=model, corpus=corpus(), seed=0)
        assert "alpha = 1" in caught.value.hint


def test_masked_logits_count_hidden_frames_only_and_hide_the_same_from_both() -> None:
    model = tiny("hubert", head="ForCTC")
    objective = build(MatchLogits(masked=True), model, source=model, corpus=corpus(), seed=0)
    torch.manual_seed(5)
    loss = objective.loss(batch())
    assert abs(float(loss.value.detach())) < 1e-5  # another mask for the teacher would show
    assert 0 < loss.count < int(model.collate(CLIPS).frames.sum())


@pytest.mark.parametrize(("period", "dim", "span"), [(20, 80, 5), (10, 40, 10)])
def test_hidden_spans_last_100_ms_whatever_the_frame_period(period: int, dim: int, span: int) -> None:
    model = tiny("melhubert", head="ForPreTraining", frame_period_ms=period, feature_dim=dim)
    objective: Any = build(MatchLogits(masked=True), model, source=model, corpus=corpus(), seed=0)
    torch.manual_seed(0)
    hidden = objective._hide(model.collate([noise_clip(20, 1)]))[0].int()
    edges = torch.diff(hidden, prepend=hidden.new_zeros(1), append=hidden.new_zeros(1)).nonzero()[:, 0].view(-1, 2)
    assert int((edges[:, 1] - edges[:, 0]).min()) == span


def test_an_encoder_without_a_head_has_no_logits_to_match() -> None:
    with pytest.raises(TechniqueError, match="no logits to match"):
        build(MatchLogits(), tiny("hubert"), source=tiny("hubert"), corpus=corpus(), seed=0)


# --- tasks -----------------------------------------------------------------------------------------------------------
def test_ctc_is_the_librarys_own_loss_over_words_of_the_labels() -> None:
    model = tiny("hubert", head="ForCTC", ctc_loss_reduction="mean", ctc_zero_infinity=True)
    labels = ("three one", "two", "one one two")
    objective = build(TaskLoss(), model, source=None, corpus=corpus(labels), seed=0)
    wanted = [objective.vocabulary.encode(labels[2])]
    loss = objective.loss(batch(2, labels=labels[2:]))
    with model.evaluating():
        reference = model.network(model.features(CLIPS[2]), labels=torch.tensor(wanted)).loss
    assert float(loss.value.detach()) == pytest.approx(float(reference.detach()), rel=1e-4)
    assert objective.vocabulary.decode([0, 1, 1, 0, 1, 2]) == "one one three"


def test_clips_without_a_label_are_not_counted() -> None:
    model = tiny("wav2vec2", head="ForCTC")
    objective = build(TaskLoss(), model, source=None, corpus=corpus(("one", "", "two")), seed=0)
    loss, alone = objective.loss(batch(labels=("one", "", ""))), objective.loss(batch(0, labels=("one",)))
    assert loss.count == alone.count == 1
    assert float(loss.value.detach()) == pytest.approx(float(alone.value.detach()), rel=1e-4)
    nothing = objective.loss(batch(1, labels=("",)))
    assert (nothing.count, float(nothing.value.detach())) == (0, 0.0)
    with pytest.raises(TechniqueError, match="has a label in column 'text'"):
        build(TaskLoss(label="text"), model, source=None, corpus=corpus(("one", "", "two")), seed=0)


def test_classes_take_the_names_of_the_labels_and_the_model_keeps_them(tmp_path: Path) -> None:
    model = tiny("wavlm", head="ForSequenceClassification")
    labels = ("yes", "no", "yes")
    loss = build(TaskLoss(), model, source=None, corpus=corpus(labels), seed=0).loss(batch(labels=labels))
    logits = model.logits(model.collate(CLIPS))
    assert float(loss.value.detach()) == pytest.approx(
        float(nn.functional.cross_entropy(logits, torch.tensor([1, 0, 1]))), rel=1e-5
    )
    save(model, tmp_path / "model")
    assert load(tmp_path / "model").config.id2label[1] == "yes"
    with pytest.raises(TechniqueError, match="no class 'maybe'"):
        build(TaskLoss(), model, source=None, corpus=corpus(("yes", "maybe")), seed=0)


def test_whisper_learns_the_next_token_of_the_text_with_its_decoder_at_rest() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    model = tiny("whisper", head="ForConditionalGeneration")
    tokenizer = Tokenizer(models.WordLevel({"hello": 10, "there": 11, "you": 12}, unk_token="you"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model.origin.extra_files["tokenizer.json"] = tokenizer.to_str()
    model.origin.extra_files["generation_config.json"] = '{"no_timestamps_token_id": 4}'
    labels = ("hello there you", "you", "hello")
    objective = build(TaskLoss(), model, source=None, corpus=corpus(labels), seed=0)
    loss = objective.loss(batch(0, 1, labels=labels[:2]))
    given = torch.tensor([[3, 4, 10, 11, 12], [3, 4, 12, 2, 2]])
    wanted = torch.tensor([[-100, 10, 11, 12, 2], [-100, 12, 2, -100, -100]])
    features = torch.cat([model.features(clip) for clip in CLIPS[:2]])
    reference = model.network(features, decoder_input_ids=given, labels=wanted).loss
    assert float(loss.value.detach()) == pytest.approx(float(reference), rel=1e-5)
    assert loss.count == 6
    loss.value.backward()
    assert all(p.grad is None for p in model.base.decoder.parameters())
    assert all(p.requires_grad for p in model.base.decoder.parameters())
    assert np.isfinite(float(next(model.encoder_module.layers.parameters()).grad.abs().sum()))
