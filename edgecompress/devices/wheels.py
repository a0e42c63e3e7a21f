"""Which wheel of a runtime installs on a device: a function of its facts and a table, with the reason when none does."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgecompress.devices.board import Board
from edgecompress.errors import RecipeError

Version = Annotated[str, Field(pattern=r"^\d+\.\d+$")]


class Wheel(BaseModel):
    """One row: a release whose wheels run on these Pythons and machines from this glibc on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: str
    package: str
    version: str
    python: list[Version]
    machine: list[str]
    glibc: Version
    beside: list[str] = []
    note: str = ""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Literal["edgecompress.wheels/1"] = Field(alias="schema")
    source: str
    wheel: list[Wheel]


@dataclass(frozen=True)
class Target:
    """What a wheel is chosen for: Python ``(3, 11)``, the machine of its programs (not of its kernel), glibc."""

    python: tuple[int, int]
    machine: str
    glibc: tuple[int, int]

    @property
    def platforms(self) -> list[str]:
        """Platform tags that fit, the newest glibc first, as pip and wheels spell them."""
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in range(self.glibc[1], 16, -1)]
        return [*tags, *([f"manylinux2014_{self.machine}"] if tags else []), f"linux_{self.machine}"]


@dataclass(frozen=True)
class Choice:
    """A wheel for a runtime, or ``why`` there is none."""

    runtime: str
    wheel: Wheel | None
    why: str = ""

    def __str__(self) -> str:
        if self.wheel is None:
            return f"none: {self.why}"
        note = f", {self.wheel.note}" if self.wheel.note else ""
        return f"{self.wheel.package} {self.wheel.version}{note}"


@cache
def table() -> list[Wheel]:
    """The shipped rows, in order of preference."""
    text = files("edgecompress.devices").joinpath("wheels.toml").read_text(encoding="utf-8")
    return _Table.model_validate(tomllib.loads(text)).wheel


def target(board: Board) -> Target:
    """What wheels must fit on a board.

    Raises:
        RecipeError: no wheel at all can be chosen for it, and why.
    """
    hint = "bring the runtime there yourself and set `site` or `python` in the device's file"
    python = board.python
    if python is None:
        raise RecipeError(f"the device does not tell of its Python: {board.absent.get('python', '')}", hint=hint)
    if python.implementation != "cpython" or python.free_threaded:
        kind = "free-threaded" if python.free_threaded else python.implementation
        raise RecipeError(f"the device's Python is {kind}: its wheels are not in our table", hint=hint)
    if not board.glibc:
        raise RecipeError(f"no wheel fits: {board.absent.get('glibc', 'its C library is not known')}", hint=hint)
    major, minor = board.glibc.split(".")[:2]
    narrow = {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}
    machine = narrow.get(python.machine, python.machine) if python.bits == 32 else python.machine
    return Target(python.version[:2], machine, (int(major), int(minor)))


def choose(runtime: str, wanted: Target) -> Choice:
    """The first row of the table that fits, or what stands in the way of all of them."""
    rows = [row for row in table() if row.runtime == runtime]
    if not rows:
        return Choice(runtime, None, "not in our table")
    rows = [row for row in rows if wanted.machine in row.machine]
    if not rows:
        return Choice(runtime, None, f"no wheel for {wanted.machine}")
    python = f"{wanted.python[0]}.{wanted.python[1]}"
    known = sorted({_pair(one) for row in rows for one in row.python})
    rows = [row for row in rows if python in row.python]
    if not rows:
        first, last = known[0], known[-1]
        text = f"no wheel for Python {python} on {wanted.machine}, only {first[0]}.{first[1]} to {last[0]}.{last[1]}"
        return Choice(runtime, None, text)
    for row in rows:
        if _pair(row.glibc) <= wanted.glibc:
            return Choice(runtime, row)
    least = min(_pair(row.glibc) for row in rows)
    text = f"needs glibc {least[0]}.{least[1]}, the device has {wanted.glibc[0]}.{wanted.glibc[1]}"
    return Choice(runtime, None, text)


def _pair(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)
