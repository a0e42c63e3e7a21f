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
    settings = {k: v for k, v in copy.deepcopy(model.origin.preprocessor or {}).items() if not k.endswith("_type")}
    settings.pop("processor_class", None)
    if model.context_positions is None:
        extractor = _extractor("Wav2Vec2FeatureExtractor", canonical_json(settings))
        values = extractor(clip, sampling_rate=16000, return_tensors="np").input_values
        return torch.from_numpy(np.asarray(values, dtype=np.float32))
    settings.setdefault("feature_size", int(model.network.config.num_mel_bins))
    extractor = _extractor("WhisperFeatureExtractor", canonical_json(settings))
    samples = round((model.max_seconds or 0) * 16000)
    values = extractor(
        clip, sampling_rate=16000, max_length=samples, padding="max_length", truncation=True, return_tensors="np"
    ).input_features
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
