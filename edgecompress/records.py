"""What is on disk: schemas with versions. How it gets there is in ``disk``, whose functions are found here too.

Every folder of a run holds one JSON record; every record is one of the classes below. Numbers are raw (samples,
counts per clip); whatever they mean is computed when they are read (``stats``, ``report``).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from edgecompress.disk import canonical_json as canonical_json
from edgecompress.disk import content_key as content_key
from edgecompress.disk import file_sha256 as file_sha256
from edgecompress.disk import now as now
from edgecompress.disk import whole_folder as whole_folder
from edgecompress.disk import write_text as write_text
from edgecompress.phases import Arrivals, ClockLoop, MemoryPass, Operators, PageCache, Steady
from edgecompress.schema import Part as Part
from edgecompress.schema import Record as Record
from edgecompress.traces import Telemetry as Telemetry


# --- records ---------------------------------------------------------------------------------------------------------
class Parameters(Part):
    """Numbers of parameters: all that are stored, and those that are not zero."""

    total: int
    nonzero: int


class Macs(Part):
    """Multiply-accumulates of one pass over what ``Cost`` names, batch 1, and their parts.

    ``per_second`` is of audio; None where none goes in.
    """

    total: int
    per_second: float | None
    parts: dict[str, int]


class FileCost(Part):
    """What a model file costs before anyone measured it.

    One pass takes ``seconds`` of audio, or so many ``tokens``, or one image of (height, width) ``pixels``; the others
    are None. ``macs`` is None for a file made elsewhere whose operators we cannot count.
    """

    parameters: Parameters
    bytes: int
    macs: Macs | None = None
    seconds: float | None
    tokens: int | None = None
    pixels: tuple[int, int] | None = None


class Cost(FileCost):
    """What a model costs: all of it is known."""

    macs: Macs


class Source(Part):
    """Where a model came from: its folder's name, a hash of its weights and settings, and whether it was trained.

    ``lineage`` tells how a job made it, where one did: the given model, the techniques in order, the training audio
    and the seed. It is empty for a model that was there already.
    """

    name: str
    sha256: str
    random_weights: bool = False
    lineage: dict[str, Any] = {}


class Step(Part):
    """One technique as it was carried out.

    ``training`` sums up what it trained: ``trainings``, ``steps``, ``audio_hours``, ``first_loss`` (of the first),
    ``last_loss`` (of the last), ``seconds``, ``skipped_steps``; None where it trained nothing. ``rounds`` is what each
    of its rounds did.
    """

    kind: str
    parameters: dict[str, Any]
    seconds: float
    before: Cost
    after: Cost
    notes: list[str] = []
    training: dict[str, Any] | None = None
    rounds: list[dict[str, Any]] = []


class TrainingAudio(Part):
    """What a model was trained on: how many clips, a hash of their names and contents, and what was left out.

    ``excluded`` counts recordings that the job keeps for calibration and scores, ``skipped`` those that could not be
    read.
    """

    clips: int
    sha256: str
    excluded: int = 0
    skipped: int = 0


class Checkpoint(Record):
    """``checkpoint.json``: how a compressed model was made. ``calibration`` names the clips that were looked at."""

    schema_: Literal["edgecompress.checkpoint/1"] = Field("edgecompress.checkpoint/1", alias="schema")
    recipe: str
    family: str
    source: Source
    techniques: list[dict[str, Any]]
    steps: list[Step]
    cost: Cost
    calibration: list[str] = []
    corpus: TrainingAudio | None = None
    files: dict[str, str] = {}
    tool: str
    versions: dict[str, str] = {}


class Progress(Record):
    """``step.json``: the first steps of a recipe, done. The model as they left it lies beside it."""

    schema_: Literal["edgecompress.progress/1"] = Field("edgecompress.progress/1", alias="schema")
    steps: list[Step]


class RoundProgress(Record):
    """``rounds.json``: the first rounds of a technique, done. The model as they left it lies beside it.

    ``start`` tells apart what they may have begun with: weights, audio, place in the recipe.
    """

    schema_: Literal["edgecompress.round-progress/1"] = Field("edgecompress.round-progress/1", alias="schema")
    technique: dict[str, Any]
    start: str = ""
    seed: int
    round: int
    notes: list[str]
    rounds: list[dict[str, Any]]
    trainings: list[dict[str, Any]]


class TrainingState(Record):
    """``state.json`` beside the weights of a training that may be resumed: how far it is, and what it is.

    ``fingerprint`` names what it depends on, part by part; ``losses`` are (step, loss, learning rate, parts of the loss).
    """

    schema_: Literal["edgecompress.training-state/1"] = Field("edgecompress.training-state/1", alias="schema")
    fingerprint: dict[str, str]
    step: int
    finished: bool
    losses: list[tuple[int, float, float, dict[str, float]]]
    skipped: list[int]
    audio_seconds: float
    seconds: float
    scaler: dict[str, float] = {}
    files: dict[str, str] = {}


class FileRecord(Part):
    """One file of an artifact."""

    sha256: str
    bytes: int


class Tensor(Part):
    """An input or output: its name, numpy dtype, and shape with names for the dimensions that may vary."""

    name: str
    dtype: str
    shape: list[int | str]


class Tolerance(Part):
    """How far an output may be from torch's: greatest difference relative to the reference's greatest value, and cosine."""

    relative: float
    cosine: float


class ParityCase(Part):
    """One comparison with torch. ``length`` counts samples or mel frames; ``relative`` is max_abs / max|reference|.

    ``signal`` is what was fed: noise, speech, a synthetic voice, or a clip that was tiled; ``padded`` says that rows were of unlike lengths.
    """

    batch: int
    length: int
    output: str
    signal: str = "noise"
    padded: bool = False
    max_abs: float
    relative: float
    cosine: float


class Parity(Part):
    """The certificate of one artifact: all comparisons with torch, the tolerance they kept, and the conditions.

    ``conditions`` are versions and options of the runtime, among them the precision it was held to. ``scores`` are a
    task's values for this file and for torch on the same clips, where one was asked for.
    """

    reference: str = "torch"
    runtime: str
    tolerance: Tolerance
    cases: list[ParityCase]
    conditions: dict[str, Any] = {}
    scores: list[dict[str, Any]] = []


class Golden(Part):
    """Files (``.npy``, relative to the artifact) of one input and what torch answered to it."""

    inputs: dict[str, str]
    outputs: dict[str, str]
    tolerance: Tolerance


class AudioShape(Part):
    """How audio becomes the input: unit of the time axis, units per second, and the longest audio the model can see.

    ``lengths``: the fixed lengths that the file holds, to which shorter input is padded; ``layout``: the dimensions of
    the input, in order; ``preparation``: what must be done to samples before they are fed.
    """

    sample_rate: int = 16000
    input: str
    unit: Literal["samples", "mel_frames"]
    per_second: float
    golden_seconds: float
    max_seconds: float | None = None
    lengths: list[int] = []
    layout: list[str] = []
    preparation: dict[str, Any] = {}


class Artifact(Record):
    """``artifact.json``: one format at one precision."""

    schema_: Literal["edgecompress.artifact/1"] = Field("edgecompress.artifact/1", alias="schema")
    name: str
    recipe: str
    family: str
    format: str
    precision: str
    runtime: str
    model_file: str
    files: dict[str, FileRecord]
    inputs: list[Tensor]
    outputs: list[Tensor]
    golden: Golden
    parity: Parity
    quantized_nodes: int | None = None
    audio: AudioShape | None = None
    cost: FileCost
    source: Source
    lineage: dict[str, Any] = {}
    tool: str


class GoldenCheck(Part):
    """What the device answered to the golden input, against torch's answer."""

    output: str
    max_abs: float
    relative: float
    cosine: float
    passed: bool


class Repetition(Part):
    """One fresh process on the device. Times in seconds but for the raw samples, which are whole nanoseconds.

    ``load_s`` is the second making of the session, from warm pages; ``first_load_s`` the first one, cold if
    ``page_cache`` says so (in older records there is only one, from warm pages). ``warmup_ended`` and ``steady.ended``
    say which bound ended those phases. Of a paced stream ``samples_ns`` count from when each run was due (``arrivals``).
    """

    load_s: float
    first_inference_s: float
    warmup_ns: list[int]
    samples_ns: list[int]
    peak_rss_bytes: int
    rss_after_load_bytes: int | None = None
    first_load_s: float | None = None
    page_cache: PageCache | None = None
    clock_before: list[ClockLoop] = []
    clock_after: list[ClockLoop] = []
    warmup_ended: str | None = None
    steady: Steady | None = None
    arrivals: Arrivals | None = None
    golden: list[GoldenCheck] = []
    facts_before: dict[str, Any] = {}
    facts_after: dict[str, Any] = {}
    warnings: list[str] = []
    telemetry: list[Telemetry] = []


class Measurement(Record):
    """Raw samples of one artifact on one device by one runtime. ``audio_seconds``: of audio in one run, over its batch."""

    schema_: Literal["edgecompress.measurement/1"] = Field("edgecompress.measurement/1", alias="schema")
    artifact: str
    artifact_sha256: str
    recipe: str
    format: str
    precision: str
    device: str
    transport: str
    profile: str | None = None
    runtime: str
    runtime_version: str
    options: dict[str, Any]
    plan: dict[str, Any]
    input: dict[str, Any]
    audio_seconds: float | None
    identity: dict[str, Any]
    repetitions: list[Repetition]
    memory_pass: MemoryPass | None = None
    operators: Operators | None = None
    bytes_sent: int
    agent_sha256: str
    protocol: int
    started: str
    ended: str
    tool: str


class ScoreItem(Part):
    """One clip's share of a score: the score is sum(numerator) / sum(denominator)."""

    clip: str
    numerator: float
    denominator: float
    detail: dict[str, Any] = {}


class Score(Record):
    """One metric on one task, clip by clip.

    ``level`` tells what was scored: an artifact (or a model in the place of one), a checkpoint in torch whatever it is
    exported to, or a baseline, which is no model of the run at all.
    """

    schema_: Literal["edgecompress.score/1"] = Field("edgecompress.score/1", alias="schema")
    subject: str
    recipe: str
    format: str | None
    precision: str | None
    task: str
    metric: str
    higher_is_better: bool
    level: Literal["artifact", "checkpoint", "baseline"] = "artifact"
    items: list[ScoreItem]
    skipped: dict[str, str] = {}
    conditions: dict[str, Any] = {}
    tool: str


class Failure(Record):
    """A cell that could not be filled, and why."""

    schema_: Literal["edgecompress.failure/1"] = Field("edgecompress.failure/1", alias="schema")
    cell: str
    recipe: str
    stage: Literal["compress", "export", "score", "measure"]
    format: str | None = None
    precision: str | None = None
    device: str | None = None
    kind: str
    error: str
    hint: str
    when: str


class Run(Record):
    """``run.json``: what a job was asked to do, and what it consists of.

    ``cells`` names the folders of checkpoints and artifacts and the files (without suffix) of scores and measurements
    that belong to the job as it was last run through; what an earlier form of it left in the folder is not among them.
    """

    schema_: Literal["edgecompress.run/1"] = Field("edgecompress.run/1", alias="schema")
    name: str
    source: Source
    job: dict[str, Any]
    recipes: list[str]
    cells: list[str] = []
    tool: str
