"""Scores of heads and units, against references written out the long way."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgecompress import PruneFfn, PruneHeads
from edgecompress.model import Model
from edgecompress.techniques import Context, compress
from edgecompress.techniques.losses import proxy_loss
from edgecompress.techniques.prune_ffn import unit_scores
from edgecompress.techniques.prune_heads import head_scores
from edgecompress.techniques.statistics import Moments, first_order, moments
from tests.library import GENERATION, assert_same, library_network, ours, says
from tests.models import FAMILIES, HEADS, HIDDEN, LAYERS, UNITS, example, noise_clip, tiny

WIDTH = HIDDEN // HEADS
CLIPS = [noise_clip(seconds, seed) for seed, seconds in enumerate((0.3, 0.2))]


def scores_of(model: Model, kind: str, score: str, clips: Any = CLIPS) -> dict[int, torch.Tensor]:
    context = Context(clips=clips)
    matrix, function = ("out_proj", head_scores) if kind == "heads" else ("down", unit_scores)
    targets = [(layer, matrix) for layer in model.layers]
    seen = moments(model, context, "test", targets, joint=kind == "heads") if score == "activation" else {}
    return function(model, model.layers, score, context, seen)


def inputs_of(model: Model, matrix: str) -> dict[int, torch.Tensor]:
    """All calibration frames that go into a matrix of each layer: (frames, width)."""
    seen: dict[int, list[torch.Tensor]] = {layer.number: [] for layer in model.layers}

    def watch(number: int) -> Any:
        return lambda module, args: seen[number].append(args[0].detach().flatten(0, -2))

    hooks = [layer.matrix(matrix).register_forward_pre_hook(watch(layer.number)) for layer in model.layers]
    with torch.no_grad():
        for clip in CLIPS:
            model.encode(model.features(clip))
    for hook in hooks:
        hook.remove()
    return {number: torch.cat(frames).double() for number, frames in seen.items()}


# --- l1 --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_the_l1_score_of_a_head_sums_its_rows_of_query_key_and_value_and_their_biases(family: str) -> None:
    model = tiny(family)
    found = scores_of(model, "heads", "l1")
    for layer in model.layers:
        for head in range(HEADS):
            total = 0.0
            for name in ("q_proj", "k_proj", "v_proj"):
                linear = layer.matrix(name)
                assert isinstance(linear, nn.Linear)
                for row in range(head * WIDTH, (head + 1) * WIDTH):
                    total += sum(abs(weight) for weight in linear.weight[row].tolist())
                    total += abs(linear.bias[row].item()) if linear.bias is not None else 0.0
            assert float(found[layer.number][head]) == pytest.approx(total, rel=1e-6)


def test_the_l1_score_of_a_head_does_not_look_at_its_output() -> None:
    model = tiny("hubert")
    before = scores_of(model, "heads", "l1")
    with torch.no_grad():
        model.layers[0].matrix("out_proj").weight.mul_(100)  # type: ignore[union-attr, operator]
    assert all(torch.equal(before[number], score) for number, score in scores_of(model, "heads", "l1").items())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_l1_score_of_a_unit_sums_its_row_its_bias_and_its_column(family: str) -> None:
    model = tiny(family)
    found = scores_of(model, "units", "l1")
    for layer in model.layers:
        up, down = layer.up, layer.down
        assert isinstance(up, nn.Linear)
        assert isinstance(down, nn.Linear)
        for unit in (0, 17, UNITS - 1):
            row, column = up.weight[unit].tolist(), down.weight[:, unit].tolist()
            total = sum(map(abs, row)) + abs(up.bias[unit].item()) + sum(map(abs, column))
            assert float(found[layer.number][unit]) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_heads_and_units_of_lowest_score_are_those_that_go(family: str) -> None:
    model = tiny(family)
    heads, units = scores_of(model, "heads", "l1"), scores_of(model, "units", "l1")
    compress(model, [PruneHeads(ratio=0.5), PruneFfn(ratio=0.25)])
    for layer in model.layers:
        assert set(layer.heads) == set(heads[layer.number].topk(HEADS // 2).indices.tolist())
        assert set(layer.units) == set(units[layer.number].topk(UNITS - UNITS // 4).indices.tolist())


# --- first order -----------------------------------------------------------------------------------------------------
def brute_force(model: Model, matrix: str, group: int, width: int, clip: np.ndarray, direction: int) -> torch.Tensor:
    """|d loss / d scale| of a group of a matrix's inputs, frame by frame and by finite differences, summed: (layers,)."""
    inputs = model.features(clip)
    frames = (clip.size - 400) // 320 + 1
    total = torch.zeros(LAYERS, dtype=torch.float64)
    step = 2e-2

    def loss(layer: int, frame: int, change: float) -> float:
        def scale(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            changed = args[0].clone()
            changed[:, frame, group * width : (group + 1) * width] *= 1 + change
            return (changed,)

        hook = model.layers[layer].matrix(matrix).register_forward_pre_hook(scale)
        hidden = model.encode(inputs)
        hook.remove()
        generator = torch.Generator().manual_seed(direction)
        return float((hidden.double() * torch.randn(hidden.shape, generator=generator)).sum()) / frames**0.5

    with torch.no_grad():
        for layer in range(LAYERS):
            for frame in range(frames):
                total[layer] += abs(loss(layer, frame, step) - loss(layer, frame, -step)) / (2 * step)
    return total


@pytest.mark.parametrize("family", ["hubert", "wavlm"])
def test_the_first_order_score_is_how_much_the_loss_moves_with_each_head_in_each_frame(family: str) -> None:
    model = tiny(family)
    clip = noise_clip(0.1)
    found = first_order(model, Context(clips=[clip], seed=4), "test", "out_proj", model.layers, WIDTH)
    for head in range(HEADS):
        wanted = brute_force(model, "out_proj", head, WIDTH, clip, direction=4)
        ours = torch.stack([found[number][head] for number in range(LAYERS)])
        assert torch.allclose(ours, wanted, rtol=0.02, atol=1e-3)


def test_the_first_order_score_is_how_much_the_loss_moves_with_each_unit_in_each_frame() -> None:
    model = tiny("hubert")
    clip = noise_clip(0.1)
    found = first_order(model, Context(clips=[clip], seed=4), "test", "down", model.layers, 1)
    for unit in (0, 40, 95):
        wanted = brute_force(model, "down", unit, 1, clip, direction=4)
        ours = torch.stack([found[number][unit] for number in range(LAYERS)])
        assert torch.allclose(ours, wanted, rtol=0.02, atol=1e-3)


def test_the_first_order_score_of_an_explicitly_written_attention_is_the_same() -> None:
    """Head by head with loops, autograd on each head's context: |<context, gradient>| a frame, then summed."""
    model = tiny("hubert", head="ForCTC")
    found = first_order(model, Context(clips=CLIPS[:1]), "test", "out_proj", model.layers, WIDTH)
    contexts: dict[tuple[int, int], torch.Tensor] = {}

    class Explicit(nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number
            self.old = [model.layers[number].matrix(name) for name in ("q_proj", "k_proj", "v_proj", "out_proj")]

        def forward(self, hidden: torch.Tensor, attention_mask: None = None, **more: object) -> Any:
            total = self.old[3].bias
            for head in range(HEADS):
                rows = slice(head * WIDTH, (head + 1) * WIDTH)
                query, key, value = (hidden[0] @ each.weight[rows].T + each.bias[rows] for each in self.old[:3])  # type: ignore
                contexts[self.number, head] = torch.softmax(query @ key.T / WIDTH**0.5, dim=-1) @ value
                contexts[self.number, head].retain_grad()
                total = total + contexts[self.number, head] @ self.old[3].weight[:, rows].T  # type: ignore
            return (total[None], None, None)[: model.layers[self.number].attention.returns]

    twin = model.clone()
    for number in range(LAYERS):
        twin.encoder_module.layers[number].attention = Explicit(number)
    proxy_loss(twin, model.features(CLIPS[0]), torch.Generator()).backward()
    for (number, head), context in contexts.items():
        assert context.grad is not None
        wanted = (context * context.grad).sum(-1).abs().sum().item()
        assert float(found[number][head]) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_cannot_be_heard_has_no_first_order_score(family: str) -> None:
    model = tiny(family)
    with torch.no_grad():
        model.layers[1].matrix("out_proj").weight[:, 2 * WIDTH : 3 * WIDTH] = 0  # type: ignore[union-attr, index]
        model.layers[2].matrix("down").weight[:, 7] = 0  # type: ignore[union-attr, index]
    heads, units = scores_of(model, "heads", "first_order"), scores_of(model, "units", "first_order")
    assert (heads[1] == 0).tolist() == [False, False, True, False]
    assert torch.nonzero(units[2] == 0).flatten().tolist() == [7]


@pytest.mark.parametrize("kind", ["heads", "units"])
def test_first_order_scores_have_norm_one_in_each_layer(kind: str) -> None:
    for score in scores_of(tiny("wavlm"), kind, "first_order").values():
        assert float(score.norm()) == pytest.approx(1, abs=1e-9)


def test_scoring_leaves_weights_gradients_and_mode_as_they_were() -> None:
    model = library_whisper()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for kind in ("heads", "units"):
        for score in ("first_order", "activation"):
            scores_of(model, kind, score)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def library_whisper() -> Model:
    return ours(library_network("whisper", head="ForConditionalGeneration", max_target_positions=80))


def test_a_last_batch_that_is_smaller_is_scored_like_the_others() -> None:
    clips = [noise_clip(0.3, seed) for seed in range(5)]  # Whisper takes four at a time
    model = library_whisper()
    together = first_order(model, Context(clips=clips), "test", "out_proj", model.layers, WIDTH)
    four = first_order(model, Context(clips=clips[:4]), "test", "out_proj", model.layers, WIDTH)
    one = first_order(model, Context(clips=clips[4:]), "test", "out_proj", model.layers, WIDTH)
    for number, score in together.items():
        assert torch.allclose(score, (4 * four[number] + one[number]) / 5)


def test_a_whisper_that_says_nothing_can_still_be_scored() -> None:
    model = library_whisper()
    with torch.no_grad():
        model.network.model.decoder.layer_norm.weight.zero_()  # type: ignore[union-attr, operator]
        model.network.model.decoder.layer_norm.bias.copy_(10 * model.network.proj_out.weight[2])  # type: ignore
    silent = {**GENERATION, "begin_suppress_tokens": []}  # the end mark may be the first word
    model.origin.extra_files["generation_config.json"] = json.dumps(silent)
    score = first_order(model, Context(clips=CLIPS), "test", "out_proj", model.layers, WIDTH)
    assert all(torch.isfinite(values).all() for values in score.values())


# --- activation ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["hubert", "wavlm"])
def test_the_activation_score_of_a_head_is_the_variance_of_what_it_adds(family: str) -> None:
    model = tiny(family)
    found, heard = scores_of(model, "heads", "activation"), inputs_of(model, "out_proj")
    for layer in model.layers:
        weight = layer.matrix("out_proj").weight.detach().double()  # type: ignore[union-attr, operator]
        for head in range(HEADS):
            columns = slice(head * WIDTH, (head + 1) * WIDTH)
            added = heard[layer.number][:, columns] @ weight[:, columns].T
            variance = float(((added - added.mean(0)) ** 2).sum(1).mean())
            assert float(found[layer.number][head]) == pytest.approx(variance, rel=1e-4)


def test_the_activation_score_of_a_unit_is_its_root_mean_square_times_its_column() -> None:
    model = tiny("hubert")
    found, heard = scores_of(model, "units", "activation"), inputs_of(model, "down")
    for layer in model.layers:
        weight = layer.down.weight.detach().double()  # type: ignore[union-attr, operator]
        wanted = (heard[layer.number] ** 2).mean(0).sqrt() * (weight**2).sum(0).sqrt()
        assert torch.allclose(found[layer.number], wanted, rtol=1e-4)


def test_moments_are_those_of_all_frames_of_all_batches() -> None:
    frames = torch.randn(3, 40, 5, dtype=torch.float64) + torch.arange(5)
    flat = frames.reshape(-1, 5)
    for joint in (True, False):
        seen = Moments(joint=joint)
        seen.add(frames[:1])
        seen.add(frames[1:])
        assert torch.allclose(seen.mean, flat.mean(0))
        assert torch.allclose(seen.mean_square, (flat**2).mean(0))
        if joint:
            assert torch.allclose(seen.covariance, torch.cov(flat.T, correction=0))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_unit_that_always_says_the_same_goes_without_a_trace(family: str) -> None:
    model = tiny(family)
    with torch.no_grad():
        for layer in model.layers:
            layer.up.weight[11] = 0  # type: ignore[union-attr, index]
            layer.up.bias[11] = 0.3  # type: ignore[union-attr, index]
            layer.down.weight[:, 11] *= 0.02  # type: ignore[union-attr, index]
    inputs = example(model)
    before = says(model, inputs)
    compress(model, [PruneFfn(ratio=1 / UNITS, score="activation")], Context(clips=CLIPS))
    assert all(set(range(UNITS)) - set(layer.units) == {11} for layer in model.layers)
    assert_same(says(model, inputs), before)


def test_a_head_that_always_says_the_same_is_the_first_to_go_and_leaves_no_trace() -> None:
    model = tiny("hubert")
    with torch.no_grad():
        for layer in model.layers:
            layer.matrix("v_proj").weight[2 * WIDTH : 3 * WIDTH] = 0  # type: ignore[union-attr, index]
    inputs = example(model)
    before = says(model, inputs)
    compress(model, [PruneHeads(ratio=0.25, score="activation")], Context(clips=CLIPS))
    assert all(layer.heads == (0, 1, 3) for layer in model.layers)
    assert_same(says(model, inputs), before)


# --- scope -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("score", ["l1", "first_order", "activation"])
def test_layer_scope_takes_the_same_number_from_every_layer(score: Any) -> None:
    model = tiny("wavlm")
    compress(model, [PruneHeads(ratio=0.5, score=score), PruneFfn(ratio=0.3, score=score)], Context(clips=CLIPS))
    assert [len(layer.heads) for layer in model.layers] == [2] * LAYERS
    assert [len(layer.units) for layer in model.layers] == [UNITS - 29] * LAYERS


@pytest.mark.parametrize("score", ["l1", "first_order", "activation"])
@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.0])
def test_global_scope_keeps_the_best_of_every_layer(score: Any, ratio: float) -> None:
    model = tiny("wavlm")
    heads, units = scores_of(model, "heads", score), scores_of(model, "units", score)
    sliced = model.clone()
    compress(sliced, [PruneHeads(ratio=ratio, score=score, scope="global", compensate=False)], Context(clips=CLIPS))
    kept = [layer.heads for layer in sliced.layers]
    assert sum(map(len, kept)) == max(LAYERS, LAYERS * HEADS - int(ratio * LAYERS * HEADS + 0.5))
    assert all(int(heads[number].argmax()) in kept[number] for number in range(LAYERS))
    compress(model, [PruneFfn(ratio=ratio, score=score, scope="global")], Context(clips=CLIPS))
    assert all(int(units[layer.number].argmax()) in layer.units for layer in model.layers)


def test_global_scope_takes_from_the_layer_that_matters_least() -> None:
    model = tiny("hubert")
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj"):
            model.layers[1].matrix(name).weight[:WIDTH] *= 50  # type: ignore[union-attr, index]
    compress(model, [PruneHeads(ratio=0.25, scope="global")])
    assert [len(layer.heads) for layer in model.layers] == [4, 1, 4]  # beside one giant the others are dwarfs


@pytest.mark.parametrize("ratio", [0.01, 0.12])
def test_a_share_of_less_than_half_a_head_takes_none(ratio: float) -> None:
    model = tiny("hubert")
    compress(model, [PruneHeads(ratio=ratio)])
    assert all(layer.heads == (0, 1, 2, 3) for layer in model.layers)


def test_the_padding_of_whispers_context_is_not_looked_at() -> None:
    """Three quarters of the frames of a short clip are silence; heads chosen on silence are the wrong ones."""
    model = tiny("whisper")
    clips = [noise_clip(0.5, 1), noise_clip(0.31, 2)]
    layer = model.layers[1]
    seen = moments(model, Context(clips=clips), "test", [(layer, "out_proj")])[1, "out_proj"]
    inside: list[torch.Tensor] = []
    hook = layer.matrix("out_proj").register_forward_pre_hook(lambda module, args: inside.append(args[0].detach()))
    for clip in clips:
        model.encode(model.features(clip))
    hook.remove()
    filled = torch.cat([inside[0][0, :25], inside[1][0, :16]])  # 20 ms a frame, a started one counts
    assert seen.frames == 41
    assert torch.allclose(seen.mean, filled.double().mean(0), atol=1e-6)
    assert torch.allclose(seen.covariance, torch.cov(filled.double().T, correction=0), atol=1e-5)
