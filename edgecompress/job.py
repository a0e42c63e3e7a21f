"""What a job asks for, as frozen values: a Recipe, and the Job around recipes. ``recipe`` reads them from TOML."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, TypeAdapter, model_validator

DENSE = "dense"
LOG_MEL = "log-mel"  # what the rows of baselines are called: features without an encoder,
UNTRAINED = "untrained"  # and the model as it was before anything trained it
NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
Name = Annotated[str, Field(pattern=NAME)]
# What can go into an exported file; which of them a family has, ``model.forms`` says.
FormName = Literal["waveform", "features", "waveform_cache", "cache", "step", "fixed_step", "tokens", "images"]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Recipe:
    """A name and the techniques that make it, in order. Without techniques it is the untouched model."""

    name: str
    techniques: tuple[Any, ...] = ()


class Table(BaseModel):
    """A TOML table: frozen, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RandomModel(Table):
    """A model with random weights: a transformers ``config.json`` (path beside the job) and a seed."""

    config: str
    seed: int = 0


class ModelSource(Table):
    """Where the source model is: a folder (``${NAME}`` is expanded by ``paths``) or hub id, or random weights."""

    path: str | None = None
    random: RandomModel | None = None

    @model_validator(mode="after")
    def _one(self) -> ModelSource:
        if (self.path is None) == (self.random is None):
            raise ValueError("needs either path or random")
        return self


class SyntheticAudio(Table):
    """Clips made in code."""

    clips: Annotated[int, Field(ge=1, le=10_000)]
    seconds: Annotated[float, Field(ge=0.1, le=60)] = 3.0
    seed: int = 0


class AudioSource(Table):
    """Where clips come from: a folder, a manifest in it, or synthesis; and how many calibrate and are scored."""

    folder: str | None = None
    manifest: str | None = None
    dataset: str | None = None
    synthetic: SyntheticAudio | None = None
    calibration: Annotated[int, Field(ge=0)] = 0
    evaluation: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> AudioSource:
        if (self.folder is None) == (self.synthetic is None):
            raise ValueError("needs either folder or synthetic")
        if self.manifest is not None and self.folder is None:
            raise ValueError("manifest needs folder")
        if self.dataset is not None and self.manifest is None:
            raise ValueError("dataset needs manifest")
        if self.calibration + self.evaluation == 0:
            raise ValueError("calibration and evaluation are both 0: no clip would be used")
        if self.synthetic is not None and self.calibration + self.evaluation > self.synthetic.clips:
            wanted = self.calibration + self.evaluation
            raise ValueError(f"calibration and evaluation need {wanted} clips, synthetic makes {self.synthetic.clips}")
        return self


class TrainingSource(Table):
    """Audio to train on: a folder, or a manifest in it and which of its rows; ``limit`` takes so many, by ``seed``.

    ``exclude`` names files or folders of files (paths below ``folder``). What ``[audio]`` calibrates or scores is never
    trained on, whatever is asked for here.
    """

    folder: str
    manifest: str | None = None
    datasets: tuple[str, ...] = ()
    split: str | None = None
    exclude: tuple[str, ...] = ()
    limit: Annotated[int | None, Field(ge=1)] = None
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSource:
        for name in ("datasets", "split"):
            if getattr(self, name) and self.manifest is None:
                raise ValueError(f"{name} needs manifest")
        return self


class Export(Table):
    """One format at one or more precisions; ``input`` chooses between the forms that a family has.

    ``seconds`` fixes lengths, ``padded`` adds an input of true lengths, ``for_runtime`` keeps to what an older runtime
    reads. ``judge`` names one of the job's tasks, by which quantised files are scored beside torch on the calibration
    clips; where the score drops by more than ``tolerated_drop``, what costs most stays in fp32.
    """

    format: str
    precisions: Annotated[tuple[str, ...], Field(min_length=1)] = ("fp32",)
    input: FormName | None = None
    seconds: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()
    padded: bool = False
    for_runtime: str | None = None
    judge: str | None = None
    tolerated_drop: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None

    @model_validator(mode="after")
    def _once(self) -> Export:
        if len(set(self.precisions)) < len(self.precisions):
            raise ValueError("a precision is named twice")
        if self.tolerated_drop is not None and self.judge is None:
            raise ValueError("tolerated_drop needs judge, the task that it is a drop of")
        return self


class Measure(Table):
    """On which devices, and how each repetition (a fresh process) is timed: the fields of ``session.Plan``.

    ``level`` names a plan; what is given beside it comes in the place of its numbers. ``Plan`` holds the limits; a job
    that asks for what no plan can be is refused before anything starts.
    """

    devices: Annotated[tuple[str, ...], Field(min_length=1)] = ("local",)
    level: Literal["smoke", "quick", "default", "publish"] = "default"
    threads: Positive = 1
    repetitions: Positive | None = None
    warmup_s: Seconds = 0.5
    min_samples: Positive | None = None
    min_seconds: Seconds | None = None
    max_seconds: Seconds | None = None
    timeout_s: Seconds | None = None
    cooldown_s: Seconds | None = None
    seconds: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    affinity: tuple[Annotated[int, Field(ge=0)], ...] = ()
    scenario: Literal["single_stream", "paced_stream", "offline"] = "single_stream"
    hop_s: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    batch: Positive = 1
    memory_pass: bool = True
    ambient_celsius: Annotated[float | None, Field(allow_inf_nan=False)] = None

    @model_validator(mode="after")
    def _ordered(self) -> Measure:
        if self.min_seconds is None or self.max_seconds is None:
            return self
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds {self.min_seconds:g} is above max_seconds {self.max_seconds:g}")
        return self


def calibrates(precision: str) -> bool:
    """Whether a precision takes the ranges of activations from audio."""
    return "-static" in precision


def describe(step: Any) -> dict[str, Any]:
    """A technique or task as its TOML table: ``{"kind": ..., field: value, ...}`` with JSON values."""
    return {"kind": type(step).kind, **TypeAdapter(type(step)).dump_python(step, mode="json")}


def scores_checkpoints(task: Any) -> bool:
    """Whether a task scores checkpoints in torch on data of its own, rather than artifacts on the job's clips."""
    return getattr(task, "subject", "artifact") == "checkpoint"


def _tables(steps: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [describe(step) for step in steps]


def _recipes(recipes: tuple[Recipe, ...]) -> list[dict[str, Any]]:
    return [{"name": recipe.name, "techniques": _tables(recipe.techniques)} for recipe in recipes]


class Job(BaseModel):
    """All that ``run`` is asked to do. ``recipes`` begins with ``dense``, the untouched model: the reference.

    ``source_techniques`` make that model out of what ``model`` names, before anything else.
    ``score_recipes`` says of each of ``scores`` which recipes (and baselines) it is limited to; none means all.
    ``file`` is where it was read from; ``model_dump(mode="json")`` is the job without it, as data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    name: Name
    output: str
    seed: int = 0
    model: ModelSource
    source_techniques: Annotated[tuple[Any, ...], PlainSerializer(_tables)] = ()
    audio: AudioSource | None = None
    training: TrainingSource | None = None
    recipes: Annotated[tuple[Recipe, ...], PlainSerializer(_recipes)] = (Recipe(DENSE),)
    exports: tuple[Export, ...] = ()
    scores: Annotated[tuple[Any, ...], PlainSerializer(_tables)] = ()
    score_recipes: tuple[tuple[str, ...], ...] = ()
    measure: Measure | None = None
    file: Annotated[Path, Field(exclude=True)] = Path("job.toml")

    def wanted_scores(self) -> list[tuple[Any, Callable[[str], bool]]]:
        """Each task, and whether a recipe or a baseline of that name is to be scored by it."""
        limits = [*self.score_recipes, *[()] * (len(self.scores) - len(self.score_recipes))]
        return [(task, _named_in(only)) for task, only in zip(self.scores, limits, strict=True)]


def _named_in(only: tuple[str, ...]) -> Callable[[str], bool]:
    return lambda name: not only or name in only
