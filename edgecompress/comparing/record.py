"""``compare.json``: what was asked, and every run of a block in the order in which it happened.

No medians are stored: sessions lie beside it as measurements (``sessions/``), and what they mean is computed when read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgecompress.comparing.loop import Block
from edgecompress.errors import RecordError
from edgecompress.records import Measurement, content_key
from edgecompress.schema import Part, Record

FILE = "compare.json"
SESSIONS = "sessions"
INTERRUPTED = "interrupted: the comparison was ended within the block"


class Subject(Part):
    """A model that was run: its name within the comparison, its content (all files that were sent), and its runtime."""

    name: str
    sha256: str
    runtime: str


class Question(Part):
    """What a comparison is about. Going on in a folder is allowed only with the same question.

    ``canary`` is None where the first variant is its own. ``inputs`` are what plain files are fed: sizes, or hashes.
    """

    variants: list[Subject]
    canary: Subject | None = None
    device: str
    seed: int
    plan: dict[str, Any]
    inputs: dict[str, Any] = Field(default_factory=dict)
    across_runtimes: bool = False


class Session(Part):
    """One session of a block; ``variant`` is its index, None for the canary; ``file`` is its measurement."""

    variant: int | None
    file: str


class BlockRun(Part):
    """One run of a block: the planned order, its sessions in the order they ran, and why it is void, if it is."""

    order: list[int]
    sessions: list[Session] = Field(default_factory=list)
    seconds: float = 0.0
    void: str = ""
    started: str


class Comparison(Record):
    """``compare.json``."""

    schema_: Literal["edgecompress.comparison/1"] = Field("edgecompress.comparison/1", alias="schema")
    question: Question
    blocks: list[BlockRun] = Field(default_factory=list)
    tool: str

    @property
    def key(self) -> str:
        """Names the question."""
        return content_key(self.question.model_dump(mode="json"))


def load(folder: Path, comparison: Comparison) -> list[Block]:
    """The runs of blocks with their samples, read from the measurements.

    Raises:
        RecordError: a session's file is missing, broken, or not of the model that the comparison is about.
    """
    return [_block(folder, comparison.question, run) for run in comparison.blocks]


def _block(folder: Path, question: Question, run: BlockRun) -> Block:
    order = tuple(run.order)
    if run.void:
        return Block(order, (), (), run.seconds, run.void)
    samples: dict[int, tuple[int, ...]] = {}
    canary = []
    for session in run.sessions:
        path = folder / SESSIONS / Path(session.file).name
        measurement = Measurement.read(path)
        taken = tuple(ns for one in measurement.repetitions for ns in one.samples_ns)
        if not taken or min(taken) <= 0:
            raise RecordError(f"{path}: no usable samples", hint="compare again into a new folder")
        if session.variant is None:
            canary.append(taken)
        else:
            samples[session.variant] = taken
    if sorted(samples) != sorted(order) or sorted(order) != list(range(len(question.variants))):
        raise RecordError(f"{folder / FILE}: a block lacks sessions", hint="compare again into a new folder")
    return Block(order, tuple(samples[variant] for variant in sorted(samples)), tuple(canary), run.seconds)
