"""Where a device's configuration and the user's ``~/.ssh/config`` together lead: host, user, port, keys, jumps."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.devices import config as configs
from edgecompress.devices.config import DeviceConfig
from edgecompress.errors import RecipeError, Refused

if TYPE_CHECKING:
    from paramiko import SSHConfig

MAX_JUMPS = 5


@dataclass(frozen=True)
class Target:
    """One host to log in to. ``key_name`` and ``key_port`` are what its host key is known by; ``jump`` leads there."""

    host: str
    port: int
    user: str
    key_name: str
    key_port: int
    identities: tuple[str, ...] = ()
    identities_only: bool = False
    proxy_command: str = ""
    jump: Target | None = None
    connect_timeout_s: float = 10.0


def resolve(config: DeviceConfig) -> Target:
    """The device's own values first, then what ssh config says of its host, then defaults.

    Raises:
        RecipeError: an ssh config that cannot be read, jumps that go in a circle, or no user name anywhere.
        Refused: the device's own key file is not there.
    """
    if config.identity and not Path(config.identity).expanduser().is_file():
        raise Refused(f"no key file {config.identity}", hint="mend `identity` in the device's file, or leave it out")
    return _target(_read(), config.host, config.user, config.port, config.identity, config.connect_timeout_s, 0)


def _read() -> SSHConfig | None:
    from paramiko import ConfigParseError, SSHConfig

    path = Path("~/.ssh/config").expanduser()
    try:
        return SSHConfig.from_path(str(path)) if path.exists() else None
    except (ConfigParseError, OSError, UnicodeDecodeError) as cause:
        raise RecipeError(f"{path}: {cause}", hint="mend the file") from cause


def _target(
    config: SSHConfig | None, alias: str, user: str, port: int, identity: str, timeout_s: float, depth: int
) -> Target:
    if depth > MAX_JUMPS:
        raise RecipeError(f"more than {MAX_JUMPS} jumps on the way to {alias}", hint="does ProxyJump go in a circle?")
    said = _said(config, alias)
    host = str(said.get("hostname", alias))
    port = port or int(said.get("port", 22))
    alias_for_key = said.get("hostkeyalias")
    jump = said.get("proxyjump", "none")
    return Target(
        host=configs.make("ssh config", {"host": host}).host,
        port=port,
        user=user or str(said.get("user", "")) or _own_name(alias),
        key_name=str(alias_for_key or host),
        key_port=22 if alias_for_key else port,
        identities=_identities([identity] if identity else said.get("identityfile", [])),
        identities_only=str(said.get("identitiesonly", "no")).lower() == "yes",
        proxy_command="" if said.get("proxycommand", "none") == "none" else str(said["proxycommand"]),
        jump=None if jump == "none" else _jumps(config, str(jump).split(","), timeout_s, depth + 1),
        connect_timeout_s=timeout_s,
    )


def _identities(given: list[str]) -> tuple[str, ...]:
    """Key files that are there: as ssh does, those that ssh config names and nobody has are passed over."""
    return tuple(str(path) for path in (Path(one).expanduser() for one in given) if path.is_file())


def _said(config: SSHConfig | None, alias: str) -> dict[str, Any]:
    """What ssh config says of a host."""
    if config is None:
        return {}
    _own_name(alias)  # its reader asks for it too, to fill in %u, and would fail without a word
    return dict(config.lookup(alias))


def _own_name(alias: str) -> str:
    """Our own user name, from ``USER`` and its like or from the system's list of users."""
    try:
        return getpass.getuser()
    except (KeyError, OSError) as cause:  # a container's user without an entry in /etc/passwd; OSError from 3.13 on
        raise RecipeError(
            f"no user name to go to {alias} with: this machine has none for user {os.getuid()}",
            hint="export USER=name, or set `user` in the device's file",
        ) from cause


def _jumps(config: SSHConfig | None, hops: list[str], timeout_s: float, depth: int) -> Target:
    """``[user@]host[:port]`` in order: the last is the one next to the device, each is reached by the one before."""
    from dataclasses import replace

    reached: Target | None = None
    for hop in hops:
        user, _, rest = hop.strip().removeprefix("ssh://").rpartition("@")
        host, _, port = rest.rpartition(":") if rest.count(":") == 1 else (rest, "", "")
        if port and not port.isdecimal():
            raise RecipeError(f"ssh config: ProxyJump {hop!r} has no port number", hint="[user@]host[:port]")
        values = configs.make("ssh config: ProxyJump", {"host": host.strip("[]"), "user": user, "port": int(port or 0)})
        here = _target(config, values.host, values.user, values.port, "", timeout_s, depth)
        reached = replace(here, jump=reached) if reached else here
    assert reached is not None
    return reached
