"""Unpack wheels from objects into one module folder, ``<cache>/site/<key>``. Nothing of a wheel is run.

A wheel is a stranger's zip. Its members may not be absolute, climb out, be links or devices, or differ from another's
by letter case alone; their number and bytes are limited, by what is written and not by what a header says.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import zipfile
from typing import Any, Callable

from bench_remote import holding
from bench_remote.store import Refusal, verify

MODULES_OF_DATA = ("purelib", "platlib")  # of a wheel's .data folder; its scripts and headers are not for importing


def main(order: dict[str, Any], say: Callable[..., None]) -> None:
    """``{"cache", "key", "wheels": [sha256, ...], "limit_bytes", "limit_members", "busy_wait_s"}``.

    Tells ``site``, the folder, or "" where there is none yet and no wheels came with the order.
    """
    cache, key = os.path.abspath(os.path.expanduser(order["cache"])), order["key"]
    if not re.match("^[0-9a-f]{12}$", key):
        raise Refusal("job", "not the name of a site")
    place = os.path.join(cache, "site", key)
    if not os.path.isdir(place) and order["wheels"]:
        held = holding.hold(cache, order["busy_wait_s"])
        objects = os.path.join(cache, "objects")
        verify(objects, {sha256: sha256 for sha256 in order["wheels"]}, cache)
        unpack([os.path.join(objects, sha256) for sha256 in order["wheels"]], place, order)
        for sha256 in order["wheels"]:
            os.unlink(os.path.join(objects, sha256))
        held.close()
    say(site=place if os.path.isdir(place) else "")


def unpack(wheels: list[str], place: str, limits: dict[str, Any]) -> None:
    """All wheels into ``place``, whole or not at all."""
    beside = os.path.join(os.path.dirname(place), ".partial-" + os.path.basename(place))
    shutil.rmtree(beside, ignore_errors=True)
    os.makedirs(beside, 0o700)
    seen: dict[str, tuple[str, int, int]] = {}
    try:
        for wheel in wheels:
            try:
                with zipfile.ZipFile(wheel) as archive:
                    _extract(archive, beside, seen, limits)
            except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as why:
                raise Refusal("job", f"not a wheel that can be read: {why}") from why
        os.rename(beside, place)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _extract(archive: Any, root: str, seen: dict[str, tuple[str, int, int]], limits: dict[str, Any]) -> None:
    chosen = []
    for member in archive.infolist():
        name = member_path(member)
        if member.is_dir() or not name:
            continue
        known = seen.get(name.casefold())
        if known and known != (name, member.CRC, member.file_size):
            raise Refusal("job", f"two wheels have a different {name!r}")
        if not known:
            seen[name.casefold()] = (name, member.CRC, member.file_size)
            chosen.append((name, member))
    total = sum(size for _, _, size in seen.values())
    if len(seen) > limits["limit_members"] or total > limits["limit_bytes"]:
        raise Refusal("job", f"the wheels are too large: {len(seen)} files, {total} bytes")
    space = os.statvfs(root)
    if sum(member.file_size for _, member in chosen) > space.f_bavail * space.f_frsize:
        raise OSError(errno.ENOSPC, f"no space left in {root}")
    for name, member in chosen:
        path = os.path.join(root, *name.split("/"))
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with archive.open(member) as source, os.fdopen(os.open(path, flags, 0o644), "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)  # ends with the size in the directory, and checks the CRC


def member_path(member: Any) -> str:
    """Where a member goes below the site's folder; "" for what no import needs. Refusal for what no wheel has."""
    name = member.filename
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or member.flag_bits & 1:
        raise Refusal("job", f"{name!r} is a link, a device or encrypted")
    parts = name.rstrip("/").split("/")
    wrong = any(part in ("", ".", "..") or len(part) > 255 for part in parts)
    if (
        wrong
        or not name.isprintable()
        or "\\" in name
        or ":" in parts[0]
        or len(name) > 1024
        or member.orig_filename != name
    ):
        raise Refusal("job", f"{name!r} is not a path of a wheel")
    if parts[0].endswith(".data"):
        return "/".join(parts[2:]) if len(parts) > 2 and parts[1] in MODULES_OF_DATA else ""
    return "/".join(parts)
