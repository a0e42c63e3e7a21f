"""Whisper's decoder as it is put to use: what it needs of the encoder once, and a step that remembers, as torch modules.

The encoder may have lost whatever edits take; the decoder is the library's own, run here by a forward of ours that
traces for every format. Caches are stacked, one tensor for the keys of all layers and one for the values: (layers, batch,
heads, time, head_dim).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgecompress.errors import ModelError
from edgecompress.model.forms import whisper_states

if TYPE_CHECKING:
    from edgecompress.model.network import Model

Remember = Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def decoder_of(model: Model) -> Any:
    """The library's decoder.

    Raises:
        ModelError: the model is no Whisper that writes text.
    """
    if not model.architecture.endswith("ForConditionalGeneration"):
        raise ModelError(
            f"{model.architecture} writes no text",
            hint="take a Whisper with its decoder: WhisperForConditionalGeneration",
        )
    return model.base.decoder


class WhisperCacheForm(nn.Module):
    """Encoder, and what the decoder hears of it: (batch, mel bins, frames) -> cross keys and cross values.

    Both are (layers, batch, heads, positions, head_dim), made once for a clip.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.encoder = model.encoder_module
        self.attentions = nn.ModuleList(layer.encoder_attn for layer in decoder_of(model).layers)

    def forward(self, input_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        heard = whisper_states(self.encoder, input_features)[-1]
        attentions: list[Any] = list(self.attentions)
        keys = [split(attention, attention.k_proj(heard)) for attention in attentions]
        values = [split(attention, attention.v_proj(heard)) for attention in attentions]
        return torch.stack(keys), torch.stack(values)


class _Decoder(nn.Module):
    """What both steps share: the layers and the way from a hidden state to logits."""

    silent: torch.Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.decoder = decoder_of(model)
        self.proj_out = model.network.proj_out
        zeros = torch.zeros(self.proj_out.out_features, device=model.device)
        self.register_buffer("silent", zeros, persistent=False)

    def layers(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor,
        remember: Remember,
        cross_keys: torch.Tensor,
        cross_values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embedded tokens (batch, tokens, width) -> logits after the last one, and all keys and values.

        ``mask`` (tokens, time) is True where a token may not look; ``remember`` puts a layer's new keys and values
        among the old ones.
        """
        keys, values = [], []
        for number, layer in enumerate(self.decoder.layers):
            normed = layer.self_attn_layer_norm(hidden)
            key = split(layer.self_attn, layer.self_attn.k_proj(normed))
            value = split(layer.self_attn, layer.self_attn.v_proj(normed))
            key, value = remember(number, key, value)
            keys.append(key)
            values.append(value)
            hidden = hidden + attend(layer.self_attn, normed, key, value, mask)
            normed = layer.encoder_attn_layer_norm(hidden)
            hidden = hidden + attend(layer.encoder_attn, normed, cross_keys[number], cross_values[number])
            hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
        return self.words(hidden[:, -1]), torch.stack(keys), torch.stack(values)

    def words(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, width) -> logits (batch, vocabulary).

        With a bias of zeros it is ONNX's Gemm, which reads the matrix as it lies. A plain product would store it again,
        transposed, beside the embeddings that it is tied to: 80 MB for whisper-tiny.en.
        """
        return nn.functional.linear(self.decoder.layer_norm(hidden), self.proj_out.weight, self.silent)


class WhisperStepForm(_Decoder):
    """The decoder with a cache that grows: new tokens and what is remembered -> logits after the last, and the cache.

    ``input_ids`` (batch, tokens) int64, ``past_keys`` and ``past_values`` (layers, batch, heads, past, head_dim) with a
    past of 0 at first, and the cross keys and values of :class:`WhisperCacheForm`. Answers logits (batch, vocabulary)
    and the cache with past + tokens.
    """

    def forward(
        self,
        input_ids: torch.Tensor,
        past_keys: torch.Tensor,
        past_values: torch.Tensor,
        cross_keys: torch.Tensor,
        cross_values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        past, tokens = past_keys.shape[3], input_ids.shape[1]
        positions = self.decoder.embed_positions.weight[past : past + tokens]
        hidden = self.decoder.embed_tokens(input_ids) + positions
        time = torch.arange(past + tokens, device=input_ids.device)
        mask = time[None, :] > time[past:][:, None]

        def remember(number: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.cat([past_keys[number], key], dim=2), torch.cat([past_values[number], value], dim=2)

        return self.layers(hidden, mask, remember, cross_keys, cross_values)


class WhisperFixedStepForm(_Decoder):
    """The decoder with a cache of a fixed size, for formats whose shapes are fixed: one token a time.

    ``input_ids`` (batch, 1) int32, ``position`` (1,) int32, the same for all rows: how many tokens came before. The
    caches are (layers, batch, heads, capacity, head_dim); what lies in them from ``position`` on is not looked at, and
    comes back as it is, but for the new token's own place.
    """

    def forward(
        self,
        input_ids: torch.Tensor,
        position: torch.Tensor,
        past_keys: torch.Tensor,
        past_values: torch.Tensor,
        cross_keys: torch.Tensor,
        cross_values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = self.decoder.embed_tokens(input_ids) + self.decoder.embed_positions.weight.index_select(0, position)
        time = torch.arange(past_keys.shape[3], dtype=torch.int32, device=input_ids.device)
        here = (time == position)[:, None]

        def remember(number: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.where(here, key, past_keys[number]), torch.where(here, value, past_values[number])

        return self.layers(hidden, (time > position)[None, :], remember, cross_keys, cross_values)


def split(attention: Any, x: torch.Tensor) -> torch.Tensor:
    """(batch, time, heads * head_dim) -> (batch, heads, time, head_dim)."""
    return x.view(x.shape[0], x.shape[1], attention.num_heads, attention.head_dim).transpose(1, 2)


def attend(
    attention: Any, x: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The library's attention over keys and values that are there already: (batch, tokens, width) -> the same shape."""
    query = split(attention, attention.q_proj(x) * attention.head_dim**-0.5)
    scores = torch.matmul(query, key.transpose(2, 3))
    if mask is not None:
        scores = scores.masked_fill(mask, torch.finfo(scores.dtype).min)
    mixed = torch.matmul(torch.softmax(scores, dim=-1), value)
    said: torch.Tensor = attention.out_proj(mixed.transpose(1, 2).reshape(x.shape))
    return said
