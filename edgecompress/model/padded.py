"""A model for padded batches, as it leaves torch: values and how long each row is in, what each row says alone out.

Nothing here depends on the data but numbers: no branch, no index and no shape, so that tracers take it. Three places let
padding through to real frames, and each is closed by a mask made of the lengths:

- the group norm over time of a waveform front end, which gets the statistics of the real steps (:func:`normed_alone`);
- position convolutions and an adapter's, which read zeros behind the last real frame, as a clip alone is padded;
- attention, where frames that are not real get a score that leaves them no weight.

Everything else looks at one frame, or at real ones only. Hidden frames are made along with the others and set to zero at
the end. :mod:`edgecompress.model.states` does the same around the library's own forward, for training.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgecompress.model.forms import AudioForm, form_of
from edgecompress.model.inputs import filled, steps_of
from edgecompress.model.log_mel import LogMel, settings_of

if TYPE_CHECKING:
    from edgecompress.model.network import Model

HIDDEN_SCORE = -3e4  # added to the attention scores of frames that are not real: e^-30000 is 0, and float16 can hold it
LEAST_SHARE = 1e-7  # of a row that is real, so that one without any divides by something; float16 can hold it


class PaddedForm(nn.Module):
    """What a form without lengths says, for rows of different lengths in one batch.

    ``forward(values, lengths)`` takes what that module takes, and for each row how many samples (frames, where the form
    takes features) are real: (batch,), int64 or int32, at most what ``values`` hold. What stands behind them may be any
    finite numbers. It answers the same output and ``frames`` (batch,), of the same type as ``lengths``: how many frames
    of each row are real. The others are zero. Logits of whole clips are taken of real frames only. A row that is too
    short for one frame has none.
    """

    picks: torch.Tensor | None

    def __init__(self, model: Model, takes: str | None = None) -> None:
        """
        Raises:
            ModelError: the family has no such form, or none with lengths (Whisper).
        """
        super().__init__()
        form = form_of(model, takes, padded=True)
        inside = isinstance(form, AudioForm) and form.log_mel
        self.log_mel = LogMel(settings_of(model)).to(model.device) if inside else None
        self.network = model.network
        self.waveform = model.anatomy.front_end_kind == "convolutions"
        # By its class: data2vec-audio's config may ask for a stable encoder, and the family has none.
        self.stable = type(model.encoder_module).__name__.endswith("StableLayerNorm")
        # What a stable encoder's last state is: transformers 4's, which collects them itself, norms it, 5 does not.
        self.last_state_is_normed = "output_hidden_states" in signature(model.encoder_module.forward).parameters
        self.logits = model.anatomy.output_name(model.architecture) == "logits"
        self.register_buffer(
            "picks", picks_of(model.base.feature_extractor) if self.waveform else None, persistent=False
        )
        self.eval()

    def forward(self, values: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, samples) or (batch, frames, features), and (batch,) -> output, frames (batch,)."""
        base = self.network.base_model
        if self.log_mel is not None:
            values, lengths = self.log_mel.padded(values, lengths)
        features, frames = values, lengths
        if self.waveform:
            features, frames = convolved(base.feature_extractor, self.picks, values, lengths)
        projected = base.feature_projection(features)
        hidden = projected if isinstance(projected, torch.Tensor) else projected[0]
        states = encoded(base.encoder, hidden, filled(frames, hidden)[..., None], self.stable)
        last = base.encoder.layer_norm(states[-1]) if self.stable else states[-1]
        if getattr(base, "adapter", None) is not None:
            last, frames = adapted(base.adapter, last, frames)
        real = filled(frames, last)[..., None]
        return self.headed(states, last, real) if self.logits else last * real, frames

    def headed(self, states: list[torch.Tensor], last: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """A head's logits: (batch, frames, labels), zero where no frame is real, or (batch, labels) of the real ones."""
        network = self.network
        if hasattr(network, "lm_head"):
            return network.lm_head(last) * real
        if hasattr(network, "layer_weights"):
            summed = [*states[:-1], last] if self.last_state_is_normed else states
            weights = torch.softmax(network.layer_weights, dim=-1)
            last = (torch.stack(summed, dim=1) * weights.view(-1, 1, 1)).sum(dim=1)
        if not hasattr(network, "projector"):
            return network.classifier(last) * real
        pooled = (network.projector(last) * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
        return network.classifier(pooled)


def convolved(
    extractor: Any, picks: torch.Tensor | None, values: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A waveform front end: (batch, samples), (batch,) -> (batch, frames, channels), and how many frames are real.

    ``picks`` is what :func:`picks_of` says of the front end.
    """
    hidden = values[:, None]
    for layer in extractor.conv_layers:
        steps = steps_of(layer.conv, lengths)
        if picks is not None and isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm):
            hidden = layer.activation(normed_alone(layer.conv, layer.layer_norm, picks, hidden, steps))
        else:
            hidden = layer(hidden)
        lengths = steps
    return hidden.transpose(1, 2), lengths


def picks_of(extractor: Any) -> torch.Tensor | None:
    """Kernels (taps, 1, taps) that pick the samples of a window one by one, as the first convolution sees them.

    None where no group norm follows it.
    """
    first = extractor.conv_layers[0]
    if not isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
        return None
    weight = first.conv.weight
    return torch.eye(weight.shape[2], dtype=weight.dtype, device=weight.device)[:, None]


def normed_alone(
    conv: nn.Conv1d, norm: nn.GroupNorm, picks: torch.Tensor, x: torch.Tensor, steps: torch.Tensor
) -> torch.Tensor:
    """``norm(conv(x))``, (batch, channels, time), with statistics of the first ``steps`` (batch,) of each row only.

    The mask is laid on the few numbers that go into the convolution instead of the many that come out (10 against 512
    a step). Windows without their mean over the real steps, and zero behind them, make channels whose mean over *all*
    steps is 0 (a bias would be normed away) and whose variance over all is that over the real ones times their share.
    So windows are divided by the root of that share, the norm over all steps is the runtime's own, and its result is
    multiplied by it. The norm must have a group for each channel, as all families' has: pruning keeps it so.
    """
    windows = nn.functional.conv1d(x, picks, None, conv.stride, conv.padding, conv.dilation)
    real = filled(steps, windows, axis=2)[:, None]
    share = real.mean(2, keepdim=True).clamp(min=LEAST_SHARE)
    root = torch.sqrt(share)
    mean = (windows * real).mean(2, keepdim=True) / share
    channels = nn.functional.conv1d((windows - mean) * (real / root), conv.weight.transpose(1, 2))
    normed = nn.functional.group_norm(channels, norm.num_groups, eps=norm.eps)
    return normed * (root * norm.weight[:, None]) + norm.bias[:, None]


def encoded(encoder: Any, hidden: torch.Tensor, real: torch.Tensor, stable: bool) -> list[torch.Tensor]:
    """The input of the first layer and what each layer says, all (batch, frames, width).

    ``real`` (batch, frames, 1) is 1 where a frame is real. ``stable``: no norm comes before the layers, but one after
    them, which is left to the caller.
    """
    hidden = hidden * real
    hidden = hidden + positions(encoder.pos_conv_embed, hidden, real)
    if not stable:
        hidden = encoder.layer_norm(hidden)
    bias = (1 - real).transpose(1, 2)[:, None] * HIDDEN_SCORE
    states = [hidden]
    shared: dict[str, torch.Tensor] = {}
    for layer in encoder.layers:
        said = layer(hidden, attention_mask=bias, **shared)
        if isinstance(said, torch.Tensor):
            hidden = said
        else:  # WavLM's hands on the position bias that its first layer makes; transformers 4's are tuples of one
            hidden, shared = said[0], {"position_bias": said[1]} if len(said) > 1 else {}
        states.append(hidden)
    return states


def positions(embedding: Any, hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """What position convolutions say of (batch, frames, width), each of them given zeros where no frame is real."""
    hidden, real = hidden.transpose(1, 2), real.transpose(1, 2)
    if hasattr(embedding, "layers"):  # data2vec-audio's stack
        for layer in embedding.layers:
            hidden = layer(hidden * real)
    else:
        if getattr(embedding, "batch_norm", None) is not None:
            hidden = embedding.batch_norm(hidden) * real
        hidden = embedding.activation(embedding.padding(embedding.conv(hidden)))
    return hidden.transpose(1, 2)


def adapted(adapter: Any, hidden: torch.Tensor, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An adapter's strided convolutions after the encoder: fewer frames, (batch, frames, width), and how many are real."""
    if adapter.proj is not None:
        hidden = adapter.proj_layer_norm(adapter.proj(hidden))
    hidden = hidden.transpose(1, 2)
    for layer in adapter.layers:
        hidden = layer(hidden * filled(frames, hidden, axis=2)[:, None])
        frames = steps_of(layer.conv, frames)
    return hidden.transpose(1, 2), frames
