"""Techniques: their fields, what they do to a model, and the driver that checks their promises."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ValidationError

import edgecompress
from edgecompress import DropLayers, Factorize, PruneFfn, PruneHeads, PruneWeights, TrimContext, cost, plugins
from edgecompress.errors import ModelError, TechniqueError
from edgecompress.job import describe
from edgecompress.model import Model, load, save
from edgecompress.techniques import Context, compress, needs_clips
from tests.library import assert_same, says
from tests.models import FAMILIES, LAYERS, example, noise_clip, prunable, tiny

CLIPS = [noise_clip(0.4, seed) for seed in range(3)]
BUILT_IN = {
    "prune_weights": PruneWeights,
    "prune_heads": PruneHeads,
    "prune_ffn": PruneFfn,
    "factorize": Factorize,
    "drop_layers": DropLayers,
    "trim_context": TrimContext,
}


# --- the contract ----------------------------------------------------------------------------------------------------
def test_every_technique_is_found_by_its_kind_and_says_what_it_does() -> None:
    assert set(BUILT_IN) <= set(plugins.names("techniques"))
    for kind, technique in BUILT_IN.items():
        assert plugins.find("techniques", kind) is technique
        assert technique.kind == kind
        assert "technique" not in (technique.__doc__ or "").splitlines()[0]
        assert len((technique.__doc__ or "").splitlines()[0]) > 20


@pytest.mark.parametrize(
    ("technique", "fields"),
    [
        (PruneWeights, {"ratio": 1.5}),
        (PruneWeights, {"ratio": 0}),
        (PruneWeights, {}),
        (PruneHeads, {"ratio": 1.01}),
        (PruneHeads, {"ratio": -0.1}),
        (PruneHeads, {"ratio": 0.5, "score": "l7"}),
        (PruneHeads, {"ratio": 0.5, "scope": "galaxy"}),
        (PruneHeads, {"ration": 0.5}),
        (PruneFfn, {"ratio": "most"}),
        (PruneFfn, {"ratio": 0.5, "heads": 3}),
        (Factorize, {"rank": 0}),
        (Factorize, {"rank": 2.5}),
        (Factorize, {"rank": 4, "by": "magic"}),
        (Factorize, {"rank": 4, "matrices": "q_proj"}),
        (DropLayers, {"layers": ()}),
        (DropLayers, {"layers": ("first",)}),
        (TrimContext, {"seconds": 0}),
        (TrimContext, {"seconds": 31}),
    ],
)
def test_fields_that_make_no_sense_are_refused(technique: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        technique(**fields)


def test_a_technique_describes_itself_as_its_recipe_table() -> None:
    assert describe(Factorize(rank=8, by="activations")) == {
        "kind": "factorize",
        "ratio": None,
        "target": None,
        "rounds": 1,
        "recovery": None,
        "rank": 8,
        "energy": None,
        "by": "activations",
        "matrices": "ffn",
    }


def test_it_is_known_beforehand_whether_calibration_audio_is_needed() -> None:
    without = [PruneWeights(ratio=0.1), PruneHeads(ratio=0.1), PruneFfn(ratio=0.1), Factorize(rank=1)]
    assert not needs_clips([*without, DropLayers(layers=(0,)), TrimContext(seconds=1)])
    for technique in (
        PruneHeads(ratio=0.1, score="first_order"),
        PruneHeads(ratio=0.1, compensate=True),
        PruneFfn(ratio=0.1, score="activation", compensate=False),
        Factorize(rank=1, by="activations"),
    ):
        assert needs_clips([*without, technique])
        with pytest.raises(TechniqueError, match="needs calibration audio") as caught:
            compress(tiny("hubert"), [technique])
        assert caught.value.hint


# --- the driver ------------------------------------------------------------------------------------------------------
def test_each_step_says_what_it_was_and_what_the_model_cost_before_and_after() -> None:
    model = tiny("hubert")
    dense = cost.measure(model)
    steps = edgecompress.compress(model, [PruneHeads(ratio=0.5), PruneFfn(ratio=0.25), PruneWeights(ratio=0.5)])
    assert [step.kind for step in steps] == ["prune_heads", "prune_ffn", "prune_weights"]
    assert steps[0].parameters == {
        **{"ratio": 0.5, "target": None, "rounds": 1, "recovery": None},
        **{"score": "l1", "scope": "layer", "compensate": None},
    }
    assert steps[0].before == dense
    assert [step.before for step in steps[1:]] == [step.after for step in steps[:-1]]
    assert steps[-1].after == cost.measure(model)
    per_head = 3 * (16 * 64 + 16) + 64 * 16
    assert dense.parameters.total - steps[0].after.parameters.total == LAYERS * 2 * per_head
    assert steps[0].after.parameters.total - steps[1].after.parameters.total == LAYERS * 24 * (2 * 64 + 1)
    assert steps[2].after.macs == steps[2].before.macs
    assert steps[2].notes == [
        f"{round(0.5 * prunable_count(model)):,} of {prunable_count(model):,} prunable weights are zero; dense runtimes do not use zeros"
    ]
    assert steps[0].notes == []


def prunable_count(model: Model) -> int:
    return sum(tensor.numel() for tensor in prunable(model))


def test_progress_is_told_step_by_step() -> None:
    told: list[str] = []
    compress(tiny("hubert"), [PruneHeads(ratio=0.5), DropLayers(layers=(1,))], progress=told.append)
    assert told == ["step 1 of 2: prune_heads", "step 2 of 2: drop_layers"]


@dataclass(frozen=True)
class Grow:
    """Does what no technique may: makes a matrix bigger."""

    kind: ClassVar[str] = "grow"
    rank: int = 60

    def apply(self, model: Model, context: Context) -> None:
        model.factor(0, "up", self.rank)


@dataclass(frozen=True)
class Break:
    """Does what no technique may: leaves a number that is none."""

    kind: ClassVar[str] = "break"
    number: float

    def apply(self, model: Model, context: Context) -> None:
        with torch.no_grad():
            next(model.layers[1].matrix("up").parameters())[3] = self.number


def test_a_technique_that_grows_the_model_is_refused() -> None:
    with pytest.raises(TechniqueError, match=r"step 2 \(grow rank=60\): the model grew from .* to ") as caught:
        compress(tiny("hubert"), [PruneHeads(ratio=0.25), Grow()])
    assert caught.value.hint


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_technique_that_leaves_numbers_that_are_none_is_refused(number: float) -> None:
    with pytest.raises(TechniqueError, match=r"step 1 \(break.*intermediate_dense.* not finite"):
        compress(tiny("hubert"), [Break(number)])


def test_an_error_says_which_step_with_which_parameters_and_keeps_its_cause() -> None:
    with pytest.raises(TechniqueError, match=r"step 2 \(drop_layers .*layers=\[7\].*\): there is no layer 7") as caught:
        compress(tiny("hubert"), [PruneHeads(ratio=0.5), DropLayers(layers=(7,))])
    assert isinstance(caught.value.__cause__, TechniqueError)
    assert caught.value.hint == "layers left: 0, 1, 2"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_compressed_model_is_in_eval_mode_and_answers_twice_the_same(family: str) -> None:
    """Features of pruned models drawn with dropout on are a known way to get wrong scores."""
    model = tiny(family, attention_dropout=0.1, activation_dropout=0.5)
    steps = [
        PruneHeads(ratio=0.5),
        PruneFfn(ratio=0.5, score="first_order"),
        Factorize(rank=6),
        DropLayers(layers=(1,)),
        PruneFfn(ratio=1),
    ]
    compress(model, steps, Context(clips=CLIPS))
    assert not [name for name, module in model.named_modules() if module.training]
    inputs = example(model)
    assert_same(says(model, inputs), says(model, inputs), tolerance=0)


def test_compressing_again_after_a_rebuild_is_compressing_twice(tmp_path: Path) -> None:
    """What an earlier round took away must not be forgotten by a later one's checkpoint."""
    rounds = [PruneHeads(ratio=0.25), PruneFfn(ratio=0.25)]
    model = tiny("wavlm")
    twice = model.clone()
    compress(twice, [*rounds, *rounds])
    for name in ("first", "second"):
        compress(model, rounds)
        save(model, tmp_path / name)
        model = load(tmp_path / name)
    inputs = example(model)
    assert_same(says(model, inputs), says(twice, inputs), tolerance=0)
    assert [layer.heads for layer in model.layers] == [layer.heads for layer in twice.layers]
    assert len(model.layers[0].heads) == 2


def test_the_same_seed_gives_the_same_model() -> None:
    results = []
    for _ in range(2):
        model = tiny("hubert")
        compress(model, [PruneHeads(ratio=0.5, score="first_order", scope="global")], Context(clips=CLIPS, seed=5))
        results.append(model.edits)
    assert results[0] == results[1]


# --- drop_layers and trim_context ------------------------------------------------------------------------------------
def test_dropping_every_layer_is_refused() -> None:
    with pytest.raises(TechniqueError, match="leaves no encoder"):
        compress(tiny("hubert"), [DropLayers(layers=(2, 0, 1))])


def test_layers_are_dropped_by_original_number_in_a_second_round_too() -> None:
    model = tiny("hubert")
    compress(model, [DropLayers(layers=(0,)), DropLayers(layers=(2,))])
    assert [layer.number for layer in model.layers] == [1]
    with pytest.raises(TechniqueError, match="there is no layer 0"):
        compress(model, [DropLayers(layers=(0,))])


def test_only_whisper_has_a_context_to_trim() -> None:
    with pytest.raises(TechniqueError, match="hubert takes audio of any length") as caught:
        compress(tiny("hubert"), [TrimContext(seconds=1)])
    assert caught.value.hint == "trim_context is for Whisper"


def test_a_context_can_be_trimmed_again_but_not_grown() -> None:
    model = tiny("whisper")
    compress(model, [TrimContext(seconds=1.5), TrimContext(seconds=1)])
    assert (model.context_positions, model.max_seconds) == (50, 1.0)
    for seconds in (1, 2):
        with pytest.raises(TechniqueError, match="would not trim it"):
            compress(model, [TrimContext(seconds=seconds)])
    assert model.features(noise_clip(3.0)).shape == (1, 80, 100)
    assert model.encode(model.features(noise_clip(0.3))).shape == (1, 50, 64)


def test_a_transcript_score_needs_to_know_how_whisper_starts_a_transcript() -> None:
    with pytest.raises(TechniqueError, match="without time stamps") as caught:
        model = tiny("whisper", head="ForConditionalGeneration")
        compress(model, [PruneHeads(ratio=0.5, score="first_order")], Context(clips=CLIPS))
    assert isinstance(caught.value.__cause__, ModelError)


def test_a_model_in_train_mode_is_compressed_as_in_eval_mode_and_stays_in_train_mode() -> None:
    """Dropout in the calibration passes would make the folded biases and the chosen heads a matter of chance."""
    clips = [noise_clip(0.3, seed) for seed in range(2)]
    technique = PruneHeads(ratio=0.5, score="activation")
    calm, trained = tiny("hubert"), tiny("hubert")
    for module in trained.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    trained.train()
    for model in (calm, trained):
        compress(model, [technique], Context(clips=clips))
    for name, tensor in calm.state_dict().items():
        assert torch.equal(trained.state_dict()[name], tensor), name
    assert all(module.training for module in trained.modules())


def test_a_technique_that_does_not_say_otherwise_is_given_the_clips() -> None:
    class Curious:
        kind = "curious"

        def apply(self, model: Model, context: Context) -> None:
            context.need_clips(self.kind)

    assert needs_clips([Curious()])
    assert not needs_clips([PruneHeads(ratio=0.5)])
