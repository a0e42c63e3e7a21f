"""What is known of a board before anyone logs in: data with sources, one TOML a board, read from ``device_profiles``.

Profiles are data only (no commands, no templates), so a downloaded one can never run anything. Every physical number
carries where it comes from, or says that nobody has checked it, and why it is there all the same.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgecompress.errors import PluginNotFound, RecipeError
from edgecompress.plugins import nearest


class Part(BaseModel):
    """Frozen, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Number(Part):
    """A physical number, how it was got, and who says so; one that is ``unverified`` has a reason in place of a source."""

    value: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    source: str = ""
    method: Literal["measured", "scaled", "specified", "computed"] = "measured"
    unverified: bool = False
    reason: str = ""

    @model_validator(mode="after")
    def _vouched_for(self) -> Number:
        if self.unverified and not self.reason:
            raise ValueError("what is unverified needs a reason")
        if not self.unverified and (not self.source or self.reason):
            raise ValueError("needs a source, or unverified = true and a reason")
        return self


class Match(Part):
    """How a probe recognises the board: every key given must fit."""

    dt_compatible: list[str] = []
    machine: list[str] = []
    mem_total_mb: tuple[int, int] | None = None
    cpu_contains: str = ""


class Cluster(Part):
    """Cores of one kind; ``ids`` are what to pin to."""

    name: str
    core: str
    ids: list[int]
    mhz_max: Number


class Cpu(Part):
    """Architecture and the instruction-set flags that matter to kernels, as /proc/cpuinfo spells them."""

    arch: str
    isa: list[str] = []
    forbidden_isa: list[str] = []
    cluster: list[Cluster] = []


class Memory(Part):
    """RAM and its bandwidth in GB/s (of bytes copied, for memcpy)."""

    ram_mb: Number | None = None
    memcpy_gb_per_s: Number | None = None
    read_gb_per_s: Number | None = None
    specified_gb_per_s: Number | None = None


class Peak(Part):
    """Greatest multiply-accumulates per second of all big cores, in G, and the share of it that GEMM reaches."""

    fp32_gmacs_per_s: Number | None = None
    int8_gmacs_per_s: Number | None = None
    gemm_efficiency: Number | None = None


class Power(Part):
    """Watts at rest and under stress, and the meter that the board has ("" is unknown)."""

    idle_watts: Number | None = None
    stress_watts: Number | None = None
    rails: Literal["", "pmic", "ina3221", "rapl", "none"] = ""


class Thermal(Part):
    """Where it slows down, in degrees Celsius, and where flags of it are read."""

    throttle_celsius: Number | None = None
    throttle_flags: Literal["vcgencmd", "none"] = "none"


class RuntimeNote(Part):
    """Whether PyPI has a wheel for it, and the oldest glibc that its newest wheel runs on."""

    wheel: bool
    glibc_min: str = ""
    note: str = ""


class Profile(Part):
    """One board."""

    schema_: Literal["edgecompress.device/1"] = Field(alias="schema")
    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    title: str
    notes: list[str] = []
    match: Match = Match()
    cpu: Cpu
    memory: Memory = Memory()
    peak: Peak = Peak()
    power: Power = Power()
    thermal: Thermal = Thermal()
    runtime: dict[str, RuntimeNote] = {}

    def fits(self, identity: dict[str, Any]) -> bool:
        """Whether the facts of a device are this board's. A profile that asks for nothing fits nothing."""
        wanted = self.match
        checks: list[bool] = []
        total = identity.get("mem_total_bytes")
        total_mb = total / (1 << 20) if isinstance(total, (int, float)) else 0.0
        if wanted.dt_compatible:
            checks.append(any(name in _texts(identity.get("compatible")) for name in wanted.dt_compatible))
        if wanted.machine:
            checks.append(identity.get("machine") in wanted.machine)
        if wanted.mem_total_mb:
            checks.append(wanted.mem_total_mb[0] <= total_mb <= wanted.mem_total_mb[1])
        if wanted.cpu_contains:
            checks.append(any(wanted.cpu_contains in name for name in _texts(identity.get("cpu"))))
        return bool(checks) and all(checks)

    def specificity(self) -> int:
        """How much it asks for, to prefer a board over a kind of boards."""
        wanted = self.match
        return 4 * bool(wanted.dt_compatible) + 2 * bool(wanted.cpu_contains) + bool(wanted.mem_total_mb)


def _texts(value: Any) -> list[str]:
    """The texts in a list that a device sent; a device may send anything."""
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def parse(where: str, text: str) -> Profile:
    """A profile from TOML; RecipeError names every fault at once."""
    try:
        return Profile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as cause:
        raise RecipeError(f"{where}: {cause}", hint="mend the file") from cause
    except ValidationError as cause:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in cause.errors())
        raise RecipeError(
            f"{where}: {faults}",
            hint="every physical number is {value = ..., source = ...}, or {value = ..., unverified = true, reason = ...}",
        ) from cause


@cache
def profiles() -> dict[str, Profile]:
    """All shipped profiles by id."""
    found = {}
    for entry in sorted(files("device_profiles").iterdir(), key=lambda one: one.name):
        if entry.name.endswith(".toml"):
            board = parse(entry.name, entry.read_text(encoding="utf-8"))
            found[board.id] = board
    return found


def profile(name: str) -> Profile:
    """One profile by id; PluginNotFound offers the nearest."""
    if name not in profiles():
        raise PluginNotFound(f"no device profile is called {name!r}", hint=nearest(name, sorted(profiles())))
    return profiles()[name]


def numbers(part: Part, where: str = "") -> dict[str, Number]:
    """Every physical number in a profile by the dotted path of its key."""
    found: dict[str, Number] = {}
    for name in type(part).model_fields:
        path, value = f"{where}.{name}".lstrip("."), getattr(part, name)
        for index, one in enumerate(value if isinstance(value, list) else [value]):
            here = f"{path}[{index}]" if isinstance(value, list) else path
            if isinstance(one, Number):
                found[here] = one
            elif isinstance(one, Part):
                found |= numbers(one, here)
    return found


def matching(identity: dict[str, Any]) -> Profile | None:
    """The most specific profile that fits a device's facts."""
    fitting = [board for board in profiles().values() if board.fits(identity)]
    return max(fitting, key=Profile.specificity, default=None)
