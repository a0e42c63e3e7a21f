"""How the parts of a Whisper that writes text are fed: ports, a module, inputs to trace with, and the library's answer.

``cache``: the encoder and what the decoder hears of it, of log-mel frames or of samples. ``step``: the decoder with a
cache that grows. ``fixed_step``: with one of a fixed size, one token at a time, for formats whose shapes are fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgecompress.model.whisper_decoder import WhisperCacheForm, WhisperFixedStepForm, WhisperStepForm, decoder_of
from edgecompress.model.whisper_log_mel import WhisperWaveformForm

if TYPE_CHECKING:
    from edgecompress.model.network import Model

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Port:
    """An input or output: its name, numpy dtype, and shape with names for what may vary."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class PartForm:
    """One part of Whisper that becomes a file.

    ``module(model)`` is to be traced, with one tensor for each input; ``example(model, batch, length, seed)`` makes them of
    noise; ``reference(model, tensors)`` is what the library's own modules answer. ``length`` counts steps of the axis that
    ``unit`` names.
    """

    name: str
    unit: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    build: Callable[[Model], nn.Module]
    make: Callable[[Model, int, int, torch.Generator], Tensors]
    reference: Callable[[Model, Tensors], Tensors]

    def module(self, model: Model) -> nn.Module:
        """The module to trace, in eval mode."""
        return self.build(model).eval()

    def example(self, model: Model, batch: int, length: int, seed: int = 0) -> Tensors:
        """Seeded noise for all inputs, in order, on the model's device."""
        made = self.make(model, batch, length, torch.Generator().manual_seed(seed))
        return tuple(tensor.to(model.device) for tensor in made)


def cache_form(model: Model, takes: str = "features") -> PartForm:
    """Encoder to cross keys and values; ``takes`` is ``features`` (unit: mel frames) or ``waveform`` (samples).

    Raises:
        ModelError: the model is no Whisper that writes text.
    """
    layers, heads, head_dim = _sizes(model)
    bins, waveform = int(model.network.config.num_mel_bins), takes == "waveform"
    positions = int(model.context_positions or 0) if waveform else "positions"
    said = (layers, "batch", heads, positions, head_dim)
    features = Port("input_features", "float32", ("batch", bins, "frames"))
    return PartForm(
        name="cache",
        unit="samples" if waveform else "mel_frames",
        inputs=(Port("input_values", "float32", ("batch", "samples")) if waveform else features,),
        outputs=(Port("cross_keys", "float32", said), Port("cross_values", "float32", said)),
        build=_waveform_cache if waveform else WhisperCacheForm,
        make=lambda model, batch, length, random: (
            torch.randn((batch, length) if waveform else (batch, bins, length), generator=random),
        ),
        reference=_library_waveform_cache if waveform else _library_cache,
    )


def step_form(model: Model) -> PartForm:
    """The decoder with a cache that grows; the example has 3 new tokens after ``length`` (unit: past) old ones.

    Raises:
        ModelError: the model is no Whisper that writes text.
    """
    layers, heads, head_dim = _sizes(model)
    cross: tuple[int | str, ...] = (layers, "batch", heads, "positions", head_dim)
    past, present = ((layers, "batch", heads, time, head_dim) for time in ("past", "present"))
    return PartForm(
        name="step",
        unit="past",
        inputs=(
            Port("input_ids", "int64", ("batch", "tokens")),
            *_pair("past", past),
            *_pair("cross", cross),
        ),
        outputs=(_logits(model), *_pair("present", present)),
        build=WhisperStepForm,
        make=lambda model, batch, length, random: (
            _tokens(model, batch, 3, random),
            *_caches(model, batch, length, random),
            *_caches(model, batch, int(model.context_positions or 0), random),
        ),
        reference=_library_step,
    )


def fixed_step_form(model: Model, capacity: int | None = None, positions: int | None = None) -> PartForm:
    """The decoder with a cache of ``capacity`` tokens (all that the decoder has positions for) and one new token.

    ``positions`` are those of the encoder, its whole context unless told. ``length`` (unit: past) of the example says how
    many tokens came before.

    Raises:
        ModelError: the model is no Whisper that writes text.
    """
    layers, heads, head_dim = _sizes(model)
    capacity = capacity or int(model.network.config.max_target_positions)
    heard = positions or int(model.context_positions or 0)
    cross: tuple[int | str, ...] = (layers, "batch", heads, heard, head_dim)
    own: tuple[int | str, ...] = (layers, "batch", heads, capacity, head_dim)
    return PartForm(
        name="fixed_step",
        unit="past",
        inputs=(
            Port("input_ids", "int32", ("batch", 1)),
            Port("position", "int32", (1,)),
            *_pair("past", own),
            *_pair("cross", cross),
        ),
        outputs=(_logits(model), *_pair("present", own)),
        build=WhisperFixedStepForm,
        make=lambda model, batch, length, random: (
            _tokens(model, batch, 1, random).int(),
            torch.tensor([length], dtype=torch.int32),
            *_caches(model, batch, capacity, random),
            *_caches(model, batch, heard, random),
        ),
        reference=_library_fixed_step,
    )


# --- ports and noise ---------------------------------------------------------------------------------------------------
def _pair(which: str, shape: tuple[int | str, ...]) -> tuple[Port, Port]:
    return Port(f"{which}_keys", "float32", shape), Port(f"{which}_values", "float32", shape)


def _logits(model: Model) -> Port:
    return Port("logits", "float32", ("batch", int(model.network.config.vocab_size)))


def _sizes(model: Model) -> tuple[int, int, int]:
    """Layers, heads and the width of a head of the decoder."""
    layers = decoder_of(model).layers
    return len(layers), int(layers[0].self_attn.num_heads), int(layers[0].self_attn.head_dim)


def _tokens(model: Model, batch: int, count: int, random: torch.Generator) -> torch.Tensor:
    return torch.randint(int(model.network.config.vocab_size), (batch, count), generator=random)


def _caches(model: Model, batch: int, time: int, random: torch.Generator) -> Tensors:
    layers, heads, head_dim = _sizes(model)
    shape = (layers, batch, heads, time, head_dim)
    return torch.randn(shape, generator=random), torch.randn(shape, generator=random)


def _waveform_cache(model: Model) -> nn.Module:
    return WhisperWaveformForm(model, WhisperCacheForm(model))


# --- what the library answers ------------------------------------------------------------------------------------------
@torch.no_grad()
def _library_cache(model: Model, tensors: Tensors) -> Tensors:
    """From the cache that the library's decoder fills; its encoder takes the whole context only."""
    heard = model.encode(tensors[0])
    start = torch.zeros(heard.shape[0], 1, dtype=torch.long, device=heard.device)
    cache = decoder_of(model)(start, encoder_hidden_states=heard, use_cache=True).past_key_values
    return _stacked(cache.cross_attention_cache)


def _library_waveform_cache(model: Model, tensors: Tensors) -> Tensors:
    heard = [model.features(samples.cpu().numpy()) for samples in tensors[0]]
    return _library_cache(model, (torch.cat(heard).to(model.device),))


@torch.no_grad()
def _library_step(model: Model, tensors: Tensors) -> Tensors:
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    ids, past_keys, past_values, cross_keys, cross_values = tensors
    own, cross = DynamicCache(), DynamicCache()
    for cache, keys, values in ((own, past_keys, past_values), (cross, cross_keys, cross_values)):
        for number in range(keys.shape[0] if keys.shape[3] else 0):
            cache.update(keys[number], values[number], number)
    unheard = torch.zeros(ids.shape[0], 1, int(model.network.config.d_model), device=ids.device)  # the cache has it
    said = decoder_of(model)(
        ids, encoder_hidden_states=unheard, past_key_values=EncoderDecoderCache(own, cross), use_cache=True
    )
    logits = model.network.proj_out(said.last_hidden_state[:, -1])
    return logits, *_stacked(said.past_key_values.self_attention_cache)


def _library_fixed_step(model: Model, tensors: Tensors) -> Tensors:
    ids, position, keys, values, *cross = tensors
    past = int(position)
    logits, *grown = _library_step(model, (ids.long(), keys[:, :, :, :past], values[:, :, :, :past], *cross))
    present = [
        torch.cat([new, old[:, :, :, past + 1 :]], dim=3) for new, old in zip(grown, (keys, values), strict=True)
    ]
    return logits, *present


def _stacked(cache: Any) -> Tensors:
    return torch.stack([layer.keys for layer in cache.layers]), torch.stack([layer.values for layer in cache.layers])
