"""The forms in which a model leaves torch: one tensor in, one tensor out, in eval mode, for every family."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from edgecompress.errors import ModelError

if TYPE_CHECKING:
    from edgecompress.model.network import Model

Takes = Literal["waveform", "features"]


@dataclass(frozen=True)
class Form:
    """How an exported file is fed: with 16 kHz samples (batch, samples), or with what the encoder takes.

    ``shape`` is the input's, with names for what may vary; ``unit`` that of its time axis, ``per_second`` how many of
    them a second has. ``log_mel`` says that features are made inside, of samples.
    """

    takes: Takes
    input_name: str
    shape: tuple[int | str, ...]
    unit: Literal["samples", "mel_frames"]
    per_second: float
    log_mel: bool = False

    @property
    def time_axis(self) -> int:
        """Which axis of the input is time."""
        return max(axis for axis, size in enumerate(self.shape) if isinstance(size, str))


def form_of(model: Model, takes: str | None = None) -> Form:
    """The form that a family is exported in; MelHuBERT has two, of which samples in is the one an app wants.

    Raises:
        ModelError: the family has no such form.
    """
    offered = forms_of(model)
    for form in offered:
        if takes in (None, form.takes):
            return form
    words = ", ".join(form.takes for form in offered)
    raise ModelError(f"{model.family} has no form that takes {takes!r}", hint=f"it can take: {words}")


def forms_of(model: Model) -> list[Form]:
    """All forms that a family can be exported in, the usual one first."""
    config = model.network.config
    waveform = Form("waveform", "input_values", ("batch", "samples"), "samples", 16000.0)
    kind = model.anatomy.front_end_kind
    if kind == "whisper":
        return [Form("features", "input_features", ("batch", int(config.num_mel_bins), "frames"), "mel_frames", 100.0)]
    if kind == "log_mel":
        shape = ("batch", "frames", int(config.feature_dim))
        features = Form("features", "input_features", shape, "mel_frames", 1000.0 / config.frame_period_ms)
        return [replace(waveform, log_mel=True), features]
    return [waveform]


def form_by_input(model: Model, input_name: str) -> Form:
    """The form whose input has this name; the usual one where none has."""
    return next((form for form in forms_of(model) if form.input_name == input_name), form_of(model))


class EncoderForm(nn.Module):
    """What :meth:`Model.features` gives -> logits or last hidden state, for every family but Whisper."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.output = model.anatomy.output_name(model.architecture)
        self.network = model.network if self.output == "logits" else model.base

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.network(inputs)[self.output]


class LogMelForm(nn.Module):
    """MelHuBERT from samples: (batch, samples) at 16 kHz in [-1, 1], the log-mel frames made on the way."""

    def __init__(self, model: Model) -> None:
        from edgecompress.model.log_mel import LogMel, settings_of

        super().__init__()
        self.log_mel = LogMel(settings_of(model)).to(model.device)
        self.encoder = EncoderForm(model)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.log_mel(samples))


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
        states = whisper_states(self.encoder, input_features)
        return states[-1] if self.network is None else classify(self.network, states, self.weighted)


def whisper_states(encoder: Any, input_features: torch.Tensor) -> list[torch.Tensor]:
    """All hidden states of Whisper's encoder, the last one after its norm, for (batch, mel bins, frames) of any length."""
    hidden = nn.functional.gelu(encoder.conv1(input_features))
    hidden = nn.functional.gelu(encoder.conv2(hidden)).permute(0, 2, 1)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    hidden = nn.functional.dropout(hidden, p=encoder.dropout, training=encoder.training)
    states = [hidden]
    for layer in encoder.layers:
        said = layer(hidden, None, layer_head_mask=None)  # transformers 4 asks for it, 5 and our attention pass it by
        hidden = said if isinstance(said, torch.Tensor) else said[0]  # transformers 4 gives a tuple
        states.append(hidden)
    states[-1] = encoder.layer_norm(hidden)
    return states


def classify(network: Any, states: list[torch.Tensor], weighted: bool) -> torch.Tensor:
    """A Whisper classifier's logits, (batch, labels), from all hidden states, summed by learned weights or the last."""
    hidden = states[-1]
    if weighted:
        weights = torch.softmax(network.layer_weights, dim=-1)
        hidden = (torch.stack(states, dim=1) * weights.view(-1, 1, 1)).sum(dim=1)
    logits: torch.Tensor = network.classifier(network.projector(hidden).mean(dim=1))
    return logits


def encoder_form(model: Model) -> nn.Module:
    """The module that takes what :meth:`Model.features` gives, in eval mode."""
    return (WhisperForm(model) if model.family == "whisper" else EncoderForm(model)).eval()


def exportable(model: Model, takes: str | None = None) -> nn.Module:
    """The module to trace. In eval mode itself: a wrapper left in train mode switches dropout on in the file.

    ``takes``: ``waveform`` or ``features``, see :func:`form_of`.
    """
    return LogMelForm(model).eval() if form_of(model, takes).log_mel else encoder_form(model)


def export_input(model: Model, clip: np.ndarray, takes: str | None = None) -> torch.Tensor:
    """A clip as the exported file takes it, batch 1: the encoder's input, or the samples where it makes log-mel itself."""
    features = model.features(clip)
    if not form_of(model, takes).log_mel:
        return features
    return torch.from_numpy(np.array(clip, dtype=np.float32)[None])
