"""Host keys: the user's known_hosts and ours, read line by line, and the rule that an unknown or changed key ends it.

Ours (pinned by ``device add``) decides where it knows a host; else the user's ``~/.ssh/known_hosts``. Lines that
paramiko's reader cannot take (``@cert-authority`` makes it raise) are passed over. A key that a ``@revoked`` line of
either names is known to nobody, so that it is refused before a key of ours or a user name is shown to it.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.devices import config as configs
from edgecompress.errors import HostKeyChanged, HostKeyUnknown
from edgecompress.records import write_text

if TYPE_CHECKING:
    from paramiko import HostKeys, PKey


@dataclass(frozen=True)
class HostKey:
    """A host's public key as shown to a person: type, ``SHA256:`` fingerprint, and the key's base64."""

    type: str
    fingerprint: str
    base64: str

    @classmethod
    def of(cls, key: PKey) -> HostKey:
        """From paramiko's key."""
        return cls(key.get_name(), key.fingerprint, key.get_base64())


def entry_name(host: str, port: int) -> str:
    """A host as known_hosts spells it."""
    return host if port == 22 else f"[{host}]:{port}"


def pins_path() -> Path:
    """Our own known_hosts."""
    return configs.home() / "known_hosts"


def users_path() -> Path:
    """The user's known_hosts."""
    return Path("~/.ssh/known_hosts").expanduser()


def known(name: str) -> HostKeys:
    """The keys that may be shown by the host that known_hosts calls ``name``."""
    pinned = _read(pins_path())
    return pinned if pinned.lookup(name) is not None else _read(users_path())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _read(path: Path) -> HostKeys:
    from paramiko import HostKeys, SSHException
    from paramiko.hostkeys import HostKeyEntry, InvalidHostKey

    keys, out = HostKeys(), revoked()
    for line in _lines(path):
        if not line.strip() or line.lstrip().startswith(("#", "@")):
            continue
        try:
            entry = HostKeyEntry.from_line(line)
        except (InvalidHostKey, SSHException, ValueError):
            continue
        if entry is not None and entry.key is not None and entry.key.get_base64() not in out:
            keys._entries.append(entry)  # the reader of whole files is the only public way in, and it raises
    return keys


def revoked() -> set[str]:
    """Base64 of all keys that ours or the user's known_hosts revokes, for whichever host."""
    lines = [line.split() for line in [*_lines(pins_path()), *_lines(users_path())]]
    return {words[3] for words in lines if len(words) > 3 and words[0] == "@revoked"}


def refuse_revoked(name: str, base64: str) -> None:
    """HostKeyChanged if a known_hosts revokes this key."""
    if base64 in revoked():
        raise HostKeyChanged(f"{name} shows a key that known_hosts marks as revoked", hint="ask who runs the device")


def unknown(name: str, key: PKey) -> HostKeyUnknown:
    """The error for a host that nobody pinned."""
    hint = "compare the fingerprint on the device (ssh-keygen -lf), then: edgecompress device add NAME --host HOST"
    return HostKeyUnknown(f"the host key of {name} is not known: {key.get_name()} {key.fingerprint}", hint=hint)


def changed(name: str, shown: PKey, expected: PKey) -> HostKeyChanged:
    """The error for a host that shows another key than the known one."""
    text = f"{name} shows the host key {shown.fingerprint}, known is {expected.fingerprint}; nothing was sent"
    return HostKeyChanged(
        text, hint="if the device was set up anew: edgecompress device add NAME --host HOST --replace"
    )


def pin(name: str, key: HostKey, *, replace: bool) -> None:
    """Write a key into our known_hosts.

    Raises:
        HostKeyChanged: another key is pinned for this host and ``replace`` is false.
    """
    from paramiko import PKey

    pinned = _read(pins_path()).lookup(name)
    if pinned is not None and not replace and key.base64 not in {one.get_base64() for one in pinned.values()}:
        shown = PKey.from_type_string(key.type, base64.b64decode(key.base64))
        raise changed(name, shown, next(iter(pinned.values())))
    kept = [line for line in _lines(pins_path()) if line.split(" ")[0] != name]
    write_text(pins_path(), "\n".join([*kept, f"{name} {key.type} {key.base64}"]) + "\n")
