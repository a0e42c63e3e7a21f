"""What an app must do to audio before it feeds a file, as data for the artifact's record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.forms import Form


def preparation(model: Model, form: Form) -> dict[str, Any]:
    """From 16 kHz mono float32 samples in [-1, 1] to the input: kind and numbers.

    ``none``: the samples as they are. ``zero_mean_unit_variance``: (x - mean) / sqrt(variance + epsilon), each clip.
    ``kaldi_log_mel`` and ``whisper_log_mel``: frames made on the host, with these settings.
    """
    settings = dict(model.origin.preprocessor or {})
    if form.unit == "samples":
        if model.anatomy.front_end_kind == "convolutions" and settings.get("do_normalize", True):
            return {"kind": "zero_mean_unit_variance", "epsilon": 1e-7}
        return {"kind": "none"}
    if model.anatomy.front_end_kind == "whisper":
        bins = int(model.network.config.num_mel_bins)
        known = {"window_samples": 400, "hop_samples": 160, "mel_bins": bins, "window": "hann", "centred": True}
        return {"kind": "whisper_log_mel", **known, "floor_below_greatest": 8.0, "shift": 4.0, "scale": 0.25}
    from edgecompress.model.log_mel import settings_of

    asked = settings_of(model)
    return {
        "kind": "kaldi_log_mel",
        "window_samples": 400,
        "hop_samples": 160,
        "mel_bins": asked.bins,
        "stacked": asked.stacked,
        "mean": [float(value) for value in asked.mean],
        "std": [float(value) for value in asked.std],
    }
