"""The parts of a Whisper that writes text, as forms: each becomes a file, and together they turn audio into tokens.

``cache`` and ``waveform_cache``: the encoder and what the decoder hears of it, of log-mel frames or of samples. ``step``: the
decoder with a cache that grows. ``fixed_step``: with one of a fixed size, one token at a time, for formats whose shapes are
fixed. :func:`edgecompress.transcript.transcribe` runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgecompress.model.forms import Arrays, AudioForm, Form, Port
from edgecompress.model.whisper_decoder import WhisperCacheForm, WhisperFixedStepForm, WhisperStepForm, decoder_of
from edgecompress.model.whisper_log_mel import WhisperWaveformForm

if TYPE_CHECKING:
    from edgecompress.model.network import Model

Tensors = tuple[torch.Tensor, ...]
TRACED_TOKENS = 3


def part_forms(model: Model) -> list[Form]:
    """All of them, for the model's sizes.

    Raises:
        ModelError: the model is no Whisper that writes text.
    """
    return [cache_form(model), cache_form(model, log_mel=True), step_form(model), fixed_step_form(model)]


def cache_form(model: Model, log_mel: bool = False) -> CacheForm:
    """From log-mel frames, or from samples with ``log_mel`` inside, to cross keys and values; ModelError as above."""
    outputs = _pair(model, "cross", int(model.context_positions or 0) if log_mel else "positions")
    if log_mel:
        port = Port("input_values", ("batch", "samples"))
        return CacheForm("waveform_cache", (port,), outputs, "samples", 16000.0, log_mel=True)
    port = Port("input_features", ("batch", int(model.network.config.num_mel_bins), "frames"))
    return CacheForm("cache", (port,), outputs, "mel_frames", 100.0)


def step_form(model: Model) -> StepForm:
    """The decoder with a cache that grows; ModelError as above."""
    inputs = (
        Port("input_ids", ("batch", "tokens"), "int64"),
        *_pair(model, "past", "past"),
        *_pair(model, "cross", "positions"),
    )
    return StepForm("step", inputs, (_logits(model), *_pair(model, "present", "present")), "tokens")


def fixed_step_form(model: Model, capacity: int | None = None, positions: int | None = None) -> FixedStepForm:
    """The decoder with a cache of ``capacity`` tokens (all that it has positions for) and one new token.

    ``positions`` are those of the encoder, its whole context unless told. ModelError as above.
    """
    capacity = capacity or int(decoder_of(model).max_target_positions)
    inputs = (
        Port("input_ids", ("batch", 1), "int32"),
        Port("position", (1,), "int32"),
        *_pair(model, "past", capacity),
        *_pair(model, "cross", positions or int(model.context_positions or 0)),
    )
    return FixedStepForm("fixed_step", inputs, (_logits(model), *_pair(model, "present", capacity)), "tokens")


@dataclass(frozen=True)
class CacheForm(AudioForm):
    """Audio in, what the decoder hears of it out."""

    def module(self, model: Model) -> nn.Module:
        """See :meth:`Form.module`."""
        inner = WhisperCacheForm(model)
        return (WhisperWaveformForm(model, inner) if self.log_mel else inner).eval()

    def answer(self, model: Model, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """See :meth:`Form.answer`: the cache that the library's decoder fills."""
        values = np.asarray(feeds[self.input_name])
        if self.log_mel:
            heard = torch.cat([model.features(row) for row in values])
        else:
            heard = torch.from_numpy(values)
            if 2 * int(model.context_positions or 0) != heard.shape[2]:  # the library's encoder takes nothing else
                model = model.clone()
                model.keep_context(heard.shape[2] // 2)
        with torch.no_grad(), model.evaluating():
            hidden = model.encode(heard.to(model.device))
            start = torch.zeros(hidden.shape[0], 1, dtype=torch.long, device=hidden.device)
            said = decoder_of(model)(start, encoder_hidden_states=hidden, use_cache=True)
        return _named(self, _stacked(said.past_key_values.cross_attention_cache))

    def cut(self, outputs: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]) -> Arrays:
        """See :meth:`Form.cut`: nothing is padding."""
        return {port.name: outputs[port.name] for port in self.outputs}

    def macs(self, model: Model, encoder: Mapping[str, int]) -> dict[str, int]:
        """Multiply-accumulates for the whole context; ``encoder`` are those of the encoder."""
        width, layers = int(model.network.config.d_model), len(decoder_of(model).layers)
        cross = layers * 2 * width**2 * int(model.context_positions or 0)
        return {**encoder, "cross_keys_and_values": cross}


@dataclass(frozen=True)
class StepForm(Form):
    """New tokens and what is remembered in, logits after the last of them and what is then remembered out.

    Length counts new tokens. Where noise is made, an even number of them starts a transcript, an odd one goes on with
    one: the more the fewer they are.
    """

    def module(self, model: Model) -> nn.Module:
        """See :meth:`Form.module`."""
        return WhisperStepForm(model).eval()

    def example(self, model: Model, batch: int, length: int, seed: int = 0) -> Tensors:
        """See :meth:`Form.example`."""
        room = int(model.network.config.max_target_positions) - length
        return self.example_after(model, batch, length, room // length if length % 2 else 0, seed)

    def example_after(self, model: Model, batch: int, length: int, past: int, seed: int = 0) -> Tensors:
        """The same after ``past`` tokens."""
        random = torch.Generator().manual_seed(seed)
        sizes = {"batch": batch, "tokens": length, "past": past, "positions": int(model.context_positions or 0)}
        made = (
            _tokens(model, port.sized(**sizes), random)
            if port.name == "input_ids"
            else torch.randn(port.sized(**sizes), generator=random)
            for port in self.inputs
        )
        return tuple(tensor.to(model.device) for tensor in made)

    def trace_length(self, model: Model) -> int:
        """See :meth:`Form.trace_length`."""
        return TRACED_TOKENS

    def lengths(self, model: Model) -> list[int]:
        """See :meth:`Form.lengths`."""
        return [1, 2, 4, 5, 6, 7]

    def answer(self, model: Model, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """See :meth:`Form.answer`: what the library's decoder says, given the same cache."""
        given = {name: torch.from_numpy(np.asarray(array)).to(model.device) for name, array in feeds.items()}
        return _named(self, _by_library(model, given))

    def macs(self, model: Model, encoder: Mapping[str, int]) -> dict[str, int]:
        """Multiply-accumulates of one token with the whole context heard and half the positions remembered."""
        config, layers = model.network.config, len(decoder_of(model).layers)
        width, units = int(config.d_model), int(config.decoder_ffn_dim)
        looked_at = int(config.max_target_positions) // 2 + int(model.context_positions or 0)
        return {
            "decoder_projections": layers * 6 * width**2,
            "decoder_scores": layers * 2 * width * looked_at,
            "decoder_ffn": layers * 2 * width * units,
            "words": width * int(config.vocab_size),
        }


@dataclass(frozen=True)
class FixedStepForm(StepForm):
    """One new token and its position among a cache of a fixed size. Noise stands in the middle of it."""

    @property
    def time_axis(self) -> int:
        """See :meth:`Form.time_axis`."""
        return 1

    @property
    def capacity(self) -> int:
        """How many tokens the cache has room for."""
        return int(self.inputs[2].shape[3])

    def module(self, model: Model) -> nn.Module:
        """See :meth:`Form.module`."""
        return WhisperFixedStepForm(model).eval()

    def example(self, model: Model, batch: int, length: int = 1, seed: int = 0) -> Tensors:
        """See :meth:`Form.example`; ``length`` can only be 1."""
        return self.example_at(model, batch, self.capacity // 2, seed)

    def example_at(self, model: Model, batch: int, position: int, seed: int = 0) -> Tensors:
        """The same with the new token at ``position``."""
        ids, _, *caches = self.example_after(model, batch, 1, 0, seed)
        return ids.int(), torch.tensor([position], dtype=torch.int32, device=ids.device), *caches

    def trace_length(self, model: Model) -> int:
        """See :meth:`Form.trace_length`."""
        return 1

    def lengths(self, model: Model) -> list[int]:
        """See :meth:`Form.lengths`: there is one."""
        return [1]

    def answer(self, model: Model, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """See :meth:`Form.answer`; of the cache, what is after the position comes back as it was."""
        given = {name: torch.from_numpy(np.asarray(array)).to(model.device) for name, array in feeds.items()}
        past = int(given.pop("position"))
        before = {name: given[name] for name in ("past_keys", "past_values")}
        ids = given["input_ids"].long()
        cut = {name: cache[:, :, :, :past] for name, cache in before.items()}
        logits, *grown = _by_library(model, {**given, **cut, "input_ids": ids})
        after = (cache[:, :, :, past + 1 :] for cache in before.values())
        present = (torch.cat([new, old], dim=3) for new, old in zip(grown, after, strict=True))
        return _named(self, (logits, *present))


# --- ports, noise and the library --------------------------------------------------------------------------------------
def _pair(model: Model, which: str, time: int | str) -> tuple[Port, Port]:
    """Keys and values of all layers of the decoder."""
    layers = decoder_of(model).layers
    attention = layers[0].self_attn
    shape = (len(layers), "batch", int(attention.num_heads), time, int(attention.head_dim))
    return Port(f"{which}_keys", shape), Port(f"{which}_values", shape)


def _logits(model: Model) -> Port:
    return Port("logits", ("batch", int(model.network.config.vocab_size)))


def _tokens(model: Model, shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    return torch.randint(int(model.network.config.vocab_size), shape, generator=random)


def _named(form: Form, tensors: Tensors) -> Arrays:
    return {port.name: tensor.cpu().numpy() for port, tensor in zip(form.outputs, tensors, strict=True)}


def _by_library(model: Model, given: Mapping[str, torch.Tensor]) -> Tensors:
    """Logits after the last token, keys and values, by the library's decoder and its own cache."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    caches = []
    for which in ("past", "cross"):
        cache, keys, values = DynamicCache(), given[f"{which}_keys"], given[f"{which}_values"]
        for number in range(keys.shape[0] if keys.shape[3] else 0):
            cache.update(keys[number], values[number], number)
        caches.append(cache)
    ids = given["input_ids"]
    unheard = torch.zeros(ids.shape[0], 1, int(model.network.config.d_model), device=ids.device)  # the cache has it
    with torch.no_grad(), model.evaluating():
        said = decoder_of(model)(
            ids, encoder_hidden_states=unheard, past_key_values=EncoderDecoderCache(*caches), use_cache=True
        )
        logits = model.network.proj_out(said.last_hidden_state[:, -1])
    return logits, *_stacked(said.past_key_values.self_attention_cache)


def _stacked(cache: Any) -> Tensors:
    return torch.stack([layer.keys for layer in cache.layers]), torch.stack([layer.values for layer in cache.layers])
