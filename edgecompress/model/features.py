"""From 16 kHz audio to what an encoder takes: by the library's own feature extractors, with the folder's settings.

Tokens and pixels are taken as they are: a tokenizer and an image processor are the caller's, here is checked what they made.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgecompress.errors import AudioError, ModelError
from edgecompress.records import canonical_json

if TYPE_CHECKING:
    from edgecompress.model.network import Model

MINIMUM_SAMPLES = 400
POSITION_SAMPLES = 320  # of one frame of Whisper's encoder, 20 ms
USUAL_TOKENS = 128  # of a text, where nothing else is asked
POSITIONS_AFTER = 50  # of silence, heard after those that are wanted


@cache
def _extractor(kind: str, settings: str) -> Any:
    import json

    import transformers

    return getattr(transformers, kind)(**json.loads(settings))


def extract(model: Model, clip: np.ndarray) -> torch.Tensor:
    """See :meth:`Model.features`."""
    if model.anatomy.takes == "tokens":
        return _tokens(model, clip)
    if model.anatomy.takes == "images":
        return _pixels(model, clip)
    if clip.ndim != 1 or clip.size < MINIMUM_SAMPLES:
        raise AudioError(
            f"a clip of shape {clip.shape} is too short or not mono",
            hint=f"at least {MINIMUM_SAMPLES} samples at 16 kHz",
        )
    if model.anatomy.front_end_kind == "log_mel":
        from edgecompress.model import log_mel

        return torch.from_numpy(log_mel.features(clip, log_mel.settings_of(model)))[None]
    if model.context_positions is not None:
        return whisper_features(model, clip, model.context_positions)
    extractor = _extractor("Wav2Vec2FeatureExtractor", canonical_json(_settings(model)))
    values = extractor(clip, sampling_rate=16000, return_tensors="np").input_values
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def whisper_features(model: Model, clip: np.ndarray, positions: int) -> torch.Tensor:
    """The first ``positions`` (20 ms) of a clip as Whisper hears them: (1, mel bins, 2 * positions).

    They are those of the whole context, cut off. To make only what is needed, a second of silence is put after them:
    the extractor mirrors what is at the very end.
    """
    context = int(model.context_positions or 0)
    settings = {"feature_size": int(model.network.config.num_mel_bins), **_settings(model)}
    extractor = _extractor("WhisperFeatureExtractor", canonical_json(settings))
    samples = heard_samples(positions, context)
    values = extractor(
        clip, sampling_rate=16000, max_length=samples, padding="max_length", truncation=True, return_tensors="np"
    ).input_features
    return torch.from_numpy(np.asarray(values[:, :, : 2 * positions], dtype=np.float32))


def _tokens(model: Model, numbers: np.ndarray) -> torch.Tensor:
    config = model.network.config
    longest, known = int(config.max_position_embeddings), int(config.vocab_size)
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        raise ModelError(
            f"{model.family} takes tokens, not {_told(numbers)}",
            hint="give token numbers, a one-dimensional array of integers, as a tokenizer makes them",
        )
    if not 1 <= numbers.size <= longest:
        raise ModelError(f"{numbers.size} tokens, wanted 1 to {longest}", hint="cut the text")
    if numbers.min() < 0 or numbers.max() >= known:
        raise ModelError(
            f"token numbers from {numbers.min()} to {numbers.max()}, wanted 0 to {known - 1}",
            hint="take the tokenizer that belongs to the model",
        )
    return torch.from_numpy(numbers.astype(np.int64))[None]


def _pixels(model: Model, pixels: np.ndarray) -> torch.Tensor:
    wanted = image_shape(model)
    if pixels.shape != wanted or not np.issubdtype(pixels.dtype, np.floating):
        raise ModelError(
            f"{model.family} takes images, not {_told(pixels)}",
            hint=f"give floats of shape {wanted}, as the image processor of its folder makes them",
        )
    return torch.from_numpy(pixels.astype(np.float32))[None]


def image_shape(model: Model) -> tuple[int, int, int]:
    """(channels, height, width) of the images that a ViT takes."""
    embeddings = model.base.embeddings
    height, width = embeddings.patch_embeddings.image_size
    return int(embeddings.patch_embeddings.num_channels), int(height), int(width)


def _told(given: np.ndarray) -> str:
    audio = given.ndim == 1 and np.issubdtype(given.dtype, np.floating)
    return "audio" if audio else f"{given.dtype} of shape {given.shape}"


def whisper_log_mel(clip: np.ndarray, bins: int, frames: int) -> np.ndarray:
    """A clip of 16 kHz mono audio as Whisper's usual extractor hears it: (1, bins, frames), float32."""
    extractor = _extractor("WhisperFeatureExtractor", canonical_json({"feature_size": bins}))
    values = extractor(clip, sampling_rate=16000, return_tensors="np").input_features
    return np.asarray(values[:, :, :frames], dtype=np.float32)


def heard_samples(positions: int, context: int) -> int:
    """How many samples features are made of where ``positions`` of a context are wanted."""
    return min(context, positions + POSITIONS_AFTER) * POSITION_SAMPLES


def _settings(model: Model) -> dict[str, Any]:
    """What the folder says about its feature extractor, without the names of classes."""
    given = copy.deepcopy(model.origin.preprocessor or {})
    return {key: value for key, value in given.items() if not key.endswith("_type") and key != "processor_class"}
