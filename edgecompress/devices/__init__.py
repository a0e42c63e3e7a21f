"""Devices: where things are measured. A Device is a name, a Transport (the way there) and, if known, a Profile (data).

The user's devices are TOML files under ``config.home()``; ``local`` is always there. Transports are found by the
entry-point group ``edgecompress.devices``. Host keys are pinned by ``add_device`` and checked ever after.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgecompress import plugins
from edgecompress.devices import config as configs
from edgecompress.devices.config import DeviceConfig
from edgecompress.devices.profile import Profile, profile, profiles
from edgecompress.devices.transport import Blob, Process, Put, Transport
from edgecompress.errors import EdgeCompressError

__all__ = [
    "Blob", "Device", "DeviceConfig", "Process", "Profile", "Put", "Transport",
    "add_device", "fetch_host_key", "list_devices", "open_device", "profile", "profiles", "remove_device", "survey",
]  # fmt: skip


@dataclass(frozen=True)
class Device:
    """A device that can be used: close it, or use it as a context manager."""

    name: str
    config: DeviceConfig
    transport: Transport
    profile: Profile | None = None

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self.transport.close()


def open_device(name: str) -> Device:
    """A device by name. Nothing is connected yet.

    Raises:
        PluginNotFound: no such device, transport or profile; the nearest name is in the hint.
        RecipeError: its file says what cannot be done.
    """
    config = configs.read(name)
    known = profile(config.profile) if config.profile else None
    transport: Transport = plugins.find("devices", config.transport)(config)
    return Device(name, config, transport, known)


def list_devices() -> dict[str, DeviceConfig]:
    """The user's devices by name, ``local`` first."""
    return {name: configs.read(name) for name in configs.names()}


def survey() -> dict[str, DeviceConfig | EdgeCompressError]:
    """As ``list_devices``, but a file that cannot be read is there as its error."""
    found: dict[str, DeviceConfig | EdgeCompressError] = {}
    for name in configs.names():
        try:
            found[name] = configs.read(name)
        except EdgeCompressError as fault:
            found[name] = fault
    return found


def fetch_host_key(values: Mapping[str, Any]) -> tuple[str, str]:
    """Ask the host of a configuration (``host``, ``port``, ...) for its key, without logging in.

    Returns:
        The key's type and its fingerprint as ``ssh-keygen -l`` prints it (``SHA256:...``), to be shown to a person.
    """
    from edgecompress.devices.ssh import host_key

    key = host_key(configs.make("device", dict(values)))
    return key.type, key.fingerprint


def add_device(name: str, values: Mapping[str, Any], *, fingerprint: str = "", replace: bool = False) -> DeviceConfig:
    """Store a device and pin its host key.

    Args:
        name: what it will be called.
        values: keys of DeviceConfig.
        fingerprint: the key that a person agreed to; another one now shown by the host is refused. Required for ssh.
        replace: overwrite a device of this name, and a key pinned before.

    Raises:
        HostKeyChanged: the host shows another key than ``fingerprint``, or than the pinned one without ``replace``.
        RecipeError: a name or value that is not allowed.
        DeviceError: there is already such a device.
    """
    configs.check_name(name)
    config = configs.make(f"device {name}", dict(values))
    if config.profile:
        profile(config.profile)
    if not replace and name in configs.names():
        raise configs.DeviceError(
            f"there is already a device {name!r}", hint="add it with --replace, or by another name"
        )
    if config.transport == "ssh":
        from edgecompress.devices.ssh import pin

        pin(config, fingerprint, replace=replace)
    configs.write(name, config, replace=replace)
    return config


def remove_device(name: str) -> None:
    """Forget a device, also one whose file is broken; its pinned host key stays, since another name may use it."""
    if name not in configs.names():
        configs.read(name)
    (configs.home() / "devices" / f"{name}.toml").unlink(missing_ok=True)
