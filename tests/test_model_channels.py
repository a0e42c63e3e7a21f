"""Front-end channels: sliced convolutions say what the library's dense ones say with those channels silent."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgecompress import cost
from edgecompress.errors import ModelError
from edgecompress.exporters import export
from edgecompress.model import Model, load, save
from edgecompress.model.edits import EDITS, KeepChannels
from tests.library import assert_differ, assert_same, build, library_network, ours, says
from tests.models import VARIANTS, example, tiny, variant_name

SLICEABLE = [each for each in VARIANTS if each[0] != "melhubert"]  # which reads log-mel frames as they are
every_variant = pytest.mark.parametrize(
    ("family", "variant"), SLICEABLE, ids=[variant_name(*each) for each in SLICEABLE]
)
KEPT = {0: range(0, 32, 3), 2: range(5, 20), 3: [7], 6: range(0, 32, 2)}  # one channel is the least that can be left
CHANNELS = 32


class NormOverKept(nn.Module):
    """A layer norm whose mean and deviation are of the ``kept`` channels; it says zero for the others."""

    def __init__(self, norm: nn.LayerNorm, kept: Sequence[int]) -> None:
        super().__init__()
        self.norm, self.kept = norm, list(kept)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen, said = x[..., self.kept], torch.zeros_like(x)
        spread = (seen.var(-1, keepdim=True, unbiased=False) + self.norm.eps).sqrt()
        normed = (seen - seen.mean(-1, keepdim=True)) / spread
        said[..., self.kept] = normed * self.norm.weight[self.kept] + self.norm.bias[self.kept]
        return said


@torch.no_grad()
def masked(network: Any, model: Model) -> Any:
    """The library's dense network: what reads a channel that ``model`` lost has zeros there, layer norms pass it by."""
    twin = copy.deepcopy(network)
    base = twin.base_model
    if model.family == "whisper":
        gone = sorted(set(range(64)) - set(model.front_end.convs[0].channels))
        base.encoder.conv2.weight[:, gone] = 0
        return twin
    blocks, projection = base.feature_extractor.conv_layers, base.feature_projection
    for conv in model.front_end.convs:
        kept = list(conv.channels)
        reader = projection.projection if conv.number == 6 else blocks[conv.number + 1].conv
        reader.weight[:, sorted(set(range(CHANNELS)) - set(kept))] = 0
        if isinstance(getattr(blocks[conv.number], "layer_norm", None), nn.LayerNorm):
            blocks[conv.number].layer_norm = NormOverKept(blocks[conv.number].layer_norm, kept)
        if conv.number == 6:
            projection.layer_norm = NormOverKept(projection.layer_norm, kept)
    return twin


def sliced(model: Model) -> Model:
    kept = {0: range(0, 64, 3)} if model.family == "whisper" else KEPT
    for conv, channels in kept.items():
        model.keep_channels(conv, channels)
    return model


@every_variant
def test_a_sliced_front_end_is_the_dense_one_with_those_channels_silent(family: str, variant: dict[str, Any]) -> None:
    network = library_network(family, **variant)
    model = sliced(ours(network))
    inputs = example(model, batch=2, length=None if family == "whisper" else 5000)
    said = says(model, inputs)
    assert_same(said, says(masked(network, model), inputs))
    assert_differ(said, says(network, inputs))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("family", "front_end"), [("hubert", "group"), ("wav2vec2", "layer"), ("wavlm", "group"), ("data2vec-audio", "")]
)
def test_a_sliced_front_end_is_the_librarys_own_thinner_one(family: str, front_end: str, bias: bool) -> None:
    variant: dict[str, Any] = {"front_end": front_end} if front_end else {}
    model = sliced(ours(library_network(family, conv_bias=bias, **variant)))
    config = copy.deepcopy(model.network.config)
    config.conv_dim = [len(conv.channels) for conv in model.front_end.convs]
    thinner = ours(build(config))
    thinner.load_state_dict(model.state_dict())
    inputs = example(model)
    assert_same(says(model, inputs), says(thinner, inputs))


@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "wavlm", "whisper"])
def test_without_layer_norms_zeroed_columns_are_the_whole_reference(family: str) -> None:
    """The group norm of the first convolution norms each channel alone, so what is left of it does not change."""
    network = library_network(family)
    model, twin = ours(network), copy.deepcopy(network)
    model.keep_channels(0, [1, 4, 9])
    with torch.no_grad():
        second = (
            twin.base_model.encoder.conv2
            if family == "whisper"
            else twin.base_model.feature_extractor.conv_layers[1].conv
        )
        second.weight[:, [place for place in range(second.in_channels) if place not in (1, 4, 9)]] = 0
    inputs = example(model)
    assert_same(says(model, inputs), says(twin, inputs))


@every_variant
def test_a_checkpoint_with_a_sliced_front_end_rebuilds_bit_equal(
    family: str, variant: dict[str, Any], tmp_path: Path
) -> None:
    model = sliced(tiny(family, **variant))
    model.keep_heads(1, [0, 2])
    save(model, tmp_path)
    rebuilt = load(tmp_path)
    inputs = example(model)
    assert_same(says(rebuilt, inputs), says(model, inputs), tolerance=0)
    assert rebuilt.edits == model.edits
    assert [conv.channels for conv in rebuilt.front_end.convs] == [conv.channels for conv in model.front_end.convs]
    assert cost.measure(rebuilt) == cost.measure(model)
    assert cost.safetensors_bytes(rebuilt.network) == (tmp_path / "model.safetensors").stat().st_size


def test_original_numbers_survive_several_rounds_and_a_rebuild(tmp_path: Path) -> None:
    step_by_step, at_once = tiny("hubert"), tiny("hubert")
    step_by_step.keep_channels(1, range(8, 32))
    save(step_by_step, tmp_path)
    step_by_step = load(tmp_path)
    step_by_step.keep_channels(1, [9, 30])
    at_once.keep_channels(1, [30, 9])
    inputs = example(at_once)
    assert_same(says(step_by_step, inputs), says(at_once, inputs), tolerance=0)
    assert step_by_step.edits == (KeepChannels(conv=1, channels=(9, 30)),)
    assert EDITS.dump_python(list(at_once.edits), mode="json") == [
        {"kind": "keep_channels", "conv": 1, "channels": [9, 30]}
    ]


def test_a_copy_is_sliced_alone() -> None:
    model = tiny("hubert")
    twin = model.clone()
    twin.keep_channels(0, [3])
    assert len(model.front_end.convs[0].channels) == CHANNELS
    assert model.front_end.convs[0].module.out_channels == CHANNELS
    assert twin.front_end.convs[0].module.out_channels == 1


@torch.no_grad()
def test_the_cost_of_a_sliced_front_end_is_counted_by_hand() -> None:
    model = tiny("hubert")
    before = cost.measure(model, seconds=1)
    model.keep_channels(0, range(10))
    model.keep_channels(6, range(20))
    after = cost.measure(model, seconds=1)
    # One second: 3,199 steps after the first convolution (kernel 10), 1,599 after the second (kernel 3), 49 after all.
    front_end = 22 * 10 * 3199 + 22 * 32 * 3 * 1599 + 12 * 32 * 2 * 49
    assert before.macs.parts["front_end"] - after.macs.parts["front_end"] == front_end
    assert before.macs.parts["projection"] - after.macs.parts["projection"] == 12 * 64 * 49
    gone = 22 * (10 + 2 + 32 * 3) + 12 * (32 * 2 + 2 + 64)
    assert before.parameters.total - after.parameters.total == gone


def test_half_of_the_channels_everywhere_is_a_quarter_of_the_front_end() -> None:
    model = tiny("hubert", conv_dim=(512,) * 7)
    whole = cost.measure(model).macs.parts["front_end"]
    for number in range(7):
        model.keep_channels(number, range(256))
    assert cost.measure(model).macs.parts["front_end"] / whole == pytest.approx(0.25, abs=0.005)


@pytest.mark.parametrize("family", ["hubert", "data2vec-audio", "whisper"])  # group norm, layer norms, none
def test_a_sliced_front_end_exports(family: str, tmp_path: Path) -> None:
    model = sliced(tiny(family))
    artifact = export(model, "onnx", tmp_path)
    assert max(case.relative for case in artifact.parity.cases) < 1e-4


@pytest.mark.parametrize(
    ("family", "conv", "channels", "says_so"),
    [
        ("hubert", 7, [0], "no convolution 7"),
        ("hubert", -1, [0], "no convolution -1"),
        ("hubert", 0, [], "at least one channel"),
        ("hubert", 0, [32], "no channel 32"),
        ("whisper", 1, [0, 1], "encoder's width"),
        ("melhubert", 0, [0], "no convolutional front end"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_nothing_has_changed(
    family: str, conv: int, channels: list[int], says_so: str
) -> None:
    model = tiny(family)
    inputs = example(model)
    before = says(model, inputs)
    with pytest.raises(ModelError, match=says_so) as caught:
        model.keep_channels(conv, channels)
    assert caught.value.hint
    assert model.edits == ()
    assert_same(says(model, inputs), before, tolerance=0)


def test_a_channel_that_is_gone_does_not_come_back() -> None:
    model = tiny("whisper")
    model.keep_channels(0, [1, 2, 3])
    with pytest.raises(ModelError, match="no channel 0"):
        model.keep_channels(0, [0, 1])


def test_a_model_that_becomes_another_takes_its_front_end_over() -> None:
    model, other = tiny("hubert"), tiny("hubert", seed=1)
    other.keep_channels(2, [4, 8])
    model.become(other)
    model.keep_channels(2, [8])
    assert model.front_end.convs[2].module.out_channels == 1
    assert model.skeleton().front_end.convs[2].channels == (8,)
