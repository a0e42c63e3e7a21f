"""The forms in which a model leaves torch: one tensor in, one tensor out, nothing decided at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from edgecompress.model.network import Model


class SpeechForm(nn.Module):
    """Waveform families: (batch, samples) -> last hidden state (batch, frames, width), or logits with a task head."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network = model.network
        self.output = model.anatomy.output_name(model.architecture)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return getattr(self.network(inputs), self.output)


class WhisperEncoderForm(nn.Module):
    """Whisper's encoder: log-mel (batch, bins, frames) -> (batch, frames / 2, width), any even length up to the context.

    The library's own forward insists on exactly 30 s; here shorter input gets the first positions.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.encoder = model.encoder_module

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """See the class."""
        encoder = self.encoder
        hidden = nn.functional.gelu(encoder.conv1(inputs))
        hidden = nn.functional.gelu(encoder.conv2(hidden)).permute(0, 2, 1)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        for layer in encoder.layers:
            said = layer(hidden, None, None) if _wants_head_mask(layer) else layer(hidden, None)
            hidden = said[0] if isinstance(said, tuple) else said
        return encoder.layer_norm(hidden)


def _wants_head_mask(layer: nn.Module) -> bool:
    """transformers 4 passes a head mask to each layer, transformers 5 does not."""
    return "layer_head_mask" in layer.forward.__code__.co_varnames


def exportable(model: Model) -> nn.Module:
    """The module to export, in eval mode: an exporter that finds its wrapper in train mode leaves dropout on."""
    if model.family == "whisper" and not model.architecture.endswith("ForAudioClassification"):
        return WhisperEncoderForm(model).eval()
    return SpeechForm(model).eval()
