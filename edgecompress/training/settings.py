"""What a training asks for, as frozen values: the fields are the keys of a ``recovery`` or ``training`` table. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid")
Share = Annotated[float, Field(ge=0, le=1)]
KeptGib = Annotated[float, Field(ge=0, description="memory for what the teacher says of whole clips, GiB")]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class MatchStates:
    """Hidden states of the teacher: L1 plus one minus cosine, frame by frame (DPHuBERT, Peng et al., 2023).

    ``layers`` pairs the student's states with the teacher's: ``"last"``; ``"same"``, every layer that is left with the
    teacher's of the same original number (state 0, the input of the first layer, too); ``"even"``, all of the student's
    spread evenly over the teacher's; or pairs ``[[student, teacher], ...]`` of state numbers (0 is the input of the
    first layer, n the output of the n-th layer that is left; negative from the end).
    ``project`` puts a learned linear map on the student's side (needed where widths differ); it is dropped afterwards.
    ``standardize`` takes every channel of the teacher at zero mean and unit deviation over the training audio: hidden
    states have a few channels with large means, and left alone the loss is mostly about those.
    """

    kind: Literal["states"] = "states"
    layers: Literal["last", "same", "even"] | tuple[tuple[int, int], ...] = "last"
    l1: Annotated[float, Field(ge=0)] = 1.0
    cosine: Annotated[float, Field(ge=0)] = 1.0
    project: bool | None = None
    standardize: bool = False
    padding: Annotated[bool, Field(description="count frames that no audio fills too")] = False
    teacher: Annotated[str | None, Field(description="a model folder; default: the uncompressed source model")] = None
    teacher_silence_s: Annotated[
        float | None,
        Field(
            ge=0,
            description="how much silence a Whisper teacher of another family hears after each clip; default: up to its context",
        ),
    ] = None
    kept_gib: KeptGib = 2.0

    @model_validator(mode="after")
    def _something(self) -> MatchStates:
        if not self.l1 and not self.cosine:
            raise ValueError("l1 and cosine are both 0: nothing would be learned")
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class MatchLogits:
    """Logits of the teacher: KL at temperature ``temperature``, ``alpha`` of it and 1 - alpha of the hard loss.

    Hinton et al., 2015, as Lin et al., 2022 use it (temperature 1, alpha 1). ``masked`` draws one mask for both and counts
    the masked frames only. The hard loss is cross-entropy against the k-means targets of ``MaskedPrediction``.
    """

    kind: Literal["logits"] = "logits"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    alpha: Share = 1.0
    masked: bool = False
    clusters: Annotated[int, Field(ge=2)] = 100
    teacher: str | None = None
    kept_gib: KeptGib = 2.0


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class MaskedPrediction:
    """Masked frames say which k-means cluster they belong to (HuBERT, Hsu et al., 2021; MelHuBERT, Lin et al., 2023).

    ``targets``: clusters of log-mel frames (first stage), or of hidden state ``layer`` (default: two thirds up) of the
    model as it was when the training began (second stage). Spans of ``span`` frames are hidden;
    ``mask_probability`` * frames / span of them.
    """

    kind: Literal["masked"] = "masked"
    targets: Literal["log_mel", "hidden"] = "log_mel"
    layer: int | None = None
    clusters: Annotated[int, Field(ge=2)] = 100
    span: Annotated[int, Field(ge=1)] = 5
    mask_probability: Annotated[float, Field(gt=0, le=1)] = 0.7
    fit_frames: Annotated[int, Field(ge=100, description="frames that k-means is fitted on")] = 100_000


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TaskLoss:
    """The model's own task: CTC, classification of utterances, or Whisper's next token, by the labels of the audio.

    ``label`` names the column of the manifest that holds them. ``head`` is what a bare encoder gets for the training:
    classes of whole clips, or CTC over the words of the labels.
    """

    kind: Literal["task"] = "task"
    label: str = "label"
    head: Literal["classes", "ctc"] = "classes"


Objective = Annotated[MatchStates | MatchLogits | MaskedPrediction | TaskLoss, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Training:
    """One training: how long, how fast, on what, towards what. ``steps = 0`` trains nothing (one shot)."""

    steps: Annotated[int, Field(ge=0, description="optimiser steps")]
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Annotated[Share, Field(description="share of the steps with a rising rate")] = 0.05
    optimizer: Literal["adam", "adamw"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] = 10.0
    batch_seconds: Annotated[
        float, Field(gt=0, description="audio a micro-batch, padding included (with Whisper: to its context)")
    ] = 60.0
    accumulate: Annotated[int, Field(ge=1, description="micro-batches a step")] = 1
    crop_seconds: Annotated[float | None, Field(gt=0, description="longer clips are cut at random")] = 15.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: str = "auto"
    datasets: Annotated[tuple[str, ...], Field(description="only these of the training audio; default: all")] = ()
    save_every_s: Annotated[float, Field(gt=0, description="how often a checkpoint to resume from is written")] = 60.0
    objective: Objective = Field(default_factory=MatchStates)

    @model_validator(mode="after")
    def _possible(self) -> Training:
        if self.crop_seconds is not None and self.crop_seconds > self.batch_seconds:
            raise ValueError("crop_seconds is above batch_seconds: no clip of that length would fit a batch")
        return self
