"""What a measuring process tells beside its samples, as it is stored and as it is believed: every field is limited."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgecompress.schema import Part

Nanoseconds = Annotated[int, Field(ge=0, le=10**15)]
Monotonic = Annotated[int, Field(ge=0, lt=1 << 63)]
Bytes = Annotated[int, Field(ge=0, le=1 << 50)]
Count = Annotated[int, Field(ge=0, le=1 << 40)]
Times = Annotated[list[Nanoseconds], Field(max_length=100_000)]
Kind = Annotated[str, Field(max_length=64)]
Text = Annotated[str, Field(max_length=4096)]


class ClockLoop(Part):
    """A fixed number of additions on one core (null: wherever it ran), timed several times; see bench_remote.clock.

    Only loops of one process and of as many additions may be held against each other; the least of ``ns`` counts.
    """

    core: Annotated[int, Field(ge=0, lt=1 << 16)] | None = None
    iterations: Annotated[int, Field(gt=0, le=1 << 40)]
    ns: Annotated[list[Nanoseconds], Field(min_length=1, max_length=100)]


class PageCache(Part):
    """Whether the model's files were surely out of the page cache when they were first loaded, and how that is known."""

    state: Literal["cold", "unknown"]
    pages: Count
    resident: Count
    reason: Text = ""


class Machine(Part):
    """Counters of the whole machine since boot, in ticks of which ``tick_hz`` are a second; None where it tells none."""

    busy_ticks: Monotonic | None = None
    stolen_ticks: Monotonic | None = None
    swapped_pages: Monotonic | None = None
    tick_hz: Annotated[int, Field(gt=0, le=100_000)]


class Steady(Part):
    """The timed phase: which bound ended it, when by the monotonic clock, major faults and CPU seconds of the process,
    and the whole machine's counters right before and after.
    """

    ended: Literal["enough", "max_seconds", "max_samples"]
    started_ns: Monotonic
    ended_ns: Monotonic
    major_faults: Count
    cpu_s: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
    machine_before: Machine | None = None
    machine_after: Machine | None = None


class Arrivals(Part):
    """Runs of a paced stream in nanoseconds since the first was due: when each was due, began and ended."""

    scheduled_ns: Times
    start_ns: Times
    end_ns: Times

    @model_validator(mode="after")
    def _in_order(self) -> Arrivals:
        if not len(self.scheduled_ns) == len(self.start_ns) == len(self.end_ns):
            raise ValueError("arrivals of different lengths")
        for due, start, end in zip(self.scheduled_ns, self.start_ns, self.end_ns, strict=True):
            if not due <= start <= end:
                raise ValueError("a run that began before it was due, or ended before it began")
        if any(later < earlier for earlier, later in pairwise(self.scheduled_ns)):
            raise ValueError("arrivals out of order")
        return self

    def latencies_ns(self) -> list[int]:
        """From when each run was due to its end."""
        return [end - due for due, end in zip(self.scheduled_ns, self.end_ns, strict=True)]


class MemoryPass(Part):
    """Bytes by kind of a process that is not timed: with the runtime imported, the model loaded, after ``runs`` runs.

    ``absent`` says why there is none.
    """

    baseline: dict[Kind, Bytes] = Field({}, max_length=50)
    loaded: dict[Kind, Bytes] = Field({}, max_length=50)
    steady: dict[Kind, Bytes] = Field({}, max_length=50)
    runs: Count = 0
    absent: Text | None = None


class Operator(Part):
    """Nanoseconds of one operator in each run of a pass that is not timed otherwise."""

    op: Annotated[str, Field(max_length=256)]
    name: Annotated[str, Field(max_length=256)]
    ns: Annotated[list[Nanoseconds], Field(min_length=1, max_length=100)]


class Operators(Part):
    """The operators that ran, in order; ``left_out`` of them are not told; ``absent`` says why there are none."""

    operators: list[Operator] = Field([], max_length=20_000)
    left_out: Count = 0
    absent: Text | None = None
