"""Low rank by energy, by ratio and to a target: which ranks are chosen, and that they are the cheapest ones."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from edgecompress import Factorize, PruneFfn, cost
from edgecompress.errors import TechniqueError
from edgecompress.model import Model, load, save
from edgecompress.model.linear import FactoredLinear, dense_weight
from edgecompress.techniques import Context, compress
from edgecompress.techniques.factorize import break_even
from edgecompress.techniques.spectra import Spectra, weights_of
from tests.library import assert_same, says
from tests.models import FAMILIES, LAYERS, UNITS, example, noise_clip, tiny

CLIPS = [noise_clip(0.6, seed) for seed in range(3)]
ALL = ("q_proj", "k_proj", "v_proj", "out_proj", "up", "down")


def ranks_of(model: Model) -> dict[tuple[int, str], int]:
    found = {}
    for layer, name in itertools.product(model.layers, ALL):
        matrix = layer.matrix(name)
        if isinstance(matrix, FactoredLinear):
            found[layer.number, name] = matrix.rank
    return found


@torch.no_grad()
def decaying(model: Model, seed: int = 0) -> Model:
    """A model whose matrices have spectra that fall, each at its own pace, as trained ones do."""
    pace = iter(torch.linspace(0.75, 0.99, LAYERS * 6).tolist())
    for layer, name in itertools.product(model.layers, ALL):
        weight = layer.matrix(name).weight
        left, singular, right = torch.linalg.svd(weight, full_matrices=False)
        fall = next(pace) ** torch.arange(len(singular))
        weight.copy_(left * (singular[0] * fall) @ right)  # type: ignore[operator]
    return model


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rank": 4, "energy": 0.9},
        {"rank": 4, "rounds": 2},
        {"energy": 0.9, "rounds": (0.1, 0.2)},
        {"energy": 1.0},
        {"energy": 0},
        {"ratio": 0.5, "target": {"macs": 0.5}},
        {"rounds": (0.4, 0.2)},
    ],
)
def test_amounts_that_contradict_each_other_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Factorize(**fields)


# --- energy ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_share_of_energy_is_kept_by_the_lowest_rank_that_keeps_it(share: float) -> None:
    model = decaying(tiny("hubert"))
    dense = model.clone()
    step = compress(model, [Factorize(energy=share, matrices="all")])[0]
    found = ranks_of(model)
    for layer, name in itertools.product(dense.layers, ALL):
        matrix = layer.matrix(name)
        energy = torch.linalg.svdvals(dense_weight(matrix).double()).square()
        kept = (energy.cumsum(0) / energy.sum()).tolist()
        lowest = next(rank for rank, value in enumerate(kept, start=1) if value >= share)
        if lowest > break_even(matrix.in_features, matrix.out_features):
            assert (layer.number, name) not in found
        else:
            assert found[layer.number, name] == lowest
    assert 0 < len(found) <= LAYERS * 6
    assert step.notes[0].startswith(f"{len(found)} of {LAYERS * 6} matrices factored, rank {min(found.values())} to")


def test_a_matrix_that_would_not_get_smaller_stays_whole_and_that_is_said() -> None:
    model = tiny("hubert")
    step = compress(model, [Factorize(energy=0.9999)])[0]
    assert ranks_of(model) == {}
    assert model.edits == ()
    assert step.notes == [f"none of {LAYERS * 2} matrices is factored: nothing would be saved"]


def test_energy_by_activations_is_the_variance_that_is_kept() -> None:
    model = tiny("wavlm")
    layer, heard = model.layers[1], []
    hook = layer.up.register_forward_hook(lambda module, args, output: heard.append(output.detach().flatten(0, -2)))
    with torch.no_grad():
        for inputs in model.batches(CLIPS):
            model.encode(inputs)
    hook.remove()
    said = torch.cat(heard).double()
    variance = torch.linalg.svdvals(said - said.mean(0)).square()
    found = Spectra.by("activations", model, Context(clips=CLIPS), "test", [(layer, "up")]).of[1, "up"].energy
    assert torch.allclose(torch.tensor(found).double(), (variance / variance.sum())[: len(found)], atol=1e-5)


# --- one budget ------------------------------------------------------------------------------------------------------
def lost(spectra: Spectra, ranks: dict[tuple[int, str], int]) -> float:
    return sum(spectra.of[place].lost(rank) for place, rank in ranks.items())


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("by", ["weights", "activations"])
def test_a_ratio_takes_at_least_that_share_of_weights_and_hardly_more(by: Any, ratio: float) -> None:
    model = decaying(tiny("hubert"))
    before = sum(weights_of(layer, name) for layer, name in itertools.product(model.layers, ALL))
    compress(model, [Factorize(ratio=ratio, by=by, matrices="all")], Context(clips=CLIPS))
    after = sum(weights_of(layer, name) for layer, name in itertools.product(model.layers, ALL))
    assert 0 <= before * (1 - ratio) - after < 64 + UNITS  # less than one direction of a matrix
    for (number, name), rank in ranks_of(model).items():
        matrix = model.layer(number).matrix(name)
        assert rank <= break_even(matrix.in_features, matrix.out_features)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
def test_mixed_ranks_lose_less_energy_than_equal_shares_of_every_matrix(ratio: float) -> None:
    model = decaying(tiny("hubert"))
    places = [(layer, name) for layer, name in itertools.product(model.layers, ALL)]
    spectra = Spectra.by("weights", model, Context(), "test", places)
    total = sum(one.weights for one in spectra.of.values())
    mixed = spectra.for_saving(ratio * total)
    equal = {place: int(one.weights * (1 - ratio) / one.per_rank) for place, one in spectra.of.items()}
    assert len(set(mixed.values())) > 3
    assert lost(spectra, mixed) < 0.9 * lost(spectra, equal)


def test_mixed_ranks_are_as_good_as_the_best_of_all_choices() -> None:
    """Two matrices, every pair of ranks tried: what is lost is at most one direction's worth above the least possible."""
    model = decaying(tiny("hubert"))
    spectra = Spectra.by("weights", model, Context(), "test", [(model.layers[0], "q_proj"), (model.layers[2], "up")])
    one, two = spectra.of.values()
    for saving in (500, 2000, 4000, 6000):
        best = min(
            (0.0 if a is None else one.lost(a)) + (0.0 if b is None else two.lost(b))
            for a in (None, *range(1, one.highest + 1))
            for b in (None, *range(1, two.highest + 1))
            if (0 if a is None else one.weights - a * one.per_rank)
            + (0 if b is None else two.weights - b * two.per_rank)
            >= saving
        )
        found = spectra.for_saving(saving)
        dearest = max(spectra.of[place].energy[rank] for place, rank in found.items())
        assert best - 1e-9 <= lost(spectra, found) <= best + dearest + 1e-9


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unit", ["parameters", "macs"])
def test_a_target_for_the_whole_model_is_reached_within_one_direction(family: str, unit: str) -> None:
    model = decaying(tiny(family))
    dense = cost.measure(model)
    whole = dense.parameters.total if unit == "parameters" else dense.macs.total
    per_weight = 1 if unit == "parameters" else cost.frames_of(model, round(dense.seconds * 16000))
    goal = round(0.85 * whole)
    step = compress(model, [Factorize(target={unit: goal}, matrices="all")])[0]
    reached = step.after.parameters.total if unit == "parameters" else step.after.macs.total
    assert 0 <= goal - reached < (64 + UNITS) * per_weight
    assert f"the target of {goal:,}" in step.notes[-1] or "exactly the target" in step.notes[-1]


def test_a_target_out_of_reach_is_refused_with_the_least_that_can_be_reached() -> None:
    model = tiny("hubert")
    with pytest.raises(TechniqueError, match=r"with rank 1 everywhere, [0-9,]+ are left") as caught:
        compress(model, [Factorize(target={"parameters": 0.01})])
    least = int(caught.value.hint.split()[2].replace(",", ""))
    assert compress(model, [Factorize(target={"parameters": least})])[0].after.parameters.total == least
    assert set(ranks_of(model).values()) == {1}


def test_a_target_that_is_met_already_changes_nothing() -> None:
    model = tiny("hubert")
    compress(model, [Factorize(target={"parameters": 1.0})])
    assert model.edits == ()


def test_rounds_go_on_from_the_products_of_the_round_before() -> None:
    model, at_once = decaying(tiny("hubert")), decaying(tiny("hubert"))
    step = compress(model, [Factorize(rounds=(0.3, 0.6))])[0]
    compress(at_once, [Factorize(ratio=0.6)])
    assert [entry["reached"] for entry in step.rounds] == [0.3, 0.6]
    assert step.rounds[0]["parameters"] > step.rounds[1]["parameters"]
    assert abs(step.after.parameters.total - cost.parameters(at_once).total) < 64 + UNITS
    first, last = step.rounds[0]["removed"]["ranks"], ranks_of(model)
    assert all(last[int(place.split(".")[0]), place.split(".")[1]] <= rank for place, rank in first.items())


# --- products --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("by", ["weights", "activations"])
def test_a_model_of_mixed_ranks_is_rebuilt_bit_equal(family: str, by: Any, tmp_path: Path) -> None:
    model = decaying(tiny(family))
    compress(model, [Factorize(ratio=0.5, by=by, matrices="all"), PruneFfn(ratio=0.25)], Context(clips=CLIPS))
    save(model, tmp_path)
    rebuilt = load(tmp_path)
    assert ranks_of(rebuilt) == ranks_of(model) != {}
    assert_same(says(rebuilt, example(model)), says(model, example(model)), tolerance=0)


def test_given_matrices_are_taken_as_they_are_and_no_decomposition_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("hubert")
    bias = model.layers[0].up.bias.detach().clone()  # type: ignore
    monkeypatch.setattr(torch.linalg, "svd", lambda *args, **more: pytest.fail("a decomposition was made"))
    second, first = torch.randn(UNITS, 3), torch.randn(3, 64)
    model.factor(0, "up", 3, (second, first))
    assert torch.allclose(dense_weight(model.layers[0].up), second @ first, atol=1e-6)
    assert torch.equal(model.layers[0].up.bias, bias)  # type: ignore[arg-type]
    assert [edit.kind for edit in model.edits] == ["factor"]
    compress(model, [Factorize(rank=5, by="activations", matrices="attention")], Context(clips=CLIPS))


def test_a_product_can_lose_rank_but_not_gain_it() -> None:
    model = tiny("hubert")
    compress(model, [Factorize(rank=9), Factorize(rank=4)])
    assert set(ranks_of(model).values()) == {4}
    with pytest.raises(TechniqueError, match="rank 5 would grow") as caught:
        compress(model, [Factorize(rank=5)])
    assert "it has rank 4" in caught.value.hint
