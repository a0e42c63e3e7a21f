"""Tiny models of every family for the tests: real architectures, seeded random weights, outputs worth comparing.

The convolutions keep their real kernels and strides, so lengths behave as in the real networks: 400 samples are the
least, 320 samples make a frame. Weights are scaled such that attention is not flat and biases are not zero: a wrong
head, a lost bias or a swapped layer shows in the output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from edgecompress import cost
from edgecompress.model import FAMILIES as ANATOMIES
from edgecompress.model import Model, from_config
from edgecompress.model.features import image_shape
from edgecompress.model.network import Origin
from edgecompress.model.storage import dress, network_class
from edgecompress.records import Source
from edgecompress.techniques.sparsity import pieces_of

FAMILIES = ("hubert", "wav2vec2", "wavlm", "data2vec-audio", "melhubert", "whisper")
VIT_IS_THERE = int(transformers.__version__.split(".")[0]) >= 5  # before, its parts were called otherwise
OTHER_FAMILIES = ("bert", "vit") if VIT_IS_THERE else ("bert",)  # no audio goes in
PREFIX = {family: anatomy.prefix for family, anatomy in ANATOMIES.items()}

HIDDEN, HEADS, LAYERS, UNITS = 64, 4, 3, 96
WHISPER_POSITIONS = 100  # 2 s of audio, 200 mel frames

_WAVEFORM: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": UNITS,
    "conv_dim": (32,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 20,
    "classifier_proj_size": 24,
    "num_labels": 5,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}
_WHISPER: dict[str, Any] = {
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "encoder_ffn_dim": UNITS,
    "decoder_layers": 1,
    "decoder_attention_heads": HEADS,
    "decoder_ffn_dim": UNITS,
    "max_source_positions": WHISPER_POSITIONS,
    "max_target_positions": 16,
    "vocab_size": 40,
    "num_mel_bins": 80,
    "pad_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "classifier_proj_size": 24,
    "num_labels": 5,
}

_BERT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": UNITS,
    "vocab_size": 50,
    "max_position_embeddings": 40,
    "num_labels": 5,
}
_VIT: dict[str, Any] = {**_BERT, "image_size": 32, "patch_size": 8}
for _name in ("vocab_size", "max_position_embeddings"):
    del _VIT[_name]
_KNOWN = {"whisper": _WHISPER, "bert": _BERT, "vit": _VIT}

# (family, variant): what the library has of front ends, encoders and heads. Keywords for ``tiny``.
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    *(
        (family, {"front_end": front_end, "stable": stable})
        for family in ("hubert", "wav2vec2", "wavlm")
        for front_end in ("group", "layer")
        for stable in (False, True)
    ),
    ("data2vec-audio", {}),
    *((family, {"head": head}) for family in FAMILIES[:5] for head in ("ForCTC", "ForSequenceClassification")),
    ("melhubert", {}),
    ("melhubert", {"head": "ForPreTraining"}),
    ("melhubert", {"feature_dim": 40, "frame_period_ms": 10}),
    ("whisper", {}),
    ("whisper", {"head": "ForConditionalGeneration"}),
    ("whisper", {"head": "ForAudioClassification"}),
)


def variant_name(family: str, variant: dict[str, Any]) -> str:
    """A readable id for a parametrised test: ``wavlm-layer-stable``, ``hubert-ForCTC`` ..."""
    words = [family, variant.get("front_end", ""), "stable" if variant.get("stable") else "", variant.get("head", "")]
    words += ["10ms"] if variant.get("frame_period_ms") == 10 else []
    return "-".join(word for word in words if word)


VARIANT_NAMES = tuple(variant_name(family, variant) for family, variant in VARIANTS)
OTHER_VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("bert", {"head": head}) for head in ("Model", "ForSequenceClassification", "ForTokenClassification")),
    *(("vit", {"head": head}) for head in ("Model", "ForImageClassification") if VIT_IS_THERE),
)
OTHER_NAMES = tuple(variant_name(family, variant) for family, variant in OTHER_VARIANTS)


def tiny_config(
    family: str, *, front_end: str = "group", stable: bool = False, head: str = "Model", **settings: Any
) -> Any:
    """A transformers config of a tiny network; ``settings`` overrides single fields."""
    config_class = network_class(PREFIX[family] + "Config")
    known = dict(_KNOWN.get(family, _WAVEFORM))
    if family in ("hubert", "wav2vec2", "wavlm"):
        known |= {"feat_extract_norm": front_end, "do_stable_layer_norm": stable}
    if family == "melhubert":
        known |= {"num_clusters": 16}
    if family == "data2vec-audio":
        known.pop("num_conv_pos_embeddings")
        known |= {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 3}
    return config_class(**{**known, **settings}, architectures=[PREFIX[family] + head])


def tiny(
    family: str, *, front_end: str = "group", stable: bool = False, head: str = "Model", seed: int = 0, **settings: Any
) -> Model:
    """A tiny :class:`Model` with seeded random weights.

    Args:
        family: one of ``FAMILIES`` or ``OTHER_FAMILIES``.
        front_end: ``group`` or ``layer`` norm in the convolutions (hubert, wav2vec2, wavlm).
        stable: the stable (pre-norm) encoder (hubert, wav2vec2, wavlm).
        head: ``Model``, ``ForCTC``, ``ForSequenceClassification``, MelHuBERT: ``ForPreTraining`` too; Whisper: ``Model``, ``ForConditionalGeneration``,
            ``ForAudioClassification``.
        seed: of the weights.
        settings: fields of the transformers config.
    """
    config = tiny_config(family, front_end=front_end, stable=stable, head=head, **settings)
    model = from_config(config, seed=seed, name=f"tiny-{family}")
    return liven(model, seed)


@torch.no_grad()
def liven(model: Model, seed: int) -> Model:
    """Give every linear map and bias random numbers of a size that matters; norms stay near one."""
    generator = torch.Generator().manual_seed(seed + 1)

    def noise(like: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator) * scale

    for name, module in model.network.named_modules():
        if isinstance(module, nn.Linear):
            gain = 1.5 if name.endswith(("q_proj", "k_proj", "query", "key")) else 1.0
            module.weight.copy_(noise(module.weight, gain / math.sqrt(module.in_features)))
        if model.family == "whisper" and isinstance(module, nn.Conv1d):
            module.weight.copy_(noise(module.weight, 2 / math.sqrt(module.weight[0].numel())))
        if isinstance(module, nn.Linear | nn.LayerNorm | nn.GroupNorm) and module.bias is not None:
            module.bias.copy_(noise(module.bias, 0.2))
        if isinstance(module, nn.LayerNorm | nn.GroupNorm) and module.weight is not None:
            module.weight.copy_(1 + noise(module.weight, 0.1))
        if name.endswith("rel_attn_embed"):
            module.weight.copy_(noise(module.weight, 1.0))
        if hasattr(module, "gru_rel_pos_const"):
            module.gru_rel_pos_const.copy_(1 + noise(module.gru_rel_pos_const, 0.3))
    return model


def on_meta(config: Any) -> Model:
    """A model of any size without memory for its weights: for counting only."""
    anatomy = ANATOMIES[config.model_type]
    architecture = (config.architectures or [anatomy.prefix + "Model"])[0]
    with torch.device("meta"):
        network = network_class(architecture)._from_config(config, attn_implementation="eager")
    source = Source(name="meta", sha256="0" * 64, random_weights=True)
    return dress(network, anatomy, architecture, Origin(config.to_dict(), None, source), check=False)


def noise_clip(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    """A clip of 16 kHz mono audio, float32: a few drifting tones in noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16000)) / 16000
    tones = sum(np.sin(2 * np.pi * (hz + 40 * time) * time) for hz in rng.uniform(100, 2000, 4))
    return (0.1 * tones + 0.02 * rng.standard_normal(time.size)).astype(np.float32)


def example(model: Model, *, batch: int = 1, length: int | None = None, seed: int = 0) -> torch.Tensor:
    """Random input: (batch, samples), as many log-mel frames for MelHuBERT, or (batch, mel bins, frames) for Whisper;
    (batch, tokens) for BERT and (batch, 3, height, width) for ViT.

    ``length`` counts samples, for Whisper mel frames, the whole context unless told, for BERT tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    if model.anatomy.takes == "tokens":
        return torch.randint(0, int(model.network.config.vocab_size), (batch, length or 17), generator=generator)
    if model.anatomy.takes == "images":
        return torch.randn(batch, *image_shape(model), generator=generator)
    if model.family == "melhubert":
        frames = cost.frames_of(model, length or 8000)
        return torch.randn(batch, frames, int(model.network.config.feature_dim), generator=generator)
    if model.context_positions is None:
        return torch.randn(batch, length or 8000, generator=generator)
    frames = length or 2 * model.context_positions
    return torch.randn(batch, int(model.network.config.num_mel_bins), frames, generator=generator)


def clips_of(model: Model, count: int = 3, seconds: float = 0.25) -> list[np.ndarray]:
    """What a technique calibrates with: clips of audio; tokens of several lengths or images where no audio goes in."""
    if model.anatomy.takes == "audio":
        return [noise_clip(seconds, seed) for seed in range(count)]
    return [example(model, length=9 + 4 * seed, seed=seed)[0].numpy() for seed in range(count)]


def filled_mask(model: Model, samples: int, filled: Sequence[int]) -> torch.Tensor:
    """The mask of a padded batch as the family's forward takes it: by sample, by frame for MelHuBERT; 1 is audio."""
    if model.family == "melhubert":
        samples, filled = cost.frames_of(model, samples), [cost.frames_of(model, each) for each in filled]
    return (torch.arange(samples) < torch.tensor(list(filled))[:, None]).long()


def prunable(model: Model) -> list[torch.Tensor]:
    """Weights and biases of every attention and feed-forward matrix of the layers that are left."""
    return [piece.tensor for piece in pieces_of(model)]
