"""The agent's events as the host believes them: sizes limited, fields checked, text made printable.

A device is another's computer. It may send anything; what does not fit these classes ends the session.
"""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from edgecompress.devices.objects import clean
from edgecompress.errors import AgentFailed
from edgecompress.phases import Arrivals, ClockLoop, MemoryPass, Operator, PageCache, Steady
from edgecompress.traces import Telemetry

MAX_FACTS_CHARACTERS = 64 << 10
MAX_DEPTH = 6
MAX_NESTED = 100

Nanoseconds = Annotated[int, Field(ge=0, le=10**15)]
Seconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=0, le=1 << 50)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=4096)]


class Event(BaseModel):
    """Any event. Fields that we do not know are ignored: a newer agent may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    repetition: Annotated[int, Field(ge=0, lt=1000)] = 0
    chain: Annotated[str, Field(max_length=64)] = ""  # of a job's journal: the SHA-256 of the line before


class Attached(Event):
    """A follower is there and goes on from byte ``offset`` of the job's journal. Not part of the journal."""

    event: Literal["attached"]
    offset: Annotated[int, Field(ge=0, le=1 << 40)]
    state: Text = ""


class Waiting(Event):
    """Another measures: who, and how many are before us."""

    event: Literal["waiting"]
    holder: Annotated[str, Field(max_length=256)]
    before: Annotated[int, Field(ge=0, le=1 << 20)]


class Hello(Event):
    """The agent is there."""

    event: Literal["hello"]
    protocol: int
    pgid: Annotated[int, Field(gt=1, lt=1 << 31)]
    python: Text
    identity: dict[str, Any]


class Facts(Event):
    """State before or after a repetition."""

    event: Literal["facts"]
    when: Literal["before", "after"]
    facts: dict[str, Any]


class Clock(Event):
    """The measured clock, before anything or after everything of a repetition."""

    event: Literal["clock"]
    when: Literal["before", "after"]
    loops: Annotated[list[ClockLoop], Field(min_length=1, max_length=1024)]


class Loaded(Event):
    """The runtime has loaded the model, twice."""

    event: Literal["loaded"]
    first_load_s: Seconds | None = None
    page_cache: PageCache | None = None
    load_s: Seconds
    version: Text
    options: dict[str, Any] = {}
    rss_bytes: Bytes


class Check(BaseModel):
    """One output against its reference."""

    output: Text
    max_abs: Number
    relative: Number
    cosine: Number
    passed: bool


class Golden(Event):
    """The golden output, compared."""

    event: Literal["golden"]
    first_inference_s: Seconds
    checks: Annotated[list[Check], Field(max_length=1000)]


class Input(BaseModel):
    """What is fed while timing; ``audio_samples`` of it where one input was made of audio."""

    source: Text
    shapes: dict[str, list[int]]
    audio_samples: Annotated[int, Field(gt=0, le=1 << 40)] | None = None


class Warmup(Event):
    """Warm-up is over."""

    event: Literal["warmup"]
    first_inference_s: Seconds
    ns: Annotated[list[Nanoseconds], Field(max_length=100_000)]
    ended: Literal["steady", "runs", "seconds"] | None = None
    input: Input


class Samples(Event):
    """Some of the samples."""

    event: Literal["samples"]
    ns: Annotated[list[Nanoseconds], Field(max_length=100_000)]


class Arrived(Event, Arrivals):
    """Some of the runs of a paced stream."""

    event: Literal["arrivals"]


class SteadyEnded(Event, Steady):
    """The timed phase is over."""

    event: Literal["steady"]


class MemoryTold(Event, MemoryPass):
    """Memory of a process of its own."""

    event: Literal["memory_pass"]


class OperatorsTold(Event):
    """Some of the operators, or why there are none."""

    event: Literal["operators"]
    operators: Annotated[list[Operator], Field(max_length=1000)] = []
    left_out: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    absent: Text | None = None


class Memory(Event):
    """Peak memory of the repetition's process."""

    event: Literal["memory"]
    peak_rss_bytes: Bytes


class TelemetryTold(Event, Telemetry):
    """Some rows of what the device did meanwhile."""

    event: Literal["telemetry"]


class RuntimeFound(Event):
    """Whether a runtime can be imported."""

    event: Literal["runtime"]
    name: Text
    version: Text | None = None
    absent: Text | None = None


class Done(Event):
    """The last word of a good job."""

    event: Literal["done"]


class Refused(Event):
    """The device cannot take the job."""

    event: Literal["refused"]
    need: Text
    message: str = ""
    name: Text = ""


class Failed(Event):
    """The job ran and went wrong."""

    event: Literal["failed"]
    kind: Text
    message: str = ""


AnyEvent = Annotated[
    Hello
    | Facts
    | Clock
    | Loaded
    | Golden
    | Warmup
    | Samples
    | Arrived
    | SteadyEnded
    | Memory
    | MemoryTold
    | OperatorsTold
    | TelemetryTold
    | RuntimeFound
    | Done
    | Refused
    | Failed
    | Attached
    | Waiting,
    Field(discriminator="event"),
]
_ADAPTER: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)


def parse(line: bytes) -> AnyEvent:
    """One line as an event, its text printable.

    Raises:
        AgentFailed: not JSON, NaN, too deep, too large, an unknown event, or a field that does not fit.
    """
    try:
        if _depth(line) > MAX_NESTED:
            raise ValueError("too deep")
        value = json.loads(line, parse_constant=_refuse_constant)
        return _ADAPTER.validate_python(_tidy(value, 0))
    except (ValidationError, ValueError, RecursionError) as cause:
        said = clean(line[:120].decode("utf-8", "replace"))
        raise AgentFailed(
            f"the device sent what is not an event: {said!r}", hint="is the device trustworthy?"
        ) from cause


def _depth(line: bytes) -> int:
    """How deep brackets are nested. Not left to the parser: litert-torch lifts Python's limit of recursion to 100,000,
    and then the parser runs off its stack and takes the process with it.
    """
    depth = deepest = 0
    for bracket in re.findall(rb"[\[\]{}]", re.sub(rb'"(?:[^"\\]|\\.)*"', b"", line)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def is_event(line: bytes) -> bool:
    """Whether this looks like one of ours: a login shell may print before the first."""
    return line.startswith(b"{") and b'"event"' in line


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _tidy(value: Any, depth: int) -> Any:
    """The same value with printable text; ValueError when it is deeper or larger than an event."""
    if depth > MAX_DEPTH:
        raise ValueError("too deep")
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not finite")
    if isinstance(value, dict):
        tidy = {clean(key): _tidy(one, depth + 1) for key, one in value.items()}
        if depth == 1 and len(json.dumps(tidy)) > MAX_FACTS_CHARACTERS:
            raise ValueError("too large")
        return tidy
    if isinstance(value, list):
        return [_tidy(one, depth + 1) for one in value]
    return value
