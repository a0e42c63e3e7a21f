"""Whisper's log-mel frames as a torch module that goes into a graph, equal to transformers' extractor on the host.

16 kHz samples in [-1, 1], padded with silence to a fixed length and mirrored at both ends; Hann windows of 400 samples
every 160; power spectrum; 80 or 128 triangular mel filters (Slaney's scale and norm, 0 to 8 kHz); log10, floored at 1e-10
and at 8 below the greatest value of the clip; (x + 4) / 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgecompress.errors import ModelError
from edgecompress.model.features import heard_samples
from edgecompress.model.forms import encoder_form

if TYPE_CHECKING:
    from edgecompress.model.network import Model

WINDOW_SAMPLES, SHIFT_SAMPLES = 400, 160
FLOOR = 1e-10
RANGE = 8.0  # of what is kept, in powers of ten below the loudest
# What a folder may say of its extractor: these values and no others, since nothing else is computed here.
FIXED: dict[str, Any] = {
    "sampling_rate": 16000,
    "n_fft": WINDOW_SAMPLES,
    "hop_length": SHIFT_SAMPLES,
    "padding_value": 0.0,
    "dither": 0.0,
}


class WhisperLogMel(nn.Module):
    """(batch, samples) -> (batch, mel bins, 2 * positions), for as many samples as there are.

    What is shorter than the context is padded with silence inside, what is longer is cut off. Convolutions, not matrix
    products, for the reason of :class:`edgecompress.model.log_mel.LogMel`.

    In float32, held against double precision: 1e-5 to 4e-5 on speech, where the host's extractor, float32 too, is off
    by 1e-5 to 3e-5; the largest in bins near the floor beside loud ones.
    """

    spectrum: torch.Tensor
    filters: torch.Tensor

    def __init__(self, bins: int, positions: int, context: int | None = None) -> None:
        """``positions`` of 20 ms come out; those of a longer ``context`` are cut off, as ``features`` does it."""
        super().__init__()
        self.samples = heard_samples(positions, context or positions)
        self.frames = 2 * positions
        matrices = {"spectrum": window_spectrum()[:, None], "filters": mel_filters(bins)[:, :, None]}
        for name, matrix in matrices.items():
            self.register_buffer(name, torch.tensor(matrix, dtype=torch.float32), persistent=False)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        heard = nn.functional.pad(samples[:, None], (0, self.samples))[:, :, : self.samples]
        mirrored = nn.functional.pad(heard, (WINDOW_SAMPLES // 2, WINDOW_SAMPLES // 2), mode="reflect")
        real, imaginary = nn.functional.conv1d(mirrored, self.spectrum, stride=SHIFT_SAMPLES).chunk(2, dim=1)
        power = (real * real + imaginary * imaginary)[:, :, : self.samples // SHIFT_SAMPLES]  # without the last frame
        mel = nn.functional.conv1d(power, self.filters)
        loudness = torch.log10(torch.clamp(mel, min=FLOOR))
        loudest = loudness.amax(dim=(1, 2), keepdim=True)
        said: torch.Tensor = (torch.maximum(loudness, loudest - RANGE)[:, :, : self.frames] + 4.0) / 4.0
        return said

    def macs(self) -> int:
        """Multiply-accumulates for one clip, whatever its length."""
        windows = self.samples // SHIFT_SAMPLES
        return (windows + 1) * self.spectrum.numel() + windows * self.filters.numel()


class WhisperWaveformForm(nn.Module):
    """Whisper from samples: (batch, samples) at 16 kHz in [-1, 1] of any length, its whole context made on the way.

    ``inner`` is what takes the log-mel frames: the encoder or the classifier, unless told.
    """

    def __init__(self, model: Model, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.log_mel = log_mel_of(model).to(model.device)
        self.inner = inner or encoder_form(model)

    def forward(self, samples: torch.Tensor) -> Any:
        return self.inner(self.log_mel(samples))


def log_mel_of(model: Model) -> WhisperLogMel:
    """The module that makes what ``model.features`` gives, for the context that the encoder sees.

    Raises:
        ModelError: another family, or the folder asks for features of another kind.
    """
    if model.context_positions is None:
        raise ModelError(f"{model.family} does not hear as Whisper does", hint="only Whisper has this log-mel")
    bins = int(model.network.config.num_mel_bins)
    given = model.origin.preprocessor or {}
    for key, value in {**FIXED, "feature_size": bins}.items():
        if given.get(key, value) != value:
            raise ModelError(
                f"preprocessor_config.json: {key} is {given[key]!r}, wanted {value!r}",
                hint="Whisper hears windows of 400 samples every 160 at 16 kHz; export it to be fed with features",
            )
    return WhisperLogMel(bins, model.context_positions)


def window_spectrum() -> np.ndarray:
    """(2 * 201, 400): real parts, then imaginary ones, of the spectrum of a window of samples under a Hann window."""
    time = np.arange(WINDOW_SAMPLES)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * time / WINDOW_SAMPLES)
    angle = -2 * np.pi * np.outer(np.arange(WINDOW_SAMPLES // 2 + 1), time) / WINDOW_SAMPLES
    return np.asarray(np.concatenate([np.cos(angle), np.sin(angle)]) * hann)


def mel_filters(bins: int) -> np.ndarray:
    """(bins, 201): the library's own filters."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        num_frequency_bins=1 + WINDOW_SAMPLES // 2,
        num_mel_filters=bins,
        min_frequency=0.0,
        max_frequency=8000.0,
        sampling_rate=16000,
        norm="slaney",
        mel_scale="slaney",
    )
    return np.asarray(filters).T
