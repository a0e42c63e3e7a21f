"""Weights: the smallest become real zeros, and matrices become products of low rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edgecompress import Factorize, PruneFfn, PruneHeads, PruneWeights, cost
from edgecompress.errors import TechniqueError
from edgecompress.model import Model, load, save
from edgecompress.model.layer import ATTENTION_MATRICES, FFN_MATRICES, put
from edgecompress.model.linear import FactoredLinear, dense_weight
from edgecompress.techniques import Context, compress
from edgecompress.techniques.factorize import break_even
from edgecompress.techniques.sparsity import smallest_of_all
from edgecompress.techniques.spectra import Spectra
from edgecompress.techniques.statistics import moments
from tests.library import assert_same, says
from tests.models import FAMILIES, HEADS, LAYERS, UNITS, example, noise_clip, prunable, tiny

CLIPS = [noise_clip(0.4, seed) for seed in range(3)]


def by_activations(model: Model, context: Context, places: Any, rank: int) -> None:
    """Factor only these matrices, fitted to the calibration audio."""
    spectra = Spectra.by("activations", model, context, "test", places)
    for place in spectra.places:
        spectra.put(model, place, rank)


def prunable_count(model: Model) -> int:
    return sum(tensor.numel() for tensor in prunable(model))


# --- prune_weights ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ratio", [0.001, 0.3, 0.5, 0.7, 0.999])
def test_exactly_the_asked_share_becomes_zero_and_the_smallest_ones_do(ratio: float) -> None:
    model = tiny("hubert")
    before = [tensor.detach().clone() for tensor in prunable(model)]
    untouched = {name: value.clone() for name, value in model.state_dict().items() if "norm" in name or "conv" in name}
    compress(model, [PruneWeights(ratio=ratio)])
    zeros = torch.cat([(tensor == 0).flatten() for tensor in prunable(model)])
    sizes = torch.cat([tensor.abs().flatten() for tensor in before])
    assert int(zeros.sum()) == round(ratio * zeros.numel())
    assert sizes[zeros].max() <= sizes[~zeros].min()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in untouched.items())


def test_biases_compete_with_weights_and_layers_with_each_other() -> None:
    model = tiny("hubert")
    with torch.no_grad():
        for name in (*ATTENTION_MATRICES, *FFN_MATRICES):
            model.layers[2].matrix(name).weight.mul_(0.01)  # type: ignore[union-attr, operator]
            model.layers[0].matrix(name).bias.mul_(1e-4)  # type: ignore[union-attr]
    compress(model, [PruneWeights(ratio=0.34)])
    assert not any(model.layers[0].matrix(name).bias.any() for name in ATTENTION_MATRICES)  # type: ignore[union-attr]
    shares = [float((dense_weight(layer.matrix("up")) == 0).float().mean()) for layer in model.layers]
    assert shares[2] > 0.95 > 0.05 > shares[0]


def test_all_attention_and_feed_forward_weights_and_biases_are_prunable() -> None:
    width = HEADS * 16
    assert prunable_count(tiny("hubert")) == LAYERS * (4 * (width**2 + width) + 2 * UNITS * width + UNITS + width)
    assert prunable_count(tiny("whisper")) == prunable_count(tiny("hubert")) - LAYERS * width  # its keys have no bias


def test_zeros_survive_saving_and_loading(tmp_path: Path) -> None:
    model = tiny("data2vec-audio")
    compress(model, [PruneHeads(ratio=0.25), Factorize(rank=10), PruneWeights(ratio=0.6)])
    save(model, tmp_path)
    rebuilt = load(tmp_path)
    assert cost.parameters(rebuilt) == cost.parameters(model)
    assert sum(int((tensor == 0).sum()) for tensor in prunable(rebuilt)) == round(0.6 * prunable_count(model))


def test_pruned_weights_stay_pruned_at_a_higher_share() -> None:
    model = tiny("hubert")
    compress(model, [PruneWeights(ratio=0.3)])
    first = [tensor == 0 for tensor in prunable(model)]
    compress(model, [PruneWeights(ratio=0.6)])
    assert all(bool((tensor == 0)[mask].all()) for tensor, mask in zip(prunable(model), first, strict=True))


def test_of_equal_weights_the_first_go_until_the_count_is_met() -> None:
    def smallest(values: torch.Tensor, count: int) -> list[bool]:
        (mask,) = smallest_of_all([values], count)
        return mask.tolist()

    assert smallest(torch.tensor([1.0, 0.5, 0.5, 0.5, 2.0]), 2) == [False, True, True, False, False]
    assert smallest(torch.zeros(4), 3) == [True, True, True, False]
    assert smallest(torch.ones(3), 0) == [False] * 3


# --- factorize -------------------------------------------------------------------------------------------------------
def test_a_rank_that_would_grow_the_model_is_refused_with_the_break_even() -> None:
    assert break_even(768, 768) == 383  # at 384 it would be as big as before
    assert break_even(768, 3072) == 614
    model = tiny("hubert")
    limit = break_even(64, UNITS)
    assert 64 * UNITS > limit * (64 + UNITS) >= 64 * UNITS - (64 + UNITS)
    with pytest.raises(TechniqueError, match=f"rank {limit + 1} would grow up of layer 0") as caught:
        compress(model, [Factorize(rank=limit + 1)])
    assert f"rank {limit}" in caught.value.hint
    assert model.edits == ()
    step = compress(model, [Factorize(rank=limit)])[0]
    assert step.after.parameters.total < step.before.parameters.total


def test_only_the_matrices_that_were_named_are_factored() -> None:
    for matrices, names in (("ffn", FFN_MATRICES), ("attention", ATTENTION_MATRICES)):
        model = tiny("wavlm")
        compress(model, [Factorize(rank=5, matrices=matrices)])  # type: ignore[arg-type]
        for layer in model.layers:
            for name in (*FFN_MATRICES, *ATTENTION_MATRICES):
                assert isinstance(layer.matrix(name), FactoredLinear) == (name in names)


def test_low_rank_by_weights_is_the_best_product_of_that_rank() -> None:
    model = tiny("hubert")
    dense = dense_weight(model.layers[0].up).detach().double()
    model.factor(0, "up", 9)
    error = (dense - dense_weight(model.layers[0].up).double()).norm()
    assert float(error.detach()) == pytest.approx(float(torch.linalg.svdvals(dense)[9:].norm()), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["up", "down", "q_proj", "k_proj", "out_proj"])
def test_low_rank_by_activations_is_exact_at_full_rank(family: str, name: str) -> None:
    model = tiny(family)
    inputs = example(model)
    before = says(model, inputs)
    layer = model.layers[1]
    rank = layer.matrix(name).out_features if name != "up" else 64
    if name == "up":
        model.keep_units(1, range(64))
        before = says(model, inputs)
    by_activations(model, Context(clips=CLIPS), [(layer, name)], rank)
    assert_same(says(model, inputs), before)


@pytest.mark.parametrize("family", ["hubert", "wavlm", "whisper"])
@pytest.mark.parametrize("name", [*ATTENTION_MATRICES, *FFN_MATRICES])
def test_on_calibration_audio_activations_never_do_worse_than_weights(family: str, name: str) -> None:
    model = tiny(family)
    if family == "whisper":
        with torch.no_grad():  # its keys have no bias that could hold this
            model.layers[1].module.self_attn_layer_norm.bias.add_(3)  # type: ignore[union-attr, operator]
    layer, frames = model.layers[1], []
    hook = layer.matrix(name).register_forward_pre_hook(lambda module, args: frames.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for inputs in model.batches(CLIPS):
            model.encode(inputs)
        hook.remove()
        heard = torch.cat(frames)
        wanted = layer.matrix(name)(heard)
        for rank in (2, 8, 24):
            errors = {}
            for by in ("weights", "activations"):
                twin = model.clone()
                if by == "weights":
                    twin.factor(1, name, rank)  # type: ignore[arg-type]
                else:
                    by_activations(twin, Context(clips=CLIPS), [(twin.layers[1], name)], rank)
                difference = twin.layers[1].matrix(name)(heard) - wanted
                if layer.matrix(name).bias is None:
                    difference -= difference.mean(0)  # what is added to all keys alike cancels in the softmax
                errors[by] = float(difference.norm())
            assert errors["activations"] <= errors["weights"] * (1 + 1e-4)


def test_a_layer_that_was_emptied_is_left_out_of_factoring() -> None:
    model = tiny("hubert")
    compress(model, [PruneFfn(ratio=1), Factorize(rank=6, matrices="all")])
    assert isinstance(model.layers[0].matrix("q_proj"), FactoredLinear)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [PruneHeads, PruneFfn])
def test_pruning_with_compensation_works_on_factored_matrices(family: str, kind: Any) -> None:
    """The bias of a factored map is that of its second matrix, and the mean goes there."""
    model = tiny(family)
    compress(model, [Factorize(rank=12, matrices="all")])
    dense = model.clone()
    name = "out_proj" if kind is PruneHeads else "down"
    target = (dense.layers[-1], name)
    mean = moments(dense, Context(clips=CLIPS), "test", [target])[LAYERS - 1, name].mean
    compress(model, [kind(ratio=1, compensate=True)], Context(clips=CLIPS))
    last, old = model.layers[-1].matrix(name), dense.layers[-1].matrix(name)
    assert old.bias is not None
    assert torch.allclose(last.bias, old.bias + (dense_weight(old).double() @ mean).float(), atol=1e-5)  # type: ignore[arg-type]


def test_put_fills_both_matrices_and_the_bias() -> None:
    linear = FactoredLinear(4, 3, 2, bias=True)
    first, second, bias = torch.randn(2, 4), torch.randn(3, 2), torch.randn(3)
    put(linear, second, first, bias)
    x = torch.randn(5, 4)
    assert torch.allclose(linear(x), x @ (second @ first).T + bias, atol=1e-6)


def test_all_matrices_are_fitted_to_what_the_dense_model_heard() -> None:
    """Not to what an earlier matrix, already factored, has lost."""
    model = tiny("hubert")
    one = model.clone()
    compress(model, [Factorize(rank=9, by="activations", matrices="all")], Context(clips=CLIPS))
    by_activations(one, Context(clips=CLIPS), [(one.layers[2], "down")], 9)
    ours, alone = model.layers[2].down, one.layers[2].down
    assert torch.allclose(dense_weight(ours), dense_weight(alone), atol=1e-5)
    assert ours.bias is not None
    assert torch.allclose(ours.bias, alone.bias, atol=1e-5)  # type: ignore[arg-type]
