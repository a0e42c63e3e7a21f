"""The user's devices: one TOML file each, in a folder of the user's, checked before anything is done with them."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from edgecompress.errors import DeviceError, PluginNotFound, RecipeError
from edgecompress.plugins import nearest
from edgecompress.records import write_text

# Names go into paths, command lines of other tools and logs: letters that mean nothing to any of them, never a
# leading '-'.
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9._:-]{0,252}(%[A-Za-z0-9]{1,15})?")
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}")


def _matching(pattern: re.Pattern[str], what: str, empty: bool = True) -> AfterValidator:
    def check(value: str) -> str:
        if not (pattern.fullmatch(value) or (empty and not value)):
            raise ValueError(f"not a {what}: {value!r}")
        return value

    return AfterValidator(check)


def _printable(value: str) -> str:
    if not value.isprintable() or value.startswith("-"):
        raise ValueError(f"not a path: {value!r}")
    return value


Printable = Annotated[str, AfterValidator(_printable)]


class DeviceConfig(BaseModel):
    """How to reach a device and what it has. ``cache`` and ``site`` are folders on the device (``~`` is its home)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    transport: Annotated[str, _matching(NAME, "transport name", empty=False)] = "ssh"
    host: Annotated[str, _matching(HOST, "host name")] = ""
    user: Annotated[str, _matching(USER, "user name")] = ""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    identity: Printable = ""
    python: Annotated[Printable, Field(min_length=1)] = "python3"
    profile: Annotated[str, _matching(NAME, "profile name")] = ""
    site: Printable = ""
    cache: Annotated[Printable, Field(min_length=1)] = "~/.cache/edgecompress"
    connect_timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0


def home() -> Path:
    """``$EDGECOMPRESS_HOME``, else ``$XDG_CONFIG_HOME/edgecompress``, else ``~/.config/edgecompress``."""
    if own := os.environ.get("EDGECOMPRESS_HOME"):
        return Path(own)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "edgecompress"


def check_name(name: str) -> str:
    """A device's name, or RecipeError: it becomes a file's name."""
    if not NAME.fullmatch(name):
        raise RecipeError(
            f"{name!r} is not a device name", hint="lower-case letters, digits, '.', '_' and '-', at most 63"
        )
    return name


def make(where: str, values: dict[str, Any]) -> DeviceConfig:
    """Check values; RecipeError names every bad key at once."""
    try:
        config = DeviceConfig.model_validate(values)
    except ValidationError as cause:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in cause.errors())
        hint = f"a device's file may have: {', '.join(DeviceConfig.model_fields)}"
        raise RecipeError(f"{where}: {faults}", hint=hint) from cause
    if config.transport == "ssh" and not config.host:
        raise RecipeError(f"{where}: no host", hint="edgecompress device add NAME --host HOST")
    return config


def names() -> list[str]:
    """Names of the user's devices, ``local`` first (it is always there)."""
    found = {path.stem for path in (home() / "devices").glob("*.toml") if NAME.fullmatch(path.stem)}
    return ["local", *sorted(found - {"local"})]


def read(name: str) -> DeviceConfig:
    """The configuration of a device.

    Raises:
        PluginNotFound: no such device; the hint offers the nearest name.
        RecipeError: not a name, or a file with keys or values that are not allowed.
    """
    path = home() / "devices" / f"{check_name(name)}.toml"
    if not path.exists():
        if name == "local":
            own = os.environ.get("EDGECOMPRESS_HOME")
            return DeviceConfig(transport="local", **({"cache": str(Path(own).resolve() / "cache")} if own else {}))
        hint = f"{nearest(name, names())}; add one by `edgecompress device add {name} --host HOST`"
        raise PluginNotFound(f"no device is called {name!r}", hint=hint)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as cause:
        raise RecipeError(f"{path}: {cause}", hint="mend the file, or remove it and add the device again") from cause
    return make(str(path), values)


def write(name: str, config: DeviceConfig, *, replace: bool = False) -> Path:
    """Store a device; only what differs from the defaults is written."""
    path = home() / "devices" / f"{check_name(name)}.toml"
    if path.exists() and not replace:
        raise DeviceError(f"there is already a device {name!r}", hint=f"edit {path}, or add it with --replace")
    lines = [f"{key} = {_toml(value)}" for key, value in config.model_dump(exclude_defaults=True).items()]
    write_text(path, "\n".join(lines) + "\n")
    return path


def _toml(value: str | int | float) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
