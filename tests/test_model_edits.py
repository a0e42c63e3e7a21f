"""Edits: structure changes only through plain data with original numbers, and what is gone cannot be asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecompress import cost
from edgecompress.errors import ModelError
from edgecompress.model import Model, load, save
from edgecompress.model.edits import EDITS, KeepHeads, KeepLayers
from edgecompress.model.layer import ATTENTION_MATRICES, FFN_MATRICES, Layer
from edgecompress.model.linear import Constant, FactoredLinear, NothingIn
from tests.library import assert_differ, assert_same, library_network, ours, says, with_fewer_layers
from tests.models import example, tiny

MATRICES = (*ATTENTION_MATRICES, *FFN_MATRICES)


def test_original_numbers_survive_several_rounds() -> None:
    step_by_step, at_once = tiny("wavlm"), tiny("wavlm")
    step_by_step.keep_layers([0, 2])
    step_by_step.keep_heads(2, [1, 2, 3])
    step_by_step.keep_units(2, range(40, 96))
    step_by_step.keep_layers([2])
    step_by_step.keep_heads(2, [1, 3])
    step_by_step.keep_units(2, range(60, 90))
    at_once.keep_heads(2, [1, 3])
    at_once.keep_units(2, range(60, 90))
    at_once.keep_layers([2])
    inputs = example(at_once)
    assert_same(says(step_by_step, inputs), says(at_once, inputs), tolerance=0)
    layer = step_by_step.layers[0]
    assert (layer.number, layer.heads, layer.units) == (2, (1, 3), tuple(range(60, 90)))


def test_a_second_edit_of_a_place_replaces_the_first() -> None:
    model = tiny("hubert")
    model.keep_heads(1, [0, 1, 3])
    model.keep_layers([1, 2])
    model.keep_heads(1, [3])
    assert model.edits == (KeepLayers(layers=(1, 2)), KeepHeads(layer=1, heads=(3,)))


def test_edits_are_plain_data() -> None:
    model = tiny("whisper")
    model.keep_heads(0, [])
    model.keep_units(1, [5, 4])
    model.factor(2, "up", 3)
    model.keep_context(50)
    assert EDITS.dump_python(list(model.edits), mode="json") == [
        {"kind": "keep_heads", "layer": 0, "heads": []},
        {"kind": "keep_units", "layer": 1, "units": [4, 5]},
        {"kind": "factor", "layer": 2, "matrix": "up", "rank": 3},
        {"kind": "keep_context", "positions": 50},
    ]


def test_what_is_left_when_nothing_is_left_is_the_output_bias() -> None:
    for family in ("hubert", "wavlm", "whisper"):
        model = tiny(family)
        dense = model.clone()
        model.keep_heads(1, [])
        model.keep_units(1, [])
        layer = model.layers[1]
        assert all(isinstance(layer.matrix(name), NothingIn) for name in ("q_proj", "k_proj", "v_proj", "up"))
        for name in ("out_proj", "down"):
            assert isinstance(layer.matrix(name), Constant)
            assert torch.equal(layer.matrix(name).bias, dense.layers[1].matrix(name).bias)  # type: ignore[arg-type]
        assert layer.units == ()
        assert model.layers[0].units


def test_emptying_what_is_empty_changes_nothing() -> None:
    model = tiny("data2vec-audio")
    model.keep_heads(0, [])
    model.keep_units(0, [])
    inputs, edits = example(model), model.edits
    before = says(model, inputs)
    model.keep_heads(0, [])
    model.keep_units(0, [])
    assert_same(says(model, inputs), before, tolerance=0)
    assert len(model.edits) == len(edits)


@pytest.mark.parametrize("stable", [False, True])
def test_wavlm_without_its_first_layer_keeps_the_position_bias_that_lives_there(stable: bool) -> None:
    network = library_network("wavlm", stable=stable)
    model = ours(network)
    bias = model.layers[0].attention.rel_attn_embed
    model.keep_layers([1, 2])
    assert model.layers[0].attention.rel_attn_embed is bias
    assert [name for name in model.state_dict() if "rel_attn_embed" in name] == [
        "encoder.layers.0.attention.rel_attn_embed.weight"
    ]
    model.keep_layers([2])
    inputs = example(model)
    assert_same(says(model, inputs), says(with_fewer_layers(network, [2]), inputs))


@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "wavlm", "data2vec-audio"])
@pytest.mark.parametrize("kept", [[1, 2], [0, 2], [1]])
def test_a_classifier_that_sums_over_layers_loses_the_weights_of_those_that_go(family: str, kept: list[int]) -> None:
    network = library_network(family, head="ForSequenceClassification", use_weighted_layer_sum=True)
    with torch.no_grad():
        network.layer_weights.copy_(torch.tensor([0.3, -1.0, 2.0, 0.5]))
    model = ours(network)
    inputs = example(model)
    dense = says(model, inputs)
    assert_same(dense, says(network, inputs))
    model.keep_layers(kept)
    assert_same(says(model, inputs), says(with_fewer_layers(network, kept), inputs))
    assert_differ(says(model, inputs), dense)


def test_a_whisper_classifier_that_sums_over_layers_does_too() -> None:
    network = library_network("whisper", head="ForAudioClassification", use_weighted_layer_sum=True)
    with torch.no_grad():
        network.layer_weights.copy_(torch.tensor([0.3, -1.0, 2.0, 0.5]))
    model = ours(network)
    model.keep_layers([0, 2])
    inputs = example(model)
    assert_same(says(model, inputs), says(with_fewer_layers(network, [0, 2]), inputs))


# --- what cannot be done ---------------------------------------------------------------------------------------------
def after_losses(family: str = "hubert") -> Model:
    model = tiny(family)
    model.keep_layers([0, 2])
    model.keep_heads(0, [1, 2])
    model.keep_units(0, [3, 4, 5])
    model.keep_heads(2, [])
    model.keep_units(2, [])
    return model


GONE: dict[str, Callable[[Model], None]] = {
    "a layer's heads": lambda model: model.keep_heads(1, [0]),
    "a layer's units": lambda model: model.keep_units(1, [0]),
    "a layer's matrix": lambda model: model.factor(1, "up", 2),
    "a layer": lambda model: model.keep_layers([0, 1]),
    "a layer that never was": lambda model: model.keep_layers([0, 7]),
    "every layer": lambda model: model.keep_layers([]),
    "a head": lambda model: model.keep_heads(0, [0, 1]),
    "a head that never was": lambda model: model.keep_heads(0, [1, 4]),
    "a negative head": lambda model: model.keep_heads(0, [-1]),
    "a head twice": lambda model: model.keep_heads(0, [1, 1]),
    "a head of an empty layer": lambda model: model.keep_heads(2, [0]),
    "a unit": lambda model: model.keep_units(0, [2, 3]),
    "a unit that never was": lambda model: model.keep_units(0, [96]),
    "a unit twice": lambda model: model.keep_units(0, [3, 3]),
    "a unit of an empty layer": lambda model: model.keep_units(2, [0]),
    "a layer twice": lambda model: model.keep_layers([0, 0]),
    "a matrix of an empty network": lambda model: model.factor(2, "down", 1),
    "a matrix of an empty attention": lambda model: model.factor(2, "q_proj", 1),
    "a rank greater than the matrix": lambda model: model.factor(0, "down", 4),
    "a rank of nothing": lambda model: model.factor(0, "down", 0),
    "a matrix that never was": lambda model: model.factor(0, "sideways", 1),  # type: ignore[arg-type]
    "a context where there is none": lambda model: model.keep_context(10),
}


@pytest.mark.parametrize("ask", GONE.values(), ids=GONE.keys())
def test_an_edit_of_what_is_not_there_is_refused_and_changes_nothing(ask: Callable[[Model], None]) -> None:
    model = after_losses()
    inputs, edits = example(model), model.edits
    before = says(model, inputs)
    with pytest.raises(ModelError) as caught:
        ask(model)
    assert caught.value.hint
    assert model.edits == edits
    assert_same(says(model, inputs), before, tolerance=0)


def test_a_context_cannot_grow_back() -> None:
    model = tiny("whisper")
    model.keep_context(60)
    for positions in (0, 61, 100):
        with pytest.raises(ModelError):
            model.keep_context(positions)
    assert model.context_positions == 60
    assert model.max_seconds == 1.2


# --- any sequence ----------------------------------------------------------------------------------------------------
def useful_ranks(layer: Layer, name: str) -> int:
    """The greatest rank that does not make a matrix bigger than it is now; 0 if there is none."""
    matrix = layer.matrix(name)
    if isinstance(matrix, FactoredLinear):
        return min(matrix.rank, matrix.in_features, matrix.out_features)
    total = matrix.in_features + matrix.out_features
    return (matrix.in_features * matrix.out_features) // total if total else 0


def random_edit(model: Model, draw: Callable[[st.SearchStrategy], object]) -> None:  # type: ignore[type-arg]
    def some(of: tuple[int, ...], least: int = 0) -> list[int]:
        return sorted(draw(st.sets(st.sampled_from(of), min_size=least))) if of else []  # type: ignore[arg-type]

    layer = draw(st.sampled_from(model.layers))
    assert isinstance(layer, Layer)
    kind = draw(st.sampled_from(["heads", "units", "layers", "factor", "context"]))
    if kind == "heads":
        model.keep_heads(layer.number, some(layer.heads))
    elif kind == "units":
        model.keep_units(layer.number, some(layer.units[:: draw(st.integers(1, 3))]))  # type: ignore[misc]
    elif kind == "layers":
        model.keep_layers(some(tuple(each.number for each in model.layers), least=1))
    elif kind == "context" and model.context_positions is not None:
        model.keep_context(draw(st.integers(10, model.context_positions)))  # type: ignore[arg-type]
    elif kind == "factor":
        name = draw(st.sampled_from([name for name in MATRICES if useful_ranks(layer, name)] or [""]))
        if name:
            model.factor(layer.number, name, draw(st.integers(1, useful_ranks(layer, name))))  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["hubert", "wavlm", "whisper"])
@settings(max_examples=12, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_after_any_edits_the_checkpoint_rebuilds_bit_equal_and_the_cost_has_never_grown(
    family: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, folder = tiny(family), tmp_path_factory.mktemp("checkpoint")
    before = cost.measure(model)
    for _ in range(data.draw(st.integers(1, 6))):
        random_edit(model, data.draw)
        after = cost.measure(model)
        assert after.parameters.total <= before.parameters.total
        assert after.macs.total <= before.macs.total
        before = after
    save(model, folder)
    rebuilt = load(folder)
    inputs = example(model)
    assert_same(says(rebuilt, inputs), says(model, inputs), tolerance=0)
    assert [(layer.number, layer.heads, layer.units) for layer in rebuilt.layers] == [
        (layer.number, layer.heads, layer.units) for layer in model.layers
    ]
    assert cost.measure(rebuilt) == before


def test_edits_can_go_on_after_a_rebuild(tmp_path: Path) -> None:
    """A second round counts heads from the first one's original numbers, not from what was left."""
    model = tiny("wavlm")
    model.keep_layers([1, 2])
    model.keep_heads(2, [0, 2, 3])
    save(model, tmp_path / "first")
    rebuilt = load(tmp_path / "first")
    for each in (model, rebuilt):
        each.keep_heads(2, [2])
        each.keep_units(1, range(20, 30))
    save(rebuilt, tmp_path / "second")
    inputs = example(model)
    assert_same(says(load(tmp_path / "second"), inputs), says(model, inputs), tolerance=0)
