"""From 16 kHz audio to what an encoder takes: by the library's own feature extractors, with the folder's settings."""

from __future__ import annotations

import copy
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgecompress.errors import AudioError
from edgecompress.records import canonical_json

if TYPE_CHECKING:
    from edgecompress.model.network import Model

MINIMUM_SAMPLES = 400
POSITION_SAMPLES = 320  # of one frame of Whisper's encoder, 20 ms


@cache
def _extractor(kind: str, settings: str) -> Any:
    import json

    import transformers

    return getattr(transformers, kind)(**json.loads(settings))


def extract(model: Model, clip: np.ndarray) -> torch.Tensor:
    """See :meth:`Model.features`."""
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
    samples = min(context, positions + 50) * POSITION_SAMPLES
    values = extractor(
        clip, sampling_rate=16000, max_length=samples, padding="max_length", truncation=True, return_tensors="np"
    ).input_features
    return torch.from_numpy(np.asarray(values[:, :, : 2 * positions], dtype=np.float32))


def _settings(model: Model) -> dict[str, Any]:
    """What the folder says about its feature extractor, without the names of classes."""
    given = copy.deepcopy(model.origin.preprocessor or {})
    return {key: value for key, value in given.items() if not key.endswith("_type") and key != "processor_class"}
