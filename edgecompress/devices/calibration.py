"""What a board's cores and memory can do at best, measured on it: raw samples with the conditions, in a file of ours.

A record is ``<settings>/calibrations/<device>.json``. Rates are computed when they are read, from the best sample: what
is asked for is a ceiling, and all that disturbs makes a sample slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError

from edgecompress import __version__
from edgecompress.devices import board, programs
from edgecompress.devices import config as configs
from edgecompress.devices.profile import matching
from edgecompress.devices.programs import Core, Text
from edgecompress.errors import AgentDied, AgentFailed, DeviceTimeout, RecipeError, RecordError, Refused
from edgecompress.records import Part, Record, now

if TYPE_CHECKING:
    from edgecompress.devices import Device

SIZES = (64, 128, 256, 512, 1024)
STAGES = ("clock", "memory", "numpy", "onnxruntime")

Samples = Annotated[list[Annotated[int, Field(gt=0, le=10**13)]], Field(min_length=1, max_length=1000)]


class Chain(Part):
    """Nanoseconds of a chain of ``iterations`` additions on one core. Good to hold one core against another."""

    core: Core
    iterations: Annotated[int, Field(gt=0, le=1 << 40)]
    ns: Samples


class Pass(Part):
    """Nanoseconds of going over ``bytes`` of memory, by so many threads."""

    kind: Literal["copy", "read"]
    threads: Annotated[int, Field(gt=0, le=4096)]
    bytes: Annotated[int, Field(gt=0, le=1 << 40)]
    ns: Samples
    version: Text

    @property
    def gb_per_s(self) -> float:
        """Bytes copied, or read, per nanosecond, at best."""
        return self.bytes / min(self.ns)


class Product(Part):
    """Nanoseconds of ``inner`` fp32 products of two ``size`` x ``size`` matrices."""

    library: Literal["numpy", "onnxruntime"]
    threads: Annotated[int, Field(gt=0, le=4096)]
    size: Annotated[int, Field(gt=0, le=1 << 16)]
    inner: Annotated[int, Field(gt=0, le=1 << 20)]
    ns: Samples
    version: Text

    @property
    def gmacs_per_s(self) -> float:
        """Multiply-accumulates per nanosecond, at best."""
        return self.size**3 * self.inner / min(self.ns)


class Calibration(Record):
    """One board at one time. ``absent``: stages that did not work out, ``<stage> x<threads>``, and why."""

    schema_: Literal["edgecompress.calibration/1"] = Field("edgecompress.calibration/1", alias="schema")
    device: str
    profile: str | None
    affinity: list[Core]
    identity: dict[str, Any]
    state_before: dict[str, Any]
    state_after: dict[str, Any]
    clock: list[Chain]
    memory: list[Pass]
    matmul: list[Product]
    absent: dict[str, str]
    started: str
    ended: str
    tool: str


def path_of(name: str) -> Path:
    """Where a device's calibration is, or would be."""
    return configs.home() / "calibrations" / f"{configs.check_name(name)}.json"


def read(name: str) -> Calibration:
    """A device's calibration; RecordError where there is none, or one that cannot be read."""
    if not path_of(name).exists():
        raise RecordError(f"{name} was not calibrated", hint=f"edgecompress device calibrate {name}")
    return Calibration.read(path_of(name))


def calibrate(
    device: Device,
    *,
    threads: Sequence[int] = (),
    affinity: Sequence[int] = (),
    sizes: Sequence[int] = SIZES,
    seconds: float = 0.5,
    timeout_s: float = 120.0,
    progress: Callable[[str], None] | None = None,
) -> Calibration:
    """Measure a device and store its record.

    Args:
        threads: numbers of threads; one, and as many as there are cores to run on, by default.
        affinity: cores to run on; the strongest kind by default, since cores of two kinds together tell of neither.
        seconds: how long each kind of work is repeated.
        timeout_s: limit of each stage.

    Raises:
        RecipeError: a number that no device could be asked for.
        DeviceError: the device, or the way to it; also where not even the first stage worked out.
    """
    _check(threads, affinity, sizes, seconds)
    found = board.read(device, timeout_s)
    usable = set(found.usable_cores)
    cores = sorted(set(affinity)) or [one for one in board.strongest(found.clusters) if one in usable]
    counts = sorted(set(threads)) or sorted({1, max(len(cores), 1)})
    started, parts, absent = now(), [], {}
    states: list[dict[str, Any]] = []
    identity: dict[str, Any] = {}
    for stage in STAGES:
        for count in counts if stage != "clock" else [1]:
            if progress:
                progress(f"{stage}, {count} thread{'s' if count > 1 else ''}")
            order = {
                "cache": device.config.cache, "site": device.config.site, "stage": stage, "threads": count,
                "affinity": cores, "sizes": list(sizes), "seconds": seconds, "busy_wait_s": 60.0,
            }  # fmt: skip
            try:
                for answer in programs.run(device, "calibrate", order, timeout_s):
                    if isinstance(answer.get("state"), dict):
                        states.append(answer["state"])
                        identity = identity or dict(answer.get("identity") or {})
                    else:
                        parts.append(_part(stage, count, answer))
            except (AgentDied, DeviceTimeout, Refused, AgentFailed) as why:
                if stage == "clock":
                    raise
                absent[f"{stage} x{count}"] = why.message
    profile = device.profile or matching(identity)
    record = Calibration(
        device=device.name, profile=profile.id if profile else None, affinity=cores, identity=identity,
        state_before=states[0] if states else {}, state_after=states[-1] if states else {},
        clock=[one for one in parts if isinstance(one, Chain)],
        memory=[one for one in parts if isinstance(one, Pass)],
        matmul=[one for one in parts if isinstance(one, Product)],
        absent=absent, started=started, ended=now(), tool=f"edgecompress {__version__}",
    )  # fmt: skip
    record.write(path_of(device.name))
    return record


def _part(stage: str, threads: int, answer: dict[str, Any]) -> Chain | Pass | Product:
    try:
        if stage == "clock":
            return Chain.model_validate(answer)
        if stage == "memory":
            return Pass.model_validate({**answer, "threads": threads})
        return Product.model_validate({**answer, "threads": threads, "library": stage})
    except ValidationError as cause:
        first = cause.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise AgentFailed(f"the device tells an impossible {stage} sample: {where}: {first['msg']}") from cause


def _check(threads: Sequence[int], affinity: Sequence[int], sizes: Sequence[int], seconds: float) -> None:
    faults = [f"threads = {one}" for one in threads if not 1 <= one <= 256]
    faults += [f"affinity = {one}" for one in affinity if not 0 <= one < 4096]
    faults += [f"size = {one}" for one in sizes if not 8 <= one <= 4096]
    faults += [] if sizes else ["no size"]
    faults += [] if 0 <= seconds <= 60 else [f"seconds = {seconds}"]
    if faults:
        raise RecipeError(
            f"a calibration cannot have {', '.join(faults)}", hint="see `edgecompress device calibrate -h`"
        )
