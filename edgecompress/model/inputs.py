"""Clips of different lengths as one padded batch, and what of it is audio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from edgecompress.model.network import Model

POSITIONS_AT_ONCE = 50  # Whisper's batches grow by seconds, so that few shapes occur


@dataclass(frozen=True)
class Inputs:
    """A padded batch: what :meth:`Model.states` and :meth:`Model.logits` take.

    ``values`` are (batch, samples) for waveform families, (batch, frames, log-mel features) for MelHuBERT, (batch, mel
    bins, mel frames) for Whisper, (batch, tokens) for BERT, (batch, channels, height, width) for ViT. ``frames`` and
    ``samples`` (batch,) say how many encoder frames and how many samples each clip fills (both are tokens, or patches and
    one, where there is no audio); ``length`` is the number of encoder frames, padding included.
    """

    values: torch.Tensor
    frames: torch.Tensor
    samples: torch.Tensor
    length: int

    @property
    def mask(self) -> torch.Tensor:
        """(batch, length), True where audio fills the frame."""
        return torch.arange(self.length, device=self.frames.device) < self.frames[:, None]

    @property
    def padded(self) -> bool:
        """Whether any clip is shorter than the batch."""
        return bool((self.frames < self.length).any() or (self.samples < self.samples.max()).any())

    def to(self, device: torch.device | str) -> Inputs:
        """The same batch on another device."""
        return Inputs(self.values.to(device), self.frames.to(device), self.samples.to(device), self.length)


def collate(model: Model, clips: Sequence[np.ndarray], positions: int | None = None) -> Inputs:
    """See :meth:`Model.collate`."""
    if model.anatomy.takes == "images":
        images = torch.cat([model.features(clip) for clip in clips])
        count = torch.full((len(clips),), int(model.base.embeddings.position_embeddings.shape[1]))
        return Inputs(images, count, count, int(count[0]))
    samples = torch.tensor([clip.size for clip in clips])
    kind = model.anatomy.front_end_kind
    if kind == "whisper":
        return _whisper(model, clips, samples, positions)
    values = [model.features(clip)[0] for clip in clips]
    fill = int(model.network.config.pad_token_id or 0) if kind == "tokens" else 0
    padded = nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=fill)
    if kind == "tokens":
        return Inputs(padded, samples, samples, int(padded.shape[1]))
    if kind == "log_mel":
        return Inputs(padded, torch.tensor([each.shape[0] for each in values]), samples, int(padded.shape[1]))
    frames = frames_of(model, samples)
    return Inputs(padded, frames, samples, int(frames.max()))


def _whisper(model: Model, clips: Sequence[np.ndarray], samples: torch.Tensor, positions: int | None) -> Inputs:
    """As many positions as the longest clip fills and one more, so that its last one hears the silence after it."""
    from edgecompress.model.features import whisper_features

    context = int(model.context_positions or 0)
    frames = torch.tensor([model.filled_frames(clip) for clip in clips])
    needed = (int(frames.max()) // POSITIONS_AT_ONCE + 1) * POSITIONS_AT_ONCE
    length = min(context, needed if positions is None else positions)
    values = torch.cat([whisper_features(model, clip, length) for clip in clips])
    return Inputs(values, frames.clamp(max=length), samples, length)


def frames_of(model: Model, samples: torch.Tensor) -> torch.Tensor:
    """How many frames the convolutions of a waveform front end make of so many samples; both (batch,)."""
    for conv in _front_convolutions(model):
        samples = steps_of(conv, samples)
    return samples


def _front_convolutions(model: Model) -> Iterator[nn.Conv1d]:
    for path in model.anatomy.front_end:
        yield from (part for part in model.base.get_submodule(path).modules() if isinstance(part, nn.Conv1d))


def steps_of(conv: nn.Conv1d, length: torch.Tensor) -> torch.Tensor:
    """How many steps a convolution makes of so many: none where its kernel does not fit. Integers, any shape."""
    reach = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
    room = (length + 2 * int(conv.padding[0]) - reach + conv.stride[0]).clamp(min=0)
    return torch.div(room, conv.stride[0], rounding_mode="floor")  # "trunc" would become a division of floats in TFLite


def filled(count: torch.Tensor, like: torch.Tensor, axis: int = 1) -> torch.Tensor:
    """(batch, steps of ``like``'s ``axis``): 1 for the first ``count`` (batch,) steps, 0 for the rest, typed as ``like``."""
    steps = torch.arange(like.shape[axis], dtype=count.dtype, device=count.device)
    return (steps < count[:, None]).to(like.dtype)
