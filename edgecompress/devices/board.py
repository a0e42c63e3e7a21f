"""What a probe learns of a board beyond a job's facts, as the host believes it, and how that agrees with a profile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgecompress.devices import programs
from edgecompress.devices.profile import Profile
from edgecompress.devices.programs import Bytes, Core, Text
from edgecompress.errors import AgentFailed

if TYPE_CHECKING:
    from edgecompress.devices import Device

# What Linux counts as MemTotal lacks what firmware, GPU and kernel keep: 0.81 of it is left on a Pi Zero 2 W.
LEAST_SHARE_OF_RAM = 0.75
CLOCK_TOLERANCE = 0.02  # sbc-bench's rule for measured against nominal

Count = Annotated[int, Field(ge=0, le=1 << 40)]
Celsius = Annotated[float, Field(ge=-274, le=1e4, allow_inf_nan=False)]


class Told(BaseModel):
    """Frozen; fields that we do not know are ignored, since a newer device side may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Cluster(Told):
    """Cores of one kind: greatest frequency in kHz, and the kernel's relative capacity (1024 is the strongest)."""

    core: Text
    ids: Annotated[list[Core], Field(max_length=1024)]
    khz_max: Count | None = None
    capacity: Count | None = None


class Cgroup(Told):
    """Limits that a container or service puts on us; None where there are none."""

    version: Annotated[int, Field(ge=1, le=2)]
    cpus: Annotated[float, Field(gt=0, le=4096)] | None = None
    memory_bytes: Bytes | None = None
    throttled_periods: Count | None = None


class Zone(Told):
    """A thermal zone, and its trip points as (kind, degrees Celsius)."""

    zone: Text
    type: Text
    celsius: Celsius | None = None
    why: Text = ""
    trips: Annotated[list[tuple[Text, Celsius]], Field(max_length=64)] = []


class Source(Told):
    """Where throttling shows. ``why`` is empty when it can be read."""

    kind: Text
    path: Text
    why: Text = ""


class Rail(Told):
    """A power rail. ``why`` is empty when it can be read."""

    meter: Text
    name: Text
    path: Text
    why: Text = ""


class Swap(Told):
    """A swap area."""

    name: Text
    bytes: Bytes
    used_bytes: Bytes
    zram: bool


class Python(Told):
    """What decides which wheels fit."""

    version: tuple[Count, Count, Count]
    implementation: Text
    bits: Annotated[int, Field(ge=32, le=64)]
    machine: Text
    free_threaded: bool = False


class Board(Told):
    """All details; what is None is in ``absent`` with its reason."""

    clusters: Annotated[list[Cluster], Field(max_length=256)] = []
    usable_cores: Annotated[list[Core], Field(max_length=4096)] = []
    cgroup: Cgroup | None = None
    thermal_zones: Annotated[list[Zone], Field(max_length=256)] = []
    throttle_sources: Annotated[list[Source], Field(max_length=256)] = []
    rails: Annotated[list[Rail], Field(max_length=256)] = []
    swap: Annotated[list[Swap], Field(max_length=64)] = []
    glibc: Annotated[str, Field(pattern=r"^\d{1,3}\.\d{1,4}(\.\d{1,4})?$")] = ""
    python: Python | None = None
    page_bytes: Bytes | None = None
    disk_free_bytes: Bytes | None = None
    absent: dict[str, Text] = {}


def read(device: Device, timeout_s: float = 60.0) -> Board:
    """Ask a device for its details.

    Raises:
        DeviceError: the device or the way to it; AgentFailed where what it says is not what a board could be.
    """
    for answer in programs.run(device, "board", {"cache": device.config.cache}, timeout_s):
        return parse(answer.get("board"))
    raise AgentFailed("the device told nothing of itself")


def parse(value: Any) -> Board:
    """Checked details; AgentFailed names the first field that does not fit."""
    try:
        return Board.model_validate(value)
    except ValidationError as cause:
        first = cause.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "board"
        raise AgentFailed(
            f"the device tells something impossible of itself: {where}: {first['msg']}",
            hint="is the device trustworthy?",
        ) from cause


def strongest(clusters: list[Cluster]) -> list[int]:
    """Cores of the strongest kind, which is told first."""
    return list(clusters[0].ids) if clusters else []


def disagreements(profile: Profile, identity: dict[str, Any], board: Board) -> list[str]:
    """What a device has that is not as its profile says, one line each: other board, other mode, or a wrong profile."""
    return [
        *_architecture(profile, identity),
        *_memory(profile, identity),
        *_cores(profile, board),
        *_rails(profile, board),
    ]


def _architecture(profile: Profile, identity: dict[str, Any]) -> list[str]:
    found, machine = [], identity.get("machine")
    if isinstance(machine, str) and machine != profile.cpu.arch:
        found.append(f"arch: the profile says {profile.cpu.arch}, the device {machine}")
    if isinstance(identity.get("isa"), str):
        flags = set(identity["isa"].split())
        if missing := [flag for flag in profile.cpu.isa if flag not in flags]:
            found.append(f"isa: the device does not have {', '.join(missing)}")
        if extra := [flag for flag in profile.cpu.forbidden_isa if flag in flags]:
            found.append(f"isa: the device has {', '.join(extra)}, which this board does not")
    return found


def _memory(profile: Profile, identity: dict[str, Any]) -> list[str]:
    total, ram = identity.get("mem_total_bytes"), profile.memory.ram_mb
    if ram is None or not isinstance(total, int | float):
        return []
    has_mb = total / (1 << 20)
    if LEAST_SHARE_OF_RAM * ram.value <= has_mb <= ram.value:
        return []
    return [f"ram: the profile says {ram.value:.0f} MiB, the device has {has_mb:.0f} MiB"]


def _cores(profile: Profile, board: Board) -> list[str]:
    wanted, found = profile.cpu.cluster, []
    if not wanted or not board.clusters:
        return []
    said, has = sum(len(one.ids) for one in wanted), sum(len(one.ids) for one in board.clusters)
    if said != has:
        found.append(f"cores: the profile says {said}, the device has {has}")
    for cluster in wanted:
        like = [one for one in board.clusters if one.core == cluster.core]
        if not like:
            if profile.cpu.arch != "x86_64":  # x86 tells a product's name and not a core's
                others = ", ".join(sorted({one.core or "unnamed" for one in board.clusters}))
                found.append(f"cores: the profile says {cluster.core}, the device has {others}")
            like = board.clusters if len(wanted) == 1 else []
        ids = sorted(number for one in like for number in one.ids)
        if like and ids != sorted(cluster.ids) and said == has:
            found.append(
                f"cores: {cluster.core} are {as_ranges(cluster.ids)} by the profile and {as_ranges(ids)} on the device"
            )
        for mhz in sorted({one.khz_max / 1000 for one in like if one.khz_max}):
            if abs(mhz - cluster.mhz_max.value) > CLOCK_TOLERANCE * cluster.mhz_max.value:
                found.append(
                    f"clock: the profile says {cluster.mhz_max.value:.0f} MHz for {cluster.core}, the device {mhz:.0f} MHz"
                )
    return found


def _rails(profile: Profile, board: Board) -> list[str]:
    wanted = profile.power.rails
    if wanted in ("", "none"):
        return []
    like = [rail for rail in board.rails if rail.meter == wanted]
    if not like:
        return [f"rails: the profile says {wanted}, the device shows none"]
    if all(rail.why for rail in like):
        return [f"rails: {wanted} is there but cannot be read: {like[0].why}"]
    return []


def as_ranges(ids: list[int]) -> str:
    """Core numbers as taskset writes them: ``0-3,6``."""
    parts: list[list[int]] = []
    for one in sorted(ids):
        if parts and one == parts[-1][-1] + 1:
            parts[-1].append(one)
        else:
            parts.append([one])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
