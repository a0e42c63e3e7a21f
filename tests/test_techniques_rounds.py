"""Rounds: rates that count from the beginning, parts that keep their numbers, recovery in between, and interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from edgecompress import DropLayers, Factorize, PruneFfn, PruneHeads, PruneWeights, cost
from edgecompress.job import describe
from edgecompress.model import Model
from edgecompress.recipe import read_recipe
from edgecompress.techniques import Context, compress, needs_corpus, recovery
from edgecompress.techniques.prune_heads import head_scores
from edgecompress.techniques.rounds import trainings_of
from edgecompress.training.settings import MaskedPrediction, MatchStates, Training
from tests.library import assert_same, says
from tests.models import FAMILIES, HEADS, HIDDEN, LAYERS, UNITS, example, noise_clip, tiny

CLIPS = [noise_clip(0.3 + seed / 20, seed) for seed in range(4)]


def short(steps: int = 3, **more: Any) -> Training:
    values = {"learning_rate": 1e-3, "batch_seconds": 1.0, "crop_seconds": 0.5, "objective": MatchStates(layers="last")}
    return Training(steps=steps, **{**values, **more})


def context_for(model: Model, work: Path | None = None, **more: Any) -> Context:
    return Context(clips=CLIPS, seed=3, source=model.clone(), work=work, **more)


def heads_of(model: Model) -> dict[int, tuple[int, ...]]:
    return {layer.number: tuple(layer.heads) for layer in model.layers}


# --- the schedule ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"ratio": 0.5, "target": {"parameters": 0.5}},
        {"ratio": 0.5, "rounds": [0.1, 0.5]},
        {"rounds": 3},
        {"rounds": []},
        {"rounds": [0.5, 0.25]},
        {"rounds": [0.5, 1.5]},
        {"ratio": 0.5, "rounds": 0},
        {"target": {}},
        {"target": {"parameters": 0.5, "macs": 0.5}},
        {"target": {"parameters": 0.5, "seconds": 4}},
        {"target": {"parameters": -3}},
        {"ratio": 0.5, "recovery": {"steps": -1}},
    ],
)
def test_amounts_that_contradict_each_other_are_refused(fields: dict[str, Any]) -> None:
    for technique in (PruneHeads, PruneFfn):
        with pytest.raises(ValidationError):
            technique(**fields)


def test_rounds_are_equal_steps_or_the_rates_themselves() -> None:
    assert PruneHeads(ratio=0.75, rounds=3).shares == pytest.approx([0.25, 0.5, 0.75])
    assert PruneHeads(rounds=(0.25, 0.5)).shares == [0.25, 0.5]
    assert PruneHeads(target={"macs": 0.4}, rounds=4).shares == [0.25, 0.5, 0.75, 1.0]  # type: ignore[arg-type]
    assert PruneHeads(ratio=0.3).shares == [0.3]


def test_a_recipe_file_gives_rounds_a_target_and_a_recovery(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(
        'name = "r"\n[[technique]]\nkind = "prune_heads"\nrounds = [0.25, 0.5]\n'
        'recovery = { steps = 10, objective = { kind = "masked" } }\n'
        '[[technique]]\nkind = "prune_ffn"\ntarget = { macs = 0.5, seconds = 4 }\nrounds = 3\n'
    )
    heads, units = read_recipe(tmp_path / "r.toml").techniques
    assert (heads.rounds, heads.recovery.steps, heads.recovery.objective) == ((0.25, 0.5), 10, MaskedPrediction())
    assert (units.target.macs, units.target.seconds, units.rounds) == (0.5, 4, 3)
    assert needs_corpus([heads])
    assert not needs_corpus([units])
    assert PruneHeads(**{k: v for k, v in describe(heads).items() if k != "kind"}) == heads


def test_the_papers_schedules_are_met_to_the_head_and_to_the_unit() -> None:
    config = {"num_hidden_layers": 6, "num_attention_heads": 12, "hidden_size": 96, "intermediate_size": 192}
    model = tiny("hubert", **config)
    steps = compress(model, [PruneHeads(rounds=(0.25, 0.5)), PruneFfn(ratio=0.8333, rounds=5)])
    left = [72 - sum(sum(map(len, one["removed"].values())) for one in steps[0].rounds[:n]) for n in (1, 2)]
    assert left == [54, 36]
    assert all(len(layer.heads) == 6 and len(layer.units) == 32 for layer in model.layers)
    assert [sum(map(len, one["removed"].values())) for one in steps[1].rounds] == [192] * 5


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("kind", [PruneHeads, PruneFfn])
def test_rates_count_from_what_was_there_when_the_step_began(kind: Any, scope: Any) -> None:
    whole = LAYERS * (HEADS if kind is PruneHeads else UNITS)
    for rounds, ratio in ((1, 0.5), (2, 0.5), (3, 0.75)):
        model = tiny("hubert")
        steps = compress(model, [kind(ratio=ratio, rounds=rounds, scope=scope)])
        removed = [sum(map(len, one["removed"].values())) for one in steps[0].rounds]
        assert removed == [whole * ratio / rounds] * rounds
        parts = [layer.heads if kind is PruneHeads else layer.units for layer in model.layers]
        assert sum(map(len, parts)) == whole - whole * ratio
        assert scope == "global" or len({len(each) for each in parts}) == 1
        assert all(parts)


def test_a_second_step_counts_from_what_the_first_one_left() -> None:
    model = tiny("hubert")
    compress(model, [PruneHeads(ratio=0.5), PruneHeads(ratio=0.5)])
    assert [len(layer.heads) for layer in model.layers] == [1] * LAYERS


# --- identity --------------------------------------------------------------------------------------------------------
def test_a_head_pruned_in_the_first_round_keeps_its_number_in_the_second() -> None:
    """Numbers counted in the already sliced layer would tell another story of who went when."""
    model = tiny("hubert")
    order = {layer.number: [3, 0, 2, 1] for layer in model.layers}  # least important first
    with torch.no_grad():
        for layer in model.layers:
            for place, head in enumerate(order[layer.number]):
                rows = slice(head * HIDDEN // HEADS, (head + 1) * HIDDEN // HEADS)
                for name in ("q_proj", "k_proj", "v_proj"):
                    layer.matrix(name).weight[rows] *= 10.0**place  # type: ignore[union-attr, index]
    steps = compress(model, [PruneHeads(ratio=0.75, rounds=3)])
    assert [one["removed"] for one in steps[0].rounds] == [
        {str(number): [order[number][nth]] for number in range(LAYERS)} for nth in range(3)
    ]
    assert set(heads_of(model).values()) == {(1,)}
    assert [edit.heads for edit in model.edits if edit.kind == "keep_heads"] == [(1,)] * LAYERS


def test_what_is_removed_and_what_is_left_are_together_what_was_there() -> None:
    model = tiny("wavlm")
    technique = PruneFfn(ratio=0.6, rounds=3, scope="global", score="first_order", recovery=short())
    steps = compress(model, [technique], context_for(model))
    for layer in model.layers:
        gone = [unit for one in steps[0].rounds for unit in one["removed"].get(str(layer.number), [])]
        assert sorted([*gone, *layer.units]) == list(range(UNITS))


def test_each_round_scores_the_model_as_the_last_one_left_it() -> None:
    model, by_hand = tiny("hubert"), tiny("hubert")
    technique = PruneHeads(ratio=0.5, rounds=2, score="first_order", scope="global")
    compress(model, [technique], Context(clips=CLIPS, seed=3))
    for _ in range(2):
        scores = head_scores(by_hand, by_hand.layers, "first_order", Context(clips=CLIPS, seed=3), {})
        ranked = sorted(
            (float(score), layer.number, layer.heads[place])
            for layer in by_hand.layers
            for place, score in enumerate(scores[layer.number])
            if place != int(scores[layer.number].argmax())
        )
        for _, number, head in ranked[:3]:
            by_hand.keep_heads(number, [one for one in by_hand.layer(number).heads if one != head])
    assert heads_of(model) == heads_of(by_hand)


# --- recovery --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_recovery_brings_the_model_nearer_to_the_one_it_was(family: str) -> None:
    """Heads and units gone one shot, then again with two recoveries of a few steps towards the dense model."""
    inputs, distance = None, []
    for recovers in (None, short(15, learning_rate=3e-3)):
        model = tiny(family)
        inputs = model.collate(CLIPS)
        context = context_for(model)
        compress(model, [PruneFfn(ratio=0.5, rounds=2, recovery=recovers)], context)
        with torch.no_grad():
            wanted, got = context.source.states(inputs)[-1], model.states(inputs)[-1]
        distance.append(float((wanted - got)[inputs.mask].square().mean()))
        assert not any(module.training for module in model.modules())
    assert distance[1] < 0.9 * distance[0]


def test_a_step_tells_round_by_round_what_went_and_what_each_training_did() -> None:
    model = tiny("hubert")
    (step,) = compress(model, [PruneHeads(ratio=0.5, rounds=2, recovery=short())], context_for(model))
    per_head = 3 * (16 * 64 + 16) + 64 * 16
    totals = [step.before.parameters.total - LAYERS * per_head * n for n in (0, 1, 2)]
    assert [one["parameters"] for one in step.rounds] == totals[1:]
    assert step.rounds[1]["macs"] == step.after.macs.total
    assert step.notes[0].startswith(f"round 1: {totals[0]:,} to {totals[1]:,} parameters, ")
    assert step.notes[1].startswith("round-1: trained 3 steps, loss ")
    assert len(step.notes) == 4
    assert step.training is not None
    assert (step.training["trainings"], step.training["steps"]) == (2, 6)


def test_one_shot_trains_nothing_and_says_nothing() -> None:
    model = tiny("hubert")
    (step,) = compress(model, [PruneHeads(ratio=0.5, recovery=short(0))])
    assert (step.notes, step.training) == ([], None)


def test_every_round_draws_audio_of_its_own() -> None:
    context = Context(seed=1, step=2)
    seeds = {recovery.seed_of(context, f"round-{n}") for n in range(50)}
    seeds |= {recovery.seed_of(Context(seed=1, step=3), f"round-{n}") for n in range(50)}
    assert len(seeds) == 100


@pytest.mark.parametrize("family", ["hubert", "melhubert"])
def test_the_papers_best_runs_in_one_recipe(family: str) -> None:
    """Fewer layers, then heads, then units, each with recovery between rounds (Lin et al., 2022)."""
    model = tiny(family, num_hidden_layers=4)
    dense = cost.measure(model)
    steps = compress(
        model,
        [
            DropLayers(layers=(1, 3)),
            PruneHeads(rounds=(0.25, 0.5), score="first_order", scope="global", recovery=short()),
            PruneFfn(ratio=0.75, rounds=2, recovery=short()),
        ],
        context_for(model),
    )
    assert [layer.number for layer in model.layers] == [0, 2]
    assert sum(len(layer.heads) for layer in model.layers) == 4
    assert [len(layer.units) for layer in model.layers] == [UNITS // 4] * 2
    assert steps[-1].after.parameters.total < dense.parameters.total
    assert [step.training["trainings"] for step in steps[1:] if step.training] == [2, 2]


# --- interruption ----------------------------------------------------------------------------------------------------
STOPPED: dict[str, Any] = {
    "heads": PruneHeads(ratio=0.75, rounds=3, score="first_order", scope="global", recovery=short(save_every_s=1e-3)),
    "units": PruneFfn(ratio=0.5, rounds=3, score="activation", recovery=short(save_every_s=1e-3)),
    "to a target": PruneFfn(target={"parameters": 0.8}, rounds=3, recovery=short(save_every_s=1e-3)),  # type: ignore[arg-type]
    "weights": PruneWeights(ratio=0.6, rounds=3, recovery=short(save_every_s=1e-3)),
    "weights put off": PruneWeights(ratio=0.6, rounds=3, converged=1e-9, patience=1, recovery=short(6)),
    "weights by activation": PruneWeights(ratio=0.6, rounds=3, score="activation", recovery=short()),
}


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


@pytest.mark.parametrize("technique", STOPPED.values(), ids=STOPPED.keys())
@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_step_ends_as_one_left_alone(
    technique: Any, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two rounds, begun again on a fresh copy of the model."""
    start = tiny("hubert", hidden_dropout=0.1)
    alone = start.clone()
    (wanted,) = compress(alone, [technique], context_for(start))

    told: list[str] = []

    def kill(text: str) -> None:
        told.append(text)
        if text.startswith(f"round {after + 1} of"):
            raise Killed

    with pytest.raises(Killed):
        compress(start.clone(), [technique], context_for(start, tmp_path, say=kill))
    resumed = start.clone()
    (step,) = compress(resumed, [technique], context_for(start, tmp_path, say=told.append))
    assert f"goes on after round {after}" in told
    assert resumed.edits == alone.edits
    for name, tensor in alone.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert step.rounds == wanted.rounds
    assert step.notes == wanted.notes
    inputs = example(resumed)
    assert_same(says(resumed, inputs), says(alone, inputs), tolerance=0)


def test_what_another_technique_kept_is_not_gone_on_with(tmp_path: Path) -> None:
    start = tiny("hubert")

    def kill(text: str) -> None:
        if text.startswith("round 2"):
            raise Killed

    first = PruneHeads(ratio=0.5, rounds=2, recovery=short())
    with pytest.raises(Killed):
        compress(start.clone(), [first], context_for(start, tmp_path, say=kill))
    other, alone = start.clone(), start.clone()
    technique = PruneHeads(ratio=0.75, rounds=3, recovery=short())
    compress(other, [technique], context_for(start, tmp_path))
    compress(alone, [technique], context_for(start))
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in alone.state_dict().items())


def test_the_trainings_of_a_round_are_in_the_order_in_which_they_were_done(tmp_path: Path) -> None:
    """The optimiser goes on from the last one, which is the tenth repetition and not the ninth."""
    names = ["round-1", *(f"round-1-again-{number}" for number in range(1, 11))]
    for name in [*reversed(names), "round-10", "round-2"]:
        (tmp_path / name).mkdir()
    assert [path.name for path in trainings_of(Context(work=tmp_path), 1)] == names


def test_rounds_without_training_keep_nothing_on_disk(tmp_path: Path) -> None:
    model = tiny("hubert")
    compress(model, [PruneHeads(ratio=0.75, rounds=3), Factorize(rank=4)], context_for(model, tmp_path))
    assert not list(tmp_path.iterdir())
