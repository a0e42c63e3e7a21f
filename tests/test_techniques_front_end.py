"""Front-end pruning: which channels go, by which score, to which rate or target, and what makes up for them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from edgecompress import cost
from edgecompress.errors import TechniqueError
from edgecompress.model import Model
from edgecompress.techniques import Context, compress
from edgecompress.techniques.channel_scores import channel_moments
from edgecompress.techniques.prune_front_end import PruneFrontEnd
from edgecompress.techniques.targets import Target
from edgecompress.training.settings import Training
from tests.library import assert_differ, assert_same, library_network, ours, says
from tests.models import example, noise_clip, tiny
from tests.test_model_channels import masked

FAMILIES = ("hubert", "wav2vec2", "wavlm", "data2vec-audio", "whisper")
CLIPS = [noise_clip(0.2, seed) for seed in range(3)]


def calibration() -> Context:
    return Context(clips=CLIPS, seed=3)


def channels(model: Model) -> list[tuple[int, ...]]:
    return [conv.channels for conv in model.front_end.convs if conv.may_lose_channels]


@pytest.mark.parametrize(("score", "scope"), [("l1", "layer"), ("first_order", "global"), ("activation", "layer")])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_front_end_is_the_dense_one_with_those_channels_silent(family: str, score: Any, scope: Any) -> None:
    network = library_network(family, **({"front_end": "layer"} if family == "wavlm" else {}))
    model = ours(network)
    compress(model, [PruneFrontEnd(ratio=0.5, score=score, scope=scope, compensate=False)], calibration())
    inputs = example(model, batch=2)
    said = says(model, inputs)
    assert_same(said, says(masked(network, model), inputs))
    assert_differ(said, says(network, inputs))
    before = 64 if family == "whisper" else 7 * 32
    assert sum(map(len, channels(model))) == before // 2
    if scope == "layer":
        assert len(set(map(len, channels(model)))) == 1


@pytest.mark.parametrize("score", ["l1", "first_order", "activation"])
def test_a_channel_that_nobody_hears_is_the_first_to_go(score: Any) -> None:
    model = tiny("hubert")
    with torch.no_grad():
        for conv in model.front_end.convs:
            conv.reader.weight[:, 5] = 0
            conv.module.weight[5] *= 1e-3
            for norm in conv.norms:
                norm.weight[5] = norm.bias[5] = 0  # type: ignore[operator]
    compress(model, [PruneFrontEnd(ratio=1 / 32, score=score)], calibration())
    assert all(5 not in left and len(left) == 31 for left in channels(model))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_with_compensation_the_mean_of_what_went_is_in_the_next_bias(family: str) -> None:
    network = library_network(family, **({} if family == "whisper" else {"conv_bias": True}))
    model, twin = ours(network), ours(copy.deepcopy(network))
    means = {number: seen.mean for number, seen in _means(model).items()}
    compress(model, [PruneFrontEnd(ratio=0.5, compensate=True)], calibration())
    for conv, whole in zip(model.front_end.convs, twin.front_end.convs, strict=True):
        if not conv.may_lose_channels:
            continue
        gone = sorted(set(whole.channels) - set(conv.channels))
        weight = whole.reader.weight if whole.reader.weight.dim() == 3 else whole.reader.weight[:, :, None]
        assert whole.reader.bias is not None
        wanted = whole.reader.bias + (weight[:, gone].sum(2).double() @ means[conv.number][gone]).float()
        left = model.front_end.convs[conv.number + 1].channels if isinstance(whole.reader, nn.Conv1d) else None
        assert conv.reader.bias is not None
        assert torch.allclose(conv.reader.bias, wanted if left is None else wanted[list(left)], atol=1e-5)


def _means(model: Model) -> Any:
    convs = [conv for conv in model.front_end.convs if conv.may_lose_channels]
    return channel_moments(model, calibration(), "test", convs)


@torch.no_grad()
def test_compensation_brings_the_next_convolution_nearer_to_what_it_said() -> None:
    distances = []
    for compensate in (False, True):
        model = tiny("whisper")
        inputs = torch.cat([model.features(clip) for clip in CLIPS])
        before = heard(model, inputs)
        compress(model, [PruneFrontEnd(ratio=0.5, compensate=compensate)], calibration())
        distances.append(float((heard(model, inputs) - before).norm()))
    assert distances[1] < 0.95 * distances[0]


def heard(model: Model, inputs: torch.Tensor) -> torch.Tensor:
    """What Whisper's second convolution says of 0.2 s, without the edges."""
    first, second = (conv.module for conv in model.front_end.convs)
    said: torch.Tensor = second(nn.functional.gelu(first(inputs)))
    return said[..., 1:9]


def test_where_no_bias_takes_the_mean_a_note_says_so() -> None:
    context = calibration()
    compress(tiny("hubert"), [PruneFrontEnd(ratio=0.5, score="activation")], context)
    assert context.notes == ["no bias takes the mean of what convolutions 0, 1, 2, 3, 4, 5 lose"]


@torch.no_grad()
def test_whispers_padding_is_not_counted() -> None:
    model = tiny("whisper")
    conv = model.front_end.convs[0]
    seen: list[torch.Tensor] = []
    handle = conv.reader.register_forward_pre_hook(lambda module, args: seen.append(args[0][0, :, :20]))
    for clip in CLIPS:  # 0.2 s: 20 of 200 mel frames
        model.encode(model.features(clip))
    handle.remove()
    assert torch.allclose(_means(model)[0].mean.float(), torch.cat(seen, 1).mean(1), atol=1e-5)


@pytest.mark.parametrize(("family", "least"), [("hubert", 7), ("whisper", 1)])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_one_channel_of_each_convolution_stays(family: str, least: int, scope: Any) -> None:
    model = tiny(family)
    compress(model, [PruneFrontEnd(ratio=1, scope=scope)])
    assert [len(left) for left in channels(model)] == [1] * least
    assert torch.isfinite(model.encode(example(model))).all()


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("family", ["hubert", "whisper"])
def test_a_target_in_macs_is_kept_and_nearly_reached(family: str, scope: Any) -> None:
    model = tiny(family)
    whole = cost.measure(model).macs
    target = 1 - 0.4 * whole.parts["front_end"] / whole.total  # 40 % of the front end goes
    (step,) = compress(model, [PruneFrontEnd(target=Target(macs=target), scope=scope)])
    assert 0.99 < step.after.macs.total / (target * whole.total) <= 1
    assert "the target" in step.notes[-1]


def test_rounds_are_cumulative_and_recovery_trains_between_them() -> None:
    model = tiny("hubert")
    recovery = Training(steps=2, batch_seconds=2, crop_seconds=1, device="cpu")
    context = Context(clips=CLIPS, source=model.clone(), seed=1)
    (step,) = compress(model, [PruneFrontEnd(rounds=(0.25, 0.5), recovery=recovery)], context)
    assert [len(left) for left in channels(model)] == [16] * 7
    assert [each["reached"] for each in context.rounds] == [0.25, 0.5]
    assert sum("trained 2 steps" in note for note in step.notes) == 2


def test_a_family_without_a_front_end_is_refused_with_a_hint() -> None:
    model = tiny("melhubert")
    with pytest.raises(TechniqueError, match="no convolutional front end") as caught:
        compress(model, [PruneFrontEnd(ratio=0.5)])
    assert caught.value.hint


def test_least_squares_is_not_offered() -> None:
    with pytest.raises(ValidationError):
        PruneFrontEnd(ratio=0.5, compensate="least_squares")  # type: ignore[arg-type]


def test_a_score_that_channels_do_not_have_is_refused() -> None:
    with pytest.raises(ValidationError, match="score"):
        PruneFrontEnd(ratio=0.5, score="reconstruction")  # type: ignore[arg-type]
