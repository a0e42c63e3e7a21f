"""Targets: what a model may cost, met exactly, or as near as its parts allow and said how near."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from edgecompress import DropLayers, PruneFfn, PruneHeads, PruneWeights, TrimContext, cost
from edgecompress.errors import TechniqueError
from edgecompress.model import Model
from edgecompress.techniques import Context, compress
from edgecompress.techniques.targets import Goal, Target, goal_of, search
from tests.models import FAMILIES, HEADS, LAYERS, UNITS, noise_clip, tiny

CLIPS = [noise_clip(0.3, seed) for seed in range(2)]
PER_UNIT = 2 * 64 + 1
PER_HEAD = 3 * (16 * 64 + 16) + 64 * 16


def total(model: Model) -> int:
    return cost.parameters(model).total


def macs(model: Model, seconds: float) -> int:
    return sum(cost.macs(model, round(seconds * 16000)).values())


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_target_in_parameters_is_met_as_nearly_as_one_unit_allows(family: str, scope: Any) -> None:
    model = tiny(family)
    wanted = total(model) - LAYERS * 40 * PER_UNIT + 17
    (step,) = compress(model, [PruneFfn(target=Target(parameters=wanted), scope=scope)])
    per_unit = PER_UNIT
    assert wanted - per_unit < total(model) <= wanted
    left = [len(layer.units) for layer in model.layers]
    assert scope == "global" or max(left) - min(left) <= 1
    assert step.notes[-1].startswith(f"{total(model):,} parameters: {wanted - total(model):,} (")
    assert step.notes[-1].endswith(f" below the target of {wanted:,}")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_target_that_can_be_met_exactly_is(family: str) -> None:
    model = tiny(family)
    wanted = total(model) - LAYERS * 30 * PER_UNIT
    (step,) = compress(model, [PruneFfn(target=Target(parameters=wanted))])
    assert total(model) == wanted
    assert [len(layer.units) for layer in model.layers] == [UNITS - 30] * LAYERS
    assert step.notes == [f"{wanted:,} parameters: exactly the target"]


@pytest.mark.parametrize("kind", [PruneHeads, PruneFfn])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_target_in_macs_is_met_as_nearly_as_one_part_allows(family: str, kind: Any) -> None:
    model = tiny(family)
    dense = macs(model, 2)
    emptied = model.clone()
    compress(emptied, [kind(ratio=1)])
    wanted = (dense + macs(emptied, 2)) // 2
    one_less = model.clone()
    if kind is PruneHeads:
        one_less.keep_heads(0, range(1, HEADS))
    else:
        one_less.keep_units(0, range(1, UNITS))
    compress(model, [kind(target=Target(macs=wanted, seconds=2))])
    assert wanted - (dense - macs(one_less, 2)) < macs(model, 2) <= wanted


def test_a_share_is_of_the_uncompressed_source_and_not_of_what_earlier_steps_left() -> None:
    model = tiny("hubert")
    dense = total(model)
    compress(model, [PruneHeads(ratio=0.5), PruneFfn(target=Target(parameters=0.7))])
    assert 0.7 * dense - PER_UNIT < total(model) <= 0.7 * dense + 1
    other = tiny("hubert")
    context = Context(source=other.clone())
    compress(other, [PruneHeads(ratio=0.5)], context)
    compress(other, [PruneFfn(target=Target(parameters=0.7))], context)
    assert total(other) == total(model)


def test_macs_are_counted_for_the_seconds_asked_for() -> None:
    """Attention grows with the square of the length: half of the MACs at 1 s are not half of them at 30 s."""
    left = []
    for seconds in (1, 30):
        model = tiny("hubert", intermediate_size=512)
        goal = goal_of(Target(macs=0.95, seconds=seconds), model, Context())
        assert goal.value == round(0.95 * macs(model, seconds))
        compress(model, [PruneFfn(target=Target(macs=0.95, seconds=seconds))])
        left.append(sum(len(layer.units) for layer in model.layers))
    assert left[0] != left[1]
    whisper = tiny("whisper")
    assert goal_of(Target(macs=1.0), whisper, Context()).value == cost.measure(whisper).macs.total


@pytest.mark.parametrize("rounds", [2, 3])
def test_rounds_go_to_a_target_in_equal_steps(rounds: int) -> None:
    model = tiny("hubert")
    dense = total(model)
    (step,) = compress(model, [PruneFfn(target=Target(parameters=0.8), rounds=rounds)])
    reached = [one["parameters"] for one in step.rounds]
    for number, each in enumerate(reached, 1):
        wanted = round(dense - (dense - round(0.8 * dense)) * number / rounds)
        assert wanted - PER_UNIT < each <= wanted


def test_the_ranking_decides_which_parts_go() -> None:
    model = tiny("hubert")
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj"):
            model.layers[1].matrix(name).weight[16:] *= 0.01  # type: ignore[union-attr, index]
    compress(model, [PruneHeads(target=Target(parameters=total(model) - 3 * PER_HEAD), scope="global")])
    assert [layer.heads for layer in model.layers] == [(0, 1, 2, 3), (0,), (0, 1, 2, 3)]


def test_a_target_that_cannot_be_reached_says_what_can() -> None:
    for technique, steps in ((PruneFfn, 1), (PruneHeads, 2)):
        model = tiny("hubert")
        emptied = model.clone()
        compress(emptied, [technique(ratio=1)])
        with pytest.raises(TechniqueError, match=f"cannot be reached.* {total(emptied):,} are left") as caught:
            compress(model, [technique(target=Target(parameters=0.01), rounds=steps)])
        assert f"{total(emptied):,}" in str(caught.value.hint)
        reached = int(re.findall(r"ask for ([\d,]+)", caught.value.hint)[0].replace(",", ""))
        again = tiny("hubert")
        compress(again, [technique(target=Target(parameters=reached))])
        assert total(again) == reached


def test_a_target_that_is_met_already_takes_nothing_away() -> None:
    model = tiny("hubert")
    dense = total(model)
    (step,) = compress(model, [PruneFfn(target=Target(parameters=1.0))])
    assert total(model) == dense
    assert step.notes == [f"{dense:,} parameters: exactly the target"]
    compress(model, [PruneHeads(ratio=0.5)])
    (step,) = compress(model, [PruneFfn(target=Target(parameters=dense))])
    assert step.notes[-1].endswith(f"below the target of {dense:,}")


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("amount", [0.5, 0.777, 60_001])
def test_weights_meet_a_target_in_parameters_that_are_not_zero_exactly(amount: float, rounds: int) -> None:
    model = tiny("hubert")
    dense = total(model)
    (step,) = compress(model, [PruneFfn(ratio=0.1), PruneWeights(target=Target(parameters=amount), rounds=rounds)])[1:]
    wanted = round(amount * dense) if amount <= 1 else int(amount)
    assert cost.parameters(model).nonzero == wanted
    assert step.notes[-1] == f"{wanted:,} parameters: exactly the target"


def test_more_zeros_than_there_are_prunable_weights_are_refused() -> None:
    model = tiny("hubert")
    with pytest.raises(TechniqueError, match=r"with all prunable weights zero, [\d,]+ are left") as caught:
        compress(model, [PruneWeights(target=Target(parameters=10_000))])
    assert caught.value.hint


def test_several_techniques_reach_one_target_in_a_row() -> None:
    model = tiny("whisper")
    dense = macs(model, 2)
    compress(model, [TrimContext(seconds=1), DropLayers(layers=(1,)), PruneFfn(target=Target(macs=0.3, seconds=2))])
    assert 0.29 * dense < macs(model, 2) <= 0.3 * dense + 1


# --- the search itself -----------------------------------------------------------------------------------------------
class Weighed:
    """A model of things that weigh something."""

    def __init__(self, weights: dict[str, int]) -> None:
        self.weights = weights

    def skeleton(self) -> Weighed:
        return Weighed(dict(self.weights))


def drop(model: Any, items: Any) -> None:
    for item in items:
        del model.weights[item]


def test_what_still_fits_is_put_back_the_most_important_first() -> None:
    things = Weighed({"small 1": 3, "small 2": 3, "big 1": 10, "big 2": 10, "last": 50})
    order = ["small 1", "small 2", "big 1", "big 2"]
    goal = Goal(65, "grams", lambda model: sum(model.weights.values()))  # type: ignore[attr-defined]
    plain = search(things, goal, order, drop)  # type: ignore[type-var, arg-type]
    assert plain == ["small 1", "small 2", "big 1"]
    filled = search(things, goal, order, drop, group=lambda item: item.split()[0])  # type: ignore[arg-type]
    assert filled == ["small 1", "big 1"]
    assert things.weights["big 1"] == 10
