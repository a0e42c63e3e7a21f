"""The forms in which a model leaves torch: one tensor in, one tensor out, in eval mode, for every family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from edgecompress.model.network import Model


class WaveformForm(nn.Module):
    """Families that read samples: (batch, samples) -> logits or last hidden state."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network = model.network
        self.output = model.anatomy.output_name(model.architecture)

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        return self.network(input_values)[self.output]


class WhisperForm(nn.Module):
    """Whisper's encoder: (batch, mel bins, frames) -> (batch, frames / 2, width), or a classifier's logits.

    The library's own forward insists on the whole context; here shorter audio uses the first positions, so the same
    file serves 2 s commands at a fraction of the cost. At the whole context both say the same (parity checks it).
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.encoder = model.encoder_module
        self.network = model.network if model.anatomy.output_name(model.architecture) == "logits" else None
        self.weighted = bool(getattr(model.config, "use_weighted_layer_sum", False))

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        encoder: Any = self.encoder
        hidden = nn.functional.gelu(encoder.conv1(input_features))
        hidden = nn.functional.gelu(encoder.conv2(hidden)).permute(0, 2, 1)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        states = [hidden]
        for layer in encoder.layers:
            said = layer(
                hidden, None, layer_head_mask=None
            )  # transformers 4 asks for it, 5 and our attention pass it by
            hidden = said if isinstance(said, torch.Tensor) else said[0]  # transformers 4 gives a tuple
            states.append(hidden)
        states[-1] = hidden = encoder.layer_norm(hidden)
        return hidden if self.network is None else classify(self.network, states, self.weighted)


def classify(network: Any, states: list[torch.Tensor], weighted: bool) -> torch.Tensor:
    """A Whisper classifier's logits, (batch, labels), from all hidden states, summed by learned weights or the last."""
    hidden = states[-1]
    if weighted:
        weights = torch.softmax(network.layer_weights, dim=-1)
        hidden = (torch.stack(states, dim=1) * weights.view(-1, 1, 1)).sum(dim=1)
    logits: torch.Tensor = network.classifier(network.projector(hidden).mean(dim=1))
    return logits


def exportable(model: Model) -> nn.Module:
    """The module to trace. In eval mode itself: a wrapper left in train mode switches dropout on in the file."""
    return (WhisperForm(model) if model.family == "whisper" else WaveformForm(model)).eval()
