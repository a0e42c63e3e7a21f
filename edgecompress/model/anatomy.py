"""Where a family keeps its parts: a few strings a family, and nothing that computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgecompress.errors import ModelError

HEADS = {
    "Model": None,
    "ForPreTraining": None,
    "ForCTC": "logits",
    "ForSequenceClassification": "logits",
    "ForAudioFrameClassification": "logits",
    "ForConditionalGeneration": None,
    "ForAudioClassification": "logits",
    "ForTokenClassification": "logits",
    "ForImageClassification": "logits",
}
# Heads that only pretraining asks; a folder that was saved with one is loaded without it.
PRETRAINING = ("ForPreTraining", "ForMaskedLM", "ForMaskedImageModeling")


@dataclass(frozen=True)
class Anatomy:
    """Names inside one family of transformers modules.

    Paths are dotted names: ``encoder`` from the base model, the others from one encoder layer; ``stack`` is the encoder's
    list of layers, ``matrices`` says where a layer has matrices that are not called as :meth:`path` supposes.
    ``front_end_kind`` is what makes frames: convolutions over samples, log-mel on the host (or in an exported graph),
    Whisper's mel and convolutions; or a table of tokens, or a projection of patches of an image.
    """

    family: str
    prefix: str
    input_name: Literal["input_values", "input_features", "input_ids", "pixel_values"]
    front_end_kind: Literal["convolutions", "log_mel", "whisper", "tokens", "patches"] = "convolutions"
    encoder: str = "encoder"
    stack: str = "layers"
    front_end: tuple[str, ...] = ("feature_extractor",)
    projection: str | None = "feature_projection"
    position_conv: str | None = "encoder.pos_conv_embed"
    attention: str = "attention"
    up: str = "feed_forward.intermediate_dense"
    down: str = "feed_forward.output_dense"
    matrices: Mapping[str, str] = field(default_factory=dict, hash=False)
    relative_position: bool = False
    pretraining_head: bool = False
    architectures: tuple[str, ...] = field(default=())

    @property
    def takes(self) -> Literal["audio", "tokens", "images"]:
        """What goes in: 16 kHz audio, token numbers, or images of one size."""
        if self.front_end_kind == "patches":
            return "images"
        return "tokens" if self.front_end_kind == "tokens" else "audio"

    def path(self, matrix: str) -> str:
        """Where a layer has its ``q_proj, k_proj, v_proj, out_proj, up`` or ``down``."""
        if matrix in ("up", "down"):
            return self.up if matrix == "up" else self.down
        return self.matrices.get(matrix, f"{self.attention}.{matrix}")

    def output_name(self, architecture: str) -> str:
        """Name of the exported output: ``logits`` when the architecture has a task head, else ``last_hidden_state``."""
        return HEADS[architecture.removeprefix(self.prefix)] or "last_hidden_state"


_SPEECH = ("Model", "ForPreTraining", "ForCTC", "ForSequenceClassification", "ForAudioFrameClassification")
_WHISPER = ("Model", "ForConditionalGeneration", "ForAudioClassification")

FAMILIES: dict[str, Anatomy] = {
    "hubert": Anatomy("hubert", "Hubert", "input_values", architectures=_SPEECH),
    "wav2vec2": Anatomy("wav2vec2", "Wav2Vec2", "input_values", architectures=_SPEECH),
    "wavlm": Anatomy("wavlm", "WavLM", "input_values", relative_position=True, architectures=_SPEECH),
    "data2vec-audio": Anatomy("data2vec-audio", "Data2VecAudio", "input_values", architectures=_SPEECH),
    "melhubert": Anatomy(
        "melhubert",
        "MelHubert",
        "input_features",
        front_end_kind="log_mel",
        front_end=(),
        pretraining_head=True,
        architectures=_SPEECH[:4],
    ),
    "whisper": Anatomy(
        "whisper",
        "Whisper",
        "input_features",
        front_end_kind="whisper",
        front_end=("encoder.conv1", "encoder.conv2"),
        projection=None,
        position_conv=None,
        attention="self_attn",
        up="fc1",
        down="fc2",
        architectures=_WHISPER,
    ),
    "bert": Anatomy(
        "bert",
        "Bert",
        "input_ids",
        front_end_kind="tokens",
        stack="layer",
        front_end=(),
        projection=None,
        position_conv=None,
        attention="attention.self",
        up="intermediate.dense",
        down="output.dense",
        matrices={
            "q_proj": "attention.self.query",
            "k_proj": "attention.self.key",
            "v_proj": "attention.self.value",
            "out_proj": "attention.output.dense",
        },
        architectures=("Model", "ForPreTraining", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"),
    ),
    "vit": Anatomy(
        "vit",
        "ViT",
        "pixel_values",
        front_end_kind="patches",
        encoder="",
        front_end=(),
        projection=None,
        position_conv=None,
        up="mlp.fc1",
        down="mlp.fc2",
        matrices={"out_proj": "attention.o_proj"},
        architectures=("Model", "ForMaskedImageModeling", "ForImageClassification"),
    ),
}


def anatomy_of(model_type: str, where: str) -> Anatomy:
    """The anatomy of a ``config.json``'s ``model_type``.

    Raises:
        ModelError: a family that is not supported.
    """
    if model_type not in FAMILIES:
        raise ModelError(
            f"{where}: model_type {model_type!r} is not a family edgecompress can take",
            hint=f"families are {', '.join(sorted(FAMILIES))}",
        )
    return FAMILIES[model_type]


def class_name(anatomy: Anatomy, architecture: str, where: str) -> str:
    """The class to build for ``architecture``; pretraining heads are left off (they serve no device) but MelHuBERT's.

    Raises:
        ModelError: a head that is not supported.
    """
    suffix = architecture.removeprefix(anatomy.prefix)
    if not architecture.startswith(anatomy.prefix) or suffix not in anatomy.architectures:
        allowed = ", ".join(anatomy.prefix + name for name in anatomy.architectures)
        raise ModelError(
            f"{where}: architecture {architecture!r} is not supported", hint=f"{anatomy.family} has {allowed}"
        )
    return anatomy.prefix + ("Model" if suffix in PRETRAINING and not anatomy.pretraining_head else suffix)
