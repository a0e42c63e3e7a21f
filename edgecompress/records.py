"""What is on disk: schemas with versions, canonical JSON, content keys, and writes that are whole or absent.

Every folder of a run holds one JSON record; every record is one of the classes below. Numbers are raw (samples,
counts per clip); whatever they mean is computed when they are read (``stats``, ``report``).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgecompress.errors import RecordError

RecordT = TypeVar("RecordT", bound="Record")


# --- the road to disk ------------------------------------------------------------------------------------------------
def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_key(value: Any) -> str:
    """12 hex digits that name what went into a cell."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:12]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def now() -> str:
    """This moment in UTC, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place and rename it: a reader sees the old file, the new one, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A fresh folder beside ``path`` that becomes ``path`` when the block ends well, and vanishes when it does not.

    A folder already at ``path`` is replaced. What a killed process left beside it (``.<name>.partial-*``) is swept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.partial-*"):
        shutil.rmtree(left, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    try:
        yield beside
        beside.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        os.replace(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


# --- records ---------------------------------------------------------------------------------------------------------
class Part(BaseModel):
    """A piece of a record: frozen, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Record(Part):
    """A JSON file with a schema name and version; the base of everything below."""

    schema_: str = Field(alias="schema")
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), populate_by_name=True)

    def json_text(self) -> str:
        """Readable JSON with sorted keys and a newline at the end."""
        return (
            json.dumps(self.model_dump(by_alias=True, mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        )

    def write(self, path: Path) -> None:
        """Write the record whole or not at all."""
        write_text(path, self.json_text())

    @classmethod
    def read(cls: type[RecordT], path: Path) -> RecordT:
        """Read and check a record.

        Raises:
            RecordError: missing file, broken JSON, another schema, or a field that does not fit.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as cause:
            raise RecordError(f"{path}: no such file", hint="is this a folder that edgecompress wrote?") from cause
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as cause:
            raise RecordError(
                f"{path}: not readable as JSON ({cause})", hint="remove it; the next run writes it again"
            ) from cause
        wanted = cls.model_fields["schema_"].default
        found = data.get("schema") if isinstance(data, dict) else None
        if found != wanted:
            raise RecordError(
                f"{path}: schema {found!r}, wanted {wanted!r}", hint="written by another version of edgecompress?"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as cause:
            first = cause.errors()[0]
            where = ".".join(str(step) for step in first["loc"])
            raise RecordError(
                f"{path}: {where}: {first['msg']}", hint="remove it; the next run writes it again"
            ) from cause


class Parameters(Part):
    """Numbers of parameters: all that are stored, and those that are not zero."""

    total: int
    nonzero: int


class Macs(Part):
    """Multiply-accumulates of one pass over ``Cost.seconds`` of audio, batch 1, and their parts."""

    total: int
    per_second: float
    parts: dict[str, int]


class Cost(Part):
    """What a model costs before anyone measured it."""

    parameters: Parameters
    bytes: int
    macs: Macs
    seconds: float


class Source(Part):
    """Where a model came from: its folder's name, a hash of its weights and settings, and whether it was trained."""

    name: str
    sha256: str
    random_weights: bool = False


class Step(Part):
    """One technique as it was carried out."""

    kind: str
    parameters: dict[str, Any]
    seconds: float
    before: Cost
    after: Cost
    notes: list[str] = []


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
    files: dict[str, str] = {}
    tool: str
    versions: dict[str, str] = {}


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
    """One comparison with torch. ``length`` counts samples or mel frames; ``relative`` is max_abs / max|reference|."""

    batch: int
    length: int
    output: str
    max_abs: float
    relative: float
    cosine: float


class Parity(Part):
    """All comparisons of one artifact with torch, and the tolerance they kept."""

    reference: str = "torch"
    runtime: str
    tolerance: Tolerance
    cases: list[ParityCase]


class Golden(Part):
    """Files (``.npy``, relative to the artifact) of one input and what torch answered to it."""

    inputs: dict[str, str]
    outputs: dict[str, str]
    tolerance: Tolerance


class AudioShape(Part):
    """How audio becomes the input: unit of the time axis, units per second, and the longest audio the model can see."""

    sample_rate: int = 16000
    input: str
    unit: Literal["samples", "mel_frames"]
    per_second: float
    golden_seconds: float
    max_seconds: float | None = None


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
    audio: AudioShape
    cost: Cost
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
    """One fresh process on the device. Times in seconds but for the raw samples, which are whole nanoseconds."""

    load_s: float
    first_inference_s: float
    warmup_ns: list[int]
    samples_ns: list[int]
    peak_rss_bytes: int
    rss_after_load_bytes: int | None = None
    golden: list[GoldenCheck] = []
    facts_before: dict[str, Any] = {}
    facts_after: dict[str, Any] = {}
    warnings: list[str] = []


class Measurement(Record):
    """Raw samples of one artifact on one device by one runtime."""

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
    """One metric on one task, clip by clip."""

    schema_: Literal["edgecompress.score/1"] = Field("edgecompress.score/1", alias="schema")
    subject: str
    recipe: str
    format: str | None
    precision: str | None
    task: str
    metric: str
    higher_is_better: bool
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
