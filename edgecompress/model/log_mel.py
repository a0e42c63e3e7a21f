"""Kaldi-compatible log-mel frames: on the host by kaldi-native-fbank, and as a torch module that goes into a graph.

Both take 16 kHz samples in [-1, 1], scaled by 2^15 as Kaldi reads them: 25 ms windows every 10 ms that lie wholly in the
audio (snip_edges), mean removed, pre-emphasis 0.97, Hamming, power spectrum of 512 points, triangular mel filters from
20 Hz to 8 kHz, logarithm floored at float32's epsilon; no dither, no energy. Then the mean and deviation of each bin over
a corpus, where known, and frames 2i and 2i + 1 side by side for models of 20 ms frames; an odd last one is given zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgecompress.errors import ModelError
from edgecompress.model.inputs import filled

if TYPE_CHECKING:
    from edgecompress.model.network import Model

SAMPLE_RATE = 16000
WINDOW_SAMPLES, SHIFT_SAMPLES, FFT_POINTS = 400, 160, 512
PRE_EMPHASIS = 0.97
LOWEST_HZ, HIGHEST_HZ = 20.0, 8000.0
SCALE = 32768.0
FLOOR = float(np.finfo(np.float32).eps)
# What a folder may say besides mean and deviation: these values and no others, since nothing else is computed.
FIXED: dict[str, Any] = {
    "feature_extractor_type": "MelHubertFeatureExtractor",
    "sampling_rate": SAMPLE_RATE,
    "frame_length_ms": 25,
    "frame_shift_ms": 10,
    "window_type": "hamming",
}


@dataclass(frozen=True)
class LogMelSettings:
    """How many bins, how many frames side by side, and the mean and deviation (bins,) that every frame is normalised by."""

    bins: int
    stacked: int = 1
    mean: np.ndarray = field(default_factory=lambda: np.zeros(1, np.float32))
    std: np.ndarray = field(default_factory=lambda: np.ones(1, np.float32))


def settings_of(model: Model) -> LogMelSettings:
    """What a MelHuBERT's config and ``preprocessor_config.json`` say. Without the latter nothing is normalised.

    Raises:
        ModelError: the folder asks for features of another kind.
    """
    bins, stacked = int(model.network.config.num_mel_bins), int(model.network.config.stacked_frames)
    given = model.origin.preprocessor or {}
    hint = "MelHuBERT's features are 40 log-mel bins, 25 ms every 10 ms; mean and std have one number a bin"
    for key, value in {**FIXED, "num_mel_bins": bins}.items():
        if given.get(key, value) != value:
            raise ModelError(f"preprocessor_config.json: {key} is {given[key]!r}, wanted {value!r}", hint=hint)
    if not given.get("mean"):
        return LogMelSettings(bins, stacked)
    mean, std = (np.asarray(given.get(key), dtype=np.float32) for key in ("mean", "std"))
    if mean.shape != (bins,) or std.shape != (bins,) or not (std > 0).all():
        raise ModelError("preprocessor_config.json: mean and std do not fit the bins", hint=hint)
    return LogMelSettings(bins, stacked, mean, std)


def preprocessor(bins: int, mean: np.ndarray, std: np.ndarray) -> dict[str, Any]:
    """The contents of ``preprocessor_config.json``."""
    return {**FIXED, "num_mel_bins": bins, "mean": [float(x) for x in mean], "std": [float(x) for x in std]}


# --- on the host -----------------------------------------------------------------------------------------------------
def log_mel(clip: np.ndarray, bins: int) -> np.ndarray:
    """(samples,) in [-1, 1] -> (frames of 10 ms, bins), float32, not normalised; 400 samples make the first frame."""
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = "hamming"
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = bins
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(SAMPLE_RATE, np.ascontiguousarray(clip, dtype=np.float32) * np.float32(SCALE))
    fbank.input_finished()
    return np.stack([fbank.get_frame(number) for number in range(fbank.num_frames_ready)]).astype(np.float32)


def features(clip: np.ndarray, settings: LogMelSettings) -> np.ndarray:
    """(samples,) -> (frames of the encoder, bins * stacked): normalised, side by side."""
    frames = (log_mel(clip, settings.bins) - settings.mean) / settings.std
    if frames.shape[0] % settings.stacked:
        frames = np.concatenate([frames, np.zeros_like(frames[:1])])
    return frames.reshape(-1, settings.bins * settings.stacked)


def statistics(clips: Iterable[np.ndarray], bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each bin over all frames of the clips: two of (bins,)."""
    count, total, squares = 0, np.zeros(bins), np.zeros(bins)
    for clip in clips:
        frames = log_mel(clip, bins).astype(np.float64)
        count += frames.shape[0]
        total += frames.sum(0)
        squares += np.square(frames).sum(0)
    if not count:
        raise ModelError("no audio to take the mean of", hint="give clips of 400 samples or more")
    mean = total / count
    return mean.astype(np.float32), np.sqrt(np.maximum(squares / count - mean**2, 1e-6)).astype(np.float32)


# --- in a graph ------------------------------------------------------------------------------------------------------
class LogMel(nn.Module):
    """:func:`features` as two convolutions and a logarithm: (batch, samples) -> (batch, frames, bins * stacked).

    All that Kaldi does to a window before the power spectrum is linear, so it is one matrix of 514 x 400. Convolutions,
    not matrix products: exporters quantise those, and eight bits are too few for a power spectrum.

    Held against double precision on 32,000 frames of speech, the greatest difference is 7e-5 with 40 bins and 8e-4 with
    80, where bins are near silent; Kaldi's own float32 is off by 6e-4 and 1e-2. ONNX Runtime, OpenVINO and LiteRT say
    what torch says.
    """

    spectrum: torch.Tensor
    filters: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, settings: LogMelSettings) -> None:
        super().__init__()
        self.stacked = settings.stacked
        self.bins = settings.bins
        matrices = {"spectrum": window_spectrum()[:, None], "filters": mel_filters(settings.bins)[:, :, None]}
        for name, matrix in matrices.items():
            self.register_buffer(name, torch.tensor(matrix, dtype=torch.float32))
        for name, values in (("mean", settings.mean), ("deviation", settings.std)):
            self.register_buffer(name, torch.tensor(np.broadcast_to(values, (settings.bins,)).copy()))

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return self._stack(self._frames(samples))

    def padded(self, samples: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``forward`` for rows of which the first ``lengths`` (batch,) samples are real; also how many frames are.

        An odd last frame of a row is given zeros, as where the row is alone.
        """
        frames = self._frames(samples)
        count = torch.div((lengths - WINDOW_SAMPLES + SHIFT_SAMPLES).clamp(min=0), SHIFT_SAMPLES, rounding_mode="floor")
        real = filled(count, frames)[..., None]
        return self._stack(frames * real), torch.div(count + self.stacked - 1, self.stacked, rounding_mode="floor")

    def _frames(self, samples: torch.Tensor) -> torch.Tensor:
        """(batch, samples) -> (batch, frames of 10 ms, bins), normalised."""
        real, imaginary = nn.functional.conv1d(samples[:, None], self.spectrum, stride=SHIFT_SAMPLES).chunk(2, dim=1)
        power = real * real + imaginary * imaginary
        mel = nn.functional.conv1d(power, self.filters).transpose(1, 2)
        return (torch.log(torch.clamp(mel, min=FLOOR)) - self.mean) / self.deviation

    def _stack(self, frames: torch.Tensor) -> torch.Tensor:
        """(batch, frames of 10 ms, bins) -> as many side by side as the encoder takes, zeros where one is missing."""
        if self.stacked == 1:
            return frames
        padded = torch.cat([frames, torch.zeros_like(frames[:, :1])], dim=1)
        pairs = (frames.shape[1] + 1) // 2
        return padded[:, : 2 * pairs].reshape(frames.shape[0], pairs, 2 * self.bins)

    def macs(self, samples: int) -> int:
        """Multiply-accumulates for so many samples."""
        frames = 1 + (samples - WINDOW_SAMPLES) // SHIFT_SAMPLES
        return frames * (self.spectrum.numel() + self.filters.numel())


def window_spectrum() -> np.ndarray:
    """(2 * 257, 400): real parts, then imaginary ones, of the spectrum of a window of samples in [-1, 1]."""
    time = np.arange(WINDOW_SAMPLES)
    centred = np.eye(WINDOW_SAMPLES) - 1 / WINDOW_SAMPLES
    emphasis = np.eye(WINDOW_SAMPLES) - PRE_EMPHASIS * np.eye(WINDOW_SAMPLES, k=-1)
    emphasis[0, 0] = 1 - PRE_EMPHASIS  # Kaldi takes the first sample for the one before it
    hamming = 0.54 - 0.46 * np.cos(2 * np.pi * time / (WINDOW_SAMPLES - 1))
    angle = -2 * np.pi * np.outer(np.arange(FFT_POINTS // 2 + 1), time) / FFT_POINTS
    fourier = np.concatenate([np.cos(angle), np.sin(angle)])
    return np.asarray(SCALE * fourier * hamming @ emphasis @ centred)


def mel_filters(bins: int) -> np.ndarray:
    """(bins, 257): triangles that are even on the mel scale, 1127 ln(1 + f / 700), as Kaldi makes them."""

    def mel(hertz: np.ndarray | float) -> Any:
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    points = mel(np.arange(FFT_POINTS // 2 + 1) * SAMPLE_RATE / FFT_POINTS)
    low, high = float(mel(LOWEST_HZ)), float(mel(HIGHEST_HZ))
    step = (high - low) / (bins + 1)
    left = low + step * np.arange(bins)[:, None]
    rising, falling = (points - left) / step, (left + 2 * step - points) / step
    filters = np.maximum(0.0, np.minimum(rising, falling))
    filters[:, -1] = 0.0  # Kaldi leaves the highest point of the spectrum out
    return np.asarray(filters)


def frames_of(samples: int, stacked: int) -> int:
    """How many frames of the encoder so many samples make; 0 below 400."""
    return max(0, math.ceil((1 + (samples - WINDOW_SAMPLES) // SHIFT_SAMPLES) / stacked))
