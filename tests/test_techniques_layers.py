"""Dropping layers that do least: by how little they turn their input, and by what is lost without them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from edgecompress import DropLayers, TrimContext, cost
from edgecompress.errors import TechniqueError
from edgecompress.model import Model
from edgecompress.techniques import Context, compress, needs_clips
from edgecompress.techniques.skipping import effects, final_states, influences, skipped
from tests.library import assert_same, says
from tests.models import FAMILIES, LAYERS, example, noise_clip, tiny

CLIPS = [noise_clip(seconds, seed) for seed, seconds in enumerate((0.4, 0.7))]


def quiet(model: Model, number: int, gain: float = 1e-3) -> Model:
    """A model one layer of which adds next to nothing to its input."""
    layer = model.layer(number)
    with torch.no_grad():
        for name in ("out_proj", "down"):
            for parameter in layer.matrix(name).parameters():
                parameter.mul_(gain)
    return model


def left(model: Model) -> list[int]:
    return [layer.number for layer in model.layers]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"by": "similarity"},
        {"by": "similarity", "layers": (1,), "count": 1},
        {"by": "effect", "count": 1, "ratio": 0.5},
        {"by": "effect", "count": 0},
        {"by": "effect", "rounds": (0.5, 0.2)},
        {"by": "position", "count": 1},
        {"layers": (1,), "ratio": 0.5},
        {"layers": (1,), "by": "astrology"},
    ],
)
def test_amounts_that_contradict_each_other_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DropLayers(**fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_influence_of_a_layer_is_one_minus_the_cosine_of_its_input_and_output(family: str) -> None:
    model = tiny(family)
    found = influences(model, CLIPS)
    states = [model.hidden_states(model.features(clip)) for clip in CLIPS]
    for number in range(LAYERS - 1):  # the last state of Whisper is that after the final norm
        cosines = []
        for clip, state in zip(CLIPS, states, strict=True):
            frames = model.filled_frames(clip)
            one, other = (state[i][0, :frames].detach().double().numpy() for i in (number, number + 1))
            cosines += list((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1))
        assert found[number] == pytest.approx(1 - np.mean(cosines), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_is_skipped_is_a_layer_that_is_not_there(family: str) -> None:
    model = tiny(family)
    for number in range(LAYERS):
        twin = model.clone()
        twin.keep_layers([other for other in range(LAYERS) if other != number])
        with skipped(model.layer(number)), torch.no_grad():
            ours = model.encode(example(model))
        assert_same({"out": ours}, {"out": twin.encode(example(model)).detach()})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_effect_of_a_layer_is_the_relative_error_without_it(family: str) -> None:
    model = tiny(family)
    wanted = final_states(model, CLIPS)
    found = effects(model, CLIPS, wanted)
    for number in range(LAYERS):
        twin = model.clone()
        compress(twin, [DropLayers(layers=(number,))])
        lost = torch.cat(final_states(twin, CLIPS)) - torch.cat(wanted)
        assert found[number] == pytest.approx(float(lost.norm() / torch.cat(wanted).norm()), rel=1e-4)


@pytest.mark.parametrize("by", ["similarity", "effect"])
@pytest.mark.parametrize("number", range(LAYERS))
def test_a_layer_that_does_next_to_nothing_is_the_first_to_go(by: Any, number: int) -> None:
    model = quiet(tiny("whisper"), number)  # pre-norm: the residual stream goes through unchanged
    before = says(model, example(model))["last_hidden_state"]
    step = compress(model, [DropLayers(by=by, count=1)], Context(clips=CLIPS))[0]
    assert left(model) == [other for other in range(LAYERS) if other != number]
    assert list(step.rounds[0]["removed"]["layers"]) == [str(number)]
    assert f"dropped layer {number} (0.0" in step.notes[0]
    assert_same({"out": says(model, example(model))["last_hidden_state"]}, {"out": before}, tolerance=2e-2)


def test_layers_are_measured_again_after_each_that_goes() -> None:
    """Two layers that undo each other: each alone matters much, and once one is gone the other does harm."""
    model = tiny("whisper")
    once = effects(model, CLIPS, final_states(model, CLIPS))
    context = Context(clips=CLIPS)
    wanted = final_states(model, CLIPS)
    compress(model, [DropLayers(by="effect", count=2)], context)
    first = min(once, key=lambda number: once[number])
    twin = tiny("whisper")
    twin.keep_layers([number for number in range(LAYERS) if number != first])
    again = effects(twin, CLIPS, wanted)
    assert set(left(model)) == set(range(LAYERS)) - {first, min(again, key=lambda number: again[number])}


def test_what_fills_no_frame_is_not_listened_to() -> None:
    model = tiny("whisper")
    with torch.no_grad():
        model.encoder_module.embed_positions.weight[40:] += 100  # positions that 0.7 s of audio does not fill
    other = tiny("whisper")
    assert influences(model, CLIPS) != influences(other, CLIPS)  # attention looks there
    shorter = [tiny("whisper"), model]
    for one in shorter:
        compress(one, [TrimContext(seconds=0.7)])
    assert influences(shorter[0], CLIPS) == influences(shorter[1], CLIPS)


@pytest.mark.parametrize("by", ["similarity", "effect"])
def test_a_target_is_reached_and_how_near_is_said(by: Any) -> None:
    model = tiny("hubert")
    dense = cost.measure(model).parameters.total
    layer = sum(parameter.numel() for parameter in model.layers[1].module.parameters())
    step = compress(model, [DropLayers(by=by, target={"parameters": dense - layer})], Context(clips=CLIPS))[0]
    assert step.after.parameters.total == dense - layer
    assert step.notes[-1] == f"{dense - layer:,} parameters: exactly the target"
    with pytest.raises(TechniqueError, match="one layer is left"):
        compress(model, [DropLayers(by=by, target={"macs": 0.01})], Context(clips=CLIPS))


def test_a_ratio_and_rounds_count_layers_from_the_beginning() -> None:
    model, other = tiny("hubert", num_hidden_layers=6), tiny("hubert", num_hidden_layers=6)
    step = compress(model, [DropLayers(by="similarity", rounds=(1 / 6, 0.5))], Context(clips=CLIPS))[0]
    assert [len(entry["removed"]["layers"]) for entry in step.rounds] == [1, 2]
    compress(other, [DropLayers(by="similarity", ratio=0.5)], Context(clips=CLIPS))
    assert left(model) == left(other)
    with pytest.raises(TechniqueError, match="leaves no encoder"):
        compress(model, [DropLayers(by="similarity", ratio=1)], Context(clips=CLIPS))


def test_named_layers_go_in_rounds_in_the_order_they_are_named() -> None:
    model = tiny("wavlm")
    step = compress(model, [DropLayers(layers=(2, 0), rounds=2)])[0]
    assert [entry["removed"]["layers"] for entry in step.rounds] == [[2], [0]]
    assert left(model) == [1]


def test_only_what_is_measured_needs_audio() -> None:
    assert not needs_clips([DropLayers(layers=(0,))])
    for by in ("similarity", "effect"):
        technique = DropLayers(by=by, count=1)
        assert needs_clips([technique])
        with pytest.raises(TechniqueError, match="needs calibration audio"):
            compress(tiny("hubert"), [technique])


def test_the_effect_is_measured_against_the_uncompressed_source() -> None:
    source, model = tiny("whisper"), quiet(tiny("whisper"), 0)
    compress(model, [TrimContext(seconds=1)])
    context = Context(clips=CLIPS, source=source)
    compress(model, [DropLayers(by="effect", count=1)], context)
    twin = quiet(tiny("whisper"), 0)
    compress(twin, [TrimContext(seconds=1)])
    wanted = effects(twin, CLIPS, final_states(source, CLIPS))
    assert set(left(model)) == set(range(LAYERS)) - {min(wanted, key=lambda number: wanted[number])}
