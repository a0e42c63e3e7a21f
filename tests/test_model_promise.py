"""The central promise: a compressed model says what the library's own dense module says with the same things taken away.

Columns zeroed for heads and units, matrices multiplied out for low rank, a shorter stack for layers, a shorter
position table for context. The references below are transformers modules that edgecompress has never touched.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

from edgecompress import DropLayers, Factorize, PruneFfn, PruneHeads, PruneWeights, TrimContext
from edgecompress.model import Model
from edgecompress.model.layer import ATTENTION_MATRICES, FFN_MATRICES
from edgecompress.model.linear import FactoredLinear, dense_weight
from edgecompress.techniques import Context, Technique, compress
from edgecompress.techniques.targets import Target
from tests.library import (
    assert_differ,
    assert_same,
    library_network,
    matrix_of,
    ours,
    says,
    with_fewer_layers,
    with_less_context,
)
from tests.models import (
    FAMILIES,
    HEADS,
    LAYERS,
    OTHER_FAMILIES,
    OTHER_NAMES,
    OTHER_VARIANTS,
    UNITS,
    VARIANT_NAMES,
    VARIANTS,
    clips_of,
    example,
    filled_mask,
)

every_variant = pytest.mark.parametrize(
    ("family", "variant"), [*VARIANTS, *OTHER_VARIANTS], ids=[*VARIANT_NAMES, *OTHER_NAMES]
)
waveform_variant = pytest.mark.parametrize(
    ("family", "variant"), [each for each in VARIANTS if each[0] != "whisper"], ids=VARIANT_NAMES[:-3]
)
HEAD_WIDTH = 64 // HEADS


def calibration(model: Model) -> Context:
    return Context(clips=clips_of(model), seed=3)


@cache
def _pair(family: str, **variant: Any) -> tuple[Any, Model]:
    room = {"max_target_positions": 80} if family == "whisper" else {}  # where a score hears the decoder
    network = library_network(family, **room, **variant)
    return network, ours(network)


def pair(family: str, variant: dict[str, Any]) -> tuple[Any, Model]:
    """The library's network of a variant, which no test changes, and our model of it, which is the test's own."""
    network, model = _pair(family, **variant)
    return network, model.clone()


def columns_gone(model: Model, number: int, name: str) -> list[int]:
    """Original input columns of ``out_proj`` or ``down`` that a model has lost."""
    layer = model.layer(number)
    if name == "down":
        return sorted(set(range(UNITS)) - set(layer.units))
    gone = sorted(set(range(HEADS)) - set(layer.heads))
    return [head * HEAD_WIDTH + place for head in gone for place in range(HEAD_WIDTH)]


@torch.no_grad()
def zeroed(network: Any, model: Model, means: dict[tuple[int, str], torch.Tensor] | None = None) -> Any:
    """The library's network with the columns that ``model`` has lost set to zero; ``means`` go into the bias first."""
    twin = copy.deepcopy(network)
    for number in range(LAYERS):
        for name in ("out_proj", "down"):
            matrix, gone = matrix_of(twin, number, name), columns_gone(model, number, name)
            if means is not None and (number, name) in means:
                matrix.bias += matrix.weight[:, gone] @ means[number, name][gone]
            matrix.weight[:, gone] = 0
    return twin


@torch.no_grad()
def mean_inputs(model: Model, name: str) -> dict[tuple[int, str], torch.Tensor]:
    """What goes into a matrix of each layer on average over the frames that the calibration clips fill."""
    filled: list[int | None] = [None]
    seen: dict[tuple[int, str], list[torch.Tensor]] = {}

    def watch(key: tuple[int, str]) -> Any:
        return lambda module, args: seen.setdefault(key, []).append(args[0][0, : filled[0]])

    hooks = [layer.matrix(name).register_forward_pre_hook(watch((layer.number, name))) for layer in model.layers]
    for clip in clips_of(model):
        filled[0] = model.filled_frames(clip)
        model.encode(model.features(clip))
    for hook in hooks:
        hook.remove()
    return {key: torch.cat(frames).mean(0) for key, frames in seen.items()}


WITHOUT_MEANS: dict[str, list[Technique]] = {
    "heads by l1": [PruneHeads(ratio=0.5)],
    "heads by first order": [PruneHeads(ratio=0.5, score="first_order", scope="global")],
    "units by l1, globally": [PruneFfn(ratio=0.5, scope="global")],
    "units by first order": [PruneFfn(ratio=0.5, score="first_order")],
    "all heads": [PruneHeads(ratio=1)],
    "all units": [PruneFfn(ratio=1)],
    "all of both": [PruneHeads(ratio=1), PruneFfn(ratio=1)],
    "heads in rounds": [PruneHeads(rounds=(0.25, 0.6), score="first_order", scope="global")],
    "units in rounds to a target": [PruneFfn(target=Target(parameters=0.93), rounds=2)],
    "both to a target in MACs": [PruneHeads(ratio=0.25), PruneFfn(target=Target(macs=0.91), scope="global")],
    "two rounds of both": [PruneHeads(ratio=0.25), PruneFfn(ratio=0.2), PruneHeads(ratio=0.34), PruneFfn(ratio=0.5)],
}


@pytest.mark.parametrize("techniques", WITHOUT_MEANS.values(), ids=WITHOUT_MEANS.keys())
@every_variant
def test_a_sliced_model_is_the_dense_one_with_those_columns_zeroed(
    family: str, variant: dict[str, Any], techniques: Sequence[Technique]
) -> None:
    network, model = pair(family, variant)
    inputs = example(model, batch=2, length={"whisper": None, "bert": 12}.get(family, 5000))
    dense = says(model, inputs)
    compress(model, techniques, calibration(model))
    said = says(model, inputs)
    assert_same(said, says(zeroed(network, model), inputs))
    assert_differ(said, dense)


@pytest.mark.parametrize(("score", "ratio"), [("first_order", 0.5), ("activation", 0.5), ("l1", 1.0)])
@pytest.mark.parametrize("kind", ["heads", "units"])
@pytest.mark.parametrize("family", [*FAMILIES, *OTHER_FAMILIES])
def test_with_compensation_the_mean_of_what_went_is_in_the_bias(
    family: str, kind: str, score: Any, ratio: float
) -> None:
    network, model = pair(family, {"head": "ForConditionalGeneration"} if family == "whisper" else {})
    means = mean_inputs(model, "out_proj" if kind == "heads" else "down")
    technique = PruneHeads if kind == "heads" else PruneFfn
    compress(model, [technique(ratio=ratio, score=score, compensate=True)], calibration(model))
    inputs = example(model, batch=2)
    said = says(model, inputs)
    assert_same(said, says(zeroed(network, model, means), inputs))
    assert_differ(said, says(zeroed(network, model), inputs))


@every_variant
def test_score_activation_compensates_unless_told_otherwise(family: str, variant: dict[str, Any]) -> None:
    network, model = pair(family, variant)
    means = mean_inputs(model, "out_proj")
    inputs = example(model)
    compress(model, [PruneHeads(ratio=0.5, score="activation")], calibration(model))
    assert_same(says(model, inputs), says(zeroed(network, model, means), inputs))
    plain = pair(family, variant)[1]
    compress(plain, [PruneHeads(ratio=0.5, score="activation", compensate=False)], calibration(plain))
    assert_same(says(plain, inputs), says(zeroed(network, plain), inputs))
    assert [layer.heads for layer in plain.layers] == [layer.heads for layer in model.layers]


@waveform_variant
def test_a_mask_still_means_the_same_after_slicing(family: str, variant: dict[str, Any]) -> None:
    network, model = pair(family, variant)
    compress(model, [PruneHeads(ratio=0.5), PruneFfn(ratio=0.5)])
    mask = filled_mask(model, 6000, [3000, 6000])
    inputs = example(model, batch=2, length=6000)
    theirs = says(zeroed(network, model), inputs, attention_mask=mask)
    assert_same(says(model, inputs, attention_mask=mask), theirs)


@pytest.mark.parametrize("by", ["weights", "activations"])
@every_variant
def test_a_factored_model_is_the_dense_one_with_the_products(family: str, variant: dict[str, Any], by: Any) -> None:
    network, model = pair(family, variant)
    compress(model, [Factorize(rank=6, by=by, matrices="all")], calibration(model))
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for layer in model.layers:
            for name in (*ATTENTION_MATRICES, *FFN_MATRICES):
                mine, theirs = layer.matrix(name), matrix_of(twin, layer.number, name)
                assert isinstance(mine, FactoredLinear)
                assert mine.rank == 6
                theirs.weight.copy_(dense_weight(mine))
                if by == "activations" and theirs.bias is not None:
                    assert mine.bias is not None
                    theirs.bias.copy_(mine.bias)
    inputs = example(model)
    said = says(model, inputs)
    assert_same(said, says(twin, inputs))
    assert_differ(said, says(network, inputs))


@pytest.mark.parametrize("gone", [(0,), (1, 2)])
@every_variant
def test_a_model_without_a_layer_is_the_librarys_with_a_shorter_stack(
    family: str, variant: dict[str, Any], gone: tuple[int, ...]
) -> None:
    network, model = pair(family, variant)
    compress(model, [DropLayers(layers=gone)])
    inputs = example(model)
    kept = [number for number in range(LAYERS) if number not in gone]
    assert_same(says(model, inputs), says(with_fewer_layers(network, kept), inputs))
    assert len(model.stack) == len(model.layers) == len(kept)


@pytest.mark.parametrize("head", ["Model", "ForConditionalGeneration", "ForAudioClassification"])
def test_a_trimmed_whisper_is_the_librarys_with_a_shorter_position_table(head: str) -> None:
    network = library_network("whisper", head=head)
    model = ours(network)
    steps = compress(model, [TrimContext(seconds=0.8)])
    inputs = example(model)
    assert inputs.shape[-1] == 80
    assert_same(says(model, inputs), says(with_less_context(network, 40), inputs))
    assert steps[0].notes == ["audio beyond 0.8 s is cut off"]


@every_variant
def test_zeroed_weights_are_the_dense_model_with_the_same_zeros(family: str, variant: dict[str, Any]) -> None:
    network, model = pair(family, variant)
    compress(model, [PruneWeights(ratio=0.4)])
    twin = copy.deepcopy(network)
    names = [(number, name) for number in range(LAYERS) for name in (*ATTENTION_MATRICES, *FFN_MATRICES)]
    tensors = [value for number, name in names for value in matrix_of(twin, number, name).parameters()]
    with torch.no_grad():
        threshold = torch.cat([value.abs().flatten() for value in tensors]).quantile(0.4)
        for value in tensors:
            value[value.abs() < threshold] = 0
    inputs = example(model)
    assert_same(says(model, inputs), says(twin, inputs))


@pytest.mark.parametrize("family", [*FAMILIES, *OTHER_FAMILIES])
def test_all_techniques_in_a_row_are_all_their_references_in_a_row(family: str) -> None:
    variant = {"stable": True} if family in ("hubert", "wav2vec2", "wavlm") else {}
    network, model = pair(family, variant)
    steps: list[Technique] = [PruneHeads(ratio=0.5), PruneFfn(ratio=0.25), Factorize(rank=20), DropLayers(layers=(0,))]
    compress(model, steps)
    sliced = pair(family, variant)[1]
    compress(sliced, steps[:2])
    twin = zeroed(network, sliced)
    with torch.no_grad():
        for layer in model.layers:
            for name in FFN_MATRICES:
                matrix_of(twin, layer.number, name).weight.copy_(scattered(model, layer.number, name))
    inputs = example(model)
    assert_same(says(model, inputs), says(with_fewer_layers(twin, [1, 2]), inputs))


@torch.no_grad()
def scattered(model: Model, number: int, name: str) -> torch.Tensor:
    """A feed-forward matrix of what is left, in its original place within zeros."""
    layer = model.layer(number)
    small = dense_weight(layer.matrix(name))
    full = torch.zeros((UNITS, 64) if name == "up" else (64, UNITS))
    if name == "up":
        full[list(layer.units)] = small
    else:
        full[:, list(layer.units)] = small
    return full
