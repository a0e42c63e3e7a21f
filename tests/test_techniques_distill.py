"""Students: fewer and thinner layers, from the teacher's weights or new ones, trained or only made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from edgecompress.errors import TechniqueError
from edgecompress.job import describe
from edgecompress.model import Model, load, save
from edgecompress.techniques import Context, compress
from edgecompress.techniques.distill import Distill
from edgecompress.techniques.finetune import Finetune
from edgecompress.techniques.pretrain import Pretrain
from edgecompress.techniques.thinner import best, fill_with_slices
from edgecompress.training import Batch, Loss
from edgecompress.training.data import Corpus
from edgecompress.training.match_states import StatesObjective
from edgecompress.training.settings import MaskedPrediction, MatchStates, TaskLoss, Training
from tests.models import FAMILIES, HIDDEN, LAYERS, example, noise_clip, tiny

CLIPS = [noise_clip(0.4 + 0.1 * seed, seed) for seed in range(4)]
STEPS = {"steps": 3, "batch_seconds": 2.0, "crop_seconds": 2.0, "learning_rate": 1e-3, "device": "cpu"}


def context(model: Model, **given: object) -> Context:
    return Context(corpus=Corpus.from_arrays(CLIPS), source=model.clone(), **given)


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.network.named_parameters()}


def distill(model: Model, **settings: object) -> Context:
    given = context(model)
    compress(model, [TypeAdapter(Distill).validate_python(settings)], given)
    return given


# --- structure -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_student_has_the_first_layers_and_the_largest_parts(family: str) -> None:
    model = tiny(family)
    before = model.clone()
    notes = distill(model, layers=2, heads=2, units=40).notes
    assert [layer.number for layer in model.layers] == [0, 1]
    assert [(len(layer.heads), len(layer.units)) for layer in model.layers] == [(2, 40)] * 2
    kept = model.layers[1].units
    sizes = before.layers[1].up.weight.abs().sum(1) + before.layers[1].down.weight.abs().sum(0)
    assert sorted(sizes.topk(40).indices.tolist()) == list(kept)
    assert torch.equal(model.layers[1].up.weight, before.layers[1].up.weight[list(kept)])
    assert notes == ["the student has its first weights (teacher): it was not trained"]


def test_chosen_layers_are_kept_by_their_original_numbers() -> None:
    model = tiny("hubert")
    distill(model, layers=(0, 2))
    assert [layer.number for layer in model.layers] == [0, 2]
    with pytest.raises(TechniqueError, match="there is no layer 1"):
        distill(model, layers=[1])
    with pytest.raises(TechniqueError, match="3 layers of 2 cannot be kept"):
        distill(model, layers=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_slice_that_takes_everything_is_the_teacher(family: str) -> None:
    old, new = tiny(family, seed=1), tiny(family, seed=2)
    fill_with_slices(new, old)
    inputs = example(old)
    assert torch.equal(new.encode(inputs), old.encode(inputs))


@pytest.mark.parametrize("init", ["teacher", "random"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_thinner_student_is_a_model_of_its_family_that_saves_and_loads(
    family: str, init: str, tmp_path: Path
) -> None:
    model = tiny(family)
    distill(model, width=32, layers=2, init=init)
    assert (model.family, model.hidden_size, len(model.layers)) == (family, 32, 2)
    assert [(len(layer.heads), len(layer.units)) for layer in model.layers] == [(2, 48)] * 2
    said = model.encode(example(model))
    assert said.shape[-1] == 32
    assert model.origin.source.name == f"tiny-{family}"
    save(model, tmp_path / "student")
    assert torch.equal(load(tmp_path / "student").encode(example(model)), said)


def test_a_thinner_student_hears_what_its_teacher_hears_in_the_channels_it_keeps() -> None:
    """Zero all but some channels, heads and units of the teacher: the slice with exactly those says the same."""
    model = tiny("whisper")
    keep = torch.arange(0, HIDDEN, 2)
    with torch.no_grad():
        gone = torch.ones(HIDDEN, dtype=torch.bool)
        gone[keep] = False
        for layer in model.layers:
            for name in ("q_proj", "k_proj", "v_proj", "up"):
                layer.matrix(name).weight[:, gone] = 0
            for name in ("out_proj", "down"):
                layer.matrix(name).weight[gone] = 0
    wide = weights(model)
    distill(model, width=32, heads=4, units=96)
    assert torch.equal(model.layers[0].up.weight, wide["encoder.layers.0.fc1.weight"][:, keep])
    assert torch.equal(model.encoder_module.conv2.weight, wide["encoder.conv2.weight"][keep][:, keep])


def test_the_largest_of_each_group_are_kept() -> None:
    sizes = torch.tensor([[1.0, 4.0, 3.0], [9.0, 7.0, 8.0]])
    assert best(sizes, 2).tolist() == [1, 2, 3, 5]
    with pytest.raises(TechniqueError, match="4 of 3 cannot be kept"):
        best(sizes, 4)


def test_what_a_thinner_student_cannot_be_is_refused() -> None:
    for model, settings, fault in (
        (tiny("whisper", head="ForConditionalGeneration"), {"width": 32}, "decoder hears frames 64 wide"),
        (tiny("hubert"), {"width": 40, "heads": 3}, "does not divide into heads"),
        (tiny("hubert"), {"width": 30, "heads": 3}, "4 groups of the position convolution"),
        (tiny("hubert"), {"width": 32, "units": 200}, "200 of 96 cannot be kept"),
        (tiny("hubert"), {"width": 128, "init": "random"}, "the model grew"),
    ):
        with pytest.raises(TechniqueError, match=fault):
            distill(model, **settings)
    pruned = tiny("hubert")
    pruned.keep_heads(0, [0, 1])
    with pytest.raises(TechniqueError, match="keep_heads"):
        distill(pruned, width=32)


@pytest.mark.parametrize("family", FAMILIES)
def test_new_weights_hang_on_the_seed_alone(family: str) -> None:
    students = [tiny(family, seed=seed) for seed in (1, 2)]
    for student in students:
        distill(student, layers=2, heads=2, init="random")
    first, second = (weights(student) for student in students)
    encoder = [name for name in first if "decoder" not in name]
    assert all(torch.equal(first[name], second[name]) for name in encoder)
    assert [layer.number for layer in students[0].layers] == [0, 1]


def test_whispers_decoder_keeps_its_weights_whatever_the_encoder_begins_with() -> None:
    model = tiny("whisper", head="ForConditionalGeneration")
    before = weights(model)
    distill(model, layers=2, init="random", training=STEPS)
    after = weights(model)
    assert all(torch.equal(after[name], before[name]) for name in after if "decoder" in name)
    assert not torch.equal(after["model.encoder.layers.0.fc1.weight"], before["model.encoder.layers.0.fc1.weight"])


# --- training --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_moves_towards_the_source_and_the_source_does_not_move(family: str) -> None:
    model = tiny(family)
    given = context(model)
    before = weights(given.source)
    step = Distill(layers=2, training=Training(**{**STEPS, "steps": 12}, objective=MatchStates()))
    compress(model, [step], given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(given.source).items())
    first, last = given.trainings[0]["first_loss"], given.trainings[0]["last_loss"]
    assert last < first
    assert not any(module.training for module in model.modules())
    assert all(p.requires_grad for name, p in model.network.named_parameters() if "embed_positions" not in name)


def test_a_thinner_student_learns_from_a_teacher_of_another_family_in_a_folder(tmp_path: Path) -> None:
    save(tiny("whisper"), tmp_path / "teacher")
    model = tiny("hubert")
    objective = {"kind": "states", "teacher": str(tmp_path / "teacher")}
    given = distill(model, width=32, training={**STEPS, "objective": objective})
    assert given.trainings[0]["steps"] == 3
    assert (model.hidden_size, model.family) == (32, "hubert")


def test_a_distillation_that_was_stopped_and_resumed_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Distill(layers=2, training=Training(**{**STEPS, "steps": 6, "save_every_s": 1e-9}))

    def run(name: str, say: Callable[[str], None] = print) -> dict[str, torch.Tensor]:
        model = tiny("hubert", hidden_dropout=0.2)
        compress(model, [step], context(model, work=tmp_path / name, say=say))
        return weights(model)

    alone = run("alone")
    calls: list[object] = []
    with monkeypatch.context() as stopping:
        original = StatesObjective.loss

        def loss(self: StatesObjective, batch: Batch) -> Loss:
            calls.append(batch)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return original(self, batch)

        stopping.setattr(StatesObjective, "loss", loss)
        with pytest.raises(KeyboardInterrupt):
            run("stopped")
    said: list[str] = []
    resumed = run("stopped", said.append)
    assert any("going on at step" in line for line in said)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in alone.items())


def test_a_table_without_an_objective_gets_the_one_of_its_technique() -> None:
    made = TypeAdapter(Distill).validate_python({"training": {"steps": 5}})
    assert made.training.objective == MatchStates(layers="even")
    assert TypeAdapter(Pretrain).validate_python({"training": {"steps": 5}}).training.objective == MaskedPrediction()
    assert TypeAdapter(Finetune).validate_python({"training": {"steps": 5}}).training.objective == TaskLoss()
    table = {key: value for key, value in describe(made).items() if key != "kind"}
    assert TypeAdapter(Distill).validate_python(table) == made
    with pytest.raises(ValidationError, match='pretrain has the objective "masked"'):
        Pretrain(training=Training(steps=1))


# --- pretraining and fine-tuning -------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_pretraining_says_how_many_hidden_frames_of_held_out_clips_it_names_right(family: str) -> None:
    model = tiny(family)
    given = context(model)
    before = weights(model)
    objective = MaskedPrediction(clusters=4, targets="hidden" if family == "wavlm" else "log_mel")
    compress(model, [Pretrain(training=Training(**STEPS, objective=objective), held_out=0.25)], given)
    assert "of 1 held-out clips right, out of 4 clusters (the commonest alone:" in given.notes[-1]
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    assert len(model.layers) == LAYERS


def test_a_new_melhubert_learns_what_its_frames_are_normalised_by(tmp_path: Path) -> None:
    model = tiny("melhubert")
    given = context(model)
    compress(model, [Pretrain(training=Training(**STEPS, objective=MaskedPrediction(clusters=4)))], given)
    frames = torch.cat([model.features(clip)[0] for clip in CLIPS])
    assert frames.mean().abs() < 0.05
    assert frames.std() == pytest.approx(1.0, abs=0.1)
    save(model, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model").features(CLIPS[0]), model.features(CLIPS[0]))


def test_held_out_clips_are_not_trained_on() -> None:
    model = tiny("hubert")
    step = Pretrain(training=Training(**STEPS, objective=MaskedPrediction(clusters=4)), held_out=0.5)
    corpus, held = step._split(context(model))
    assert (len(corpus), len(held)) == (2, 2)
    kept = {corpus.clip(row).size for row in range(2)}
    assert kept.isdisjoint(clip.size for clip in held)


@pytest.mark.parametrize("head", ["ForCTC", "ForSequenceClassification", "Model"])
def test_finetuning_lowers_the_loss_of_the_labels(head: str) -> None:
    model = tiny("hubert", head=head)
    given = context(model)
    for row, label in enumerate(("one", "two", "one", "two")):
        given.corpus.labels[row] = {"label": label}
    settings = {**STEPS, "steps": 15, "learning_rate": 3e-3}
    compress(model, [Finetune(training=Training(**settings, objective=TaskLoss()))], given)
    assert given.trainings[0]["last_loss"] < given.trainings[0]["first_loss"]


def test_finetuning_without_labels_is_refused() -> None:
    model = tiny("hubert", head="ForCTC")
    with pytest.raises(TechniqueError, match="none of the training audio has a label"):
        compress(model, [Finetune(training=Training(**STEPS, objective=TaskLoss()))], context(model))
