"""How a fact is read: small files under a root folder, each bounded, and a reason where there is nothing to read."""

from __future__ import annotations

import glob
import os
import re
import subprocess
from typing import Any, Callable

MAX_BYTES = 1 << 20
VCGENCMD = ("usr/bin/vcgencmd", "opt/vc/bin/vcgencmd")


class Absent(Exception):
    """Why a fact is not there."""


def read(root: str, path: str) -> str:
    """The text of a file, at most 1 MiB of it."""
    with open(os.path.join(root, path), encoding="utf-8", errors="replace") as stream:
        return stream.read(MAX_BYTES)


def text(root: str, path: str) -> str:
    """The same, without the NUL and the line end behind it."""
    return read(root, path).strip("\0\n ")


def whole(root: str, path: str) -> int:
    """A file that holds one whole number."""
    return int(text(root, path))


def some(folder: str, name: str) -> str | None:
    """The text of a file, or None where it is not there or cannot be read."""
    try:
        return text(folder, name)
    except OSError:
        return None


def found(root: str, pattern: str) -> list[str]:
    """Paths below ``root`` that fit, ``hwmon2`` before ``hwmon10``."""
    return sorted(glob.glob(os.path.join(glob.escape(root), pattern)), key=_natural)


def _natural(path: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]


def collect(root: str, readers: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
    """What each reader says; those that say nothing are under ``absent``, with the reason."""
    facts: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for name, reader in readers.items():
        try:
            facts[name] = reader(root)
        except Absent as why:
            absent[name] = str(why)
        except OSError as why:
            absent[name] = (why.strerror or "unreadable").lower()
        except (ValueError, IndexError, subprocess.SubprocessError) as why:
            absent[name] = f"not understood: {why}"
    facts["absent"] = absent
    return facts


def policies(root: str) -> list[str]:
    """Folders of the frequency policies, one a cluster of cores."""
    folders = found(root, "sys/devices/system/cpu/cpufreq/policy*")
    if not folders:
        raise Absent("no cpufreq on this device")
    return folders


def vcgencmd(root: str, *words: str) -> str:
    """What Raspberry Pi's firmware answers."""
    for path in VCGENCMD:
        program = os.path.join(root, path)
        if os.path.exists(program):
            answer = subprocess.run([program, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=5)
            if answer.returncode:
                refused = (answer.stderr or answer.stdout).decode("utf-8", "replace")
                raise Absent(f"vcgencmd refused: {refused.strip()[:80]}")
            return answer.stdout[:MAX_BYTES].decode("utf-8", "replace")
    raise Absent("no vcgencmd: not a Raspberry Pi")
