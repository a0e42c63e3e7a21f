"""Give a board the runtimes it lacks, without a network or root there, and take back all that we ever put there.

Wheels are fetched or found on this side, checked against their own hashes, sent as objects and unpacked on the device
into one folder, which becomes the device's ``site``. Nothing of a wheel is run for that, on either side.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from edgecompress.devices import Blob, Device, board, programs, wheels
from edgecompress.devices import config as configs
from edgecompress.devices.programs import Bytes, Text
from edgecompress.devices.transport import Progress
from edgecompress.errors import AgentFailed, RecipeError
from edgecompress.records import content_key

LIMIT_BYTES = 4 << 30
LIMIT_MEMBERS = 100_000
FETCH_TIMEOUT_S = 900.0
PARTS = ("objects", "jobs", "site", "lease", "lock")
OWN_SITE = re.compile(r".*/site/[0-9a-f]{12}")


@dataclass(frozen=True)
class Provisioned:
    """What was done: the folder on the device, whether it is new, bytes sent, and the wheels by SHA-256."""

    site: str
    new: bool
    bytes_sent: int
    wheels: dict[str, str]
    skipped: list[str]


class Part(BaseModel):
    """One kind of our things on the device."""

    name: Text
    entries: Annotated[int, Field(ge=0)]
    bytes: Bytes


class Cleaned(BaseModel):
    """What of ours is, or was, in ``cache`` on the device, and ``others``, names of what is not ours."""

    cache: Text
    parts: list[Part]
    others: Annotated[list[Text], Field(max_length=20)]


def provision(
    device: Device,
    runtimes: Sequence[str],
    folder: Path | None = None,
    *,
    replace: bool = False,
    progress: Progress | None = None,
    timeout_s: float = 600.0,
) -> Provisioned:
    """Put wheels on a device and set its ``site``.

    Args:
        runtimes: names as in the table of wheels; without a folder at least one.
        folder: wheels to take instead of fetching any: all in it that fit the device.
        replace: also where ``site`` is a folder that is not ours.

    Raises:
        RecipeError: no wheel fits, and why; a wheel that is broken; two of one package; a ``site`` of the user's.
        DeviceError: the device, or the way to it.
    """
    if device.config.site and not OWN_SITE.fullmatch(device.config.site) and not replace:
        raise RecipeError(
            f"the site of {device.name} is {device.config.site}, which is not ours", hint="provision with --replace"
        )
    target = wheels.target(board.read(device, timeout_s))
    with tempfile.TemporaryDirectory(prefix="edgecompress-wheels-") as own:
        if folder is None:
            fetch(runtimes, target, Path(own))
        found, skipped = select(folder or Path(own), target, runtimes)
        blobs = {path.name: Blob.of(path) for path in found}
        key = content_key({"layout": 1, "wheels": sorted(blob.sha256 for blob in blobs.values())})
        site, sent = _unpack(device, key, [], timeout_s), 0
        new = not site
        if new:
            sent = device.transport.put(
                device.config.python, device.config.cache, list(blobs.values()), progress
            ).bytes_sent
            site = _unpack(device, key, [blob.sha256 for blob in blobs.values()], timeout_s)
    if not site:
        raise AgentFailed("the device unpacked nothing", hint="see `edgecompress device probe`")
    _set_site(device.name, site)
    return Provisioned(site, new, sent, {name: blob.sha256 for name, blob in blobs.items()}, skipped)


def clean(device: Device, *, remove: bool, parts: Sequence[str] = PARTS, timeout_s: float = 120.0) -> Cleaned:
    """What of ours is on a device; with ``remove`` it is gone after, and a ``site`` of ours is no longer set.

    Raises:
        Busy: a session measures there now.
        DeviceError: the device, or the way to it.
    """
    order = {"cache": device.config.cache, "parts": list(parts), "remove": remove}
    told = _last(device, "clean", order, timeout_s)
    try:
        cleaned = Cleaned.model_validate(told)
    except ValidationError as cause:
        raise AgentFailed("the device tells something impossible of what it has") from cause
    if remove and "site" in parts and OWN_SITE.fullmatch(device.config.site):
        _set_site(device.name, "")
    return cleaned


def _last(device: Device, module: str, order: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    answers = list(programs.run(device, module, order, timeout_s))
    if not answers:
        raise AgentFailed("the device was done without an answer")
    return answers[-1]


def _unpack(device: Device, key: str, sha256s: list[str], timeout_s: float) -> str:
    """The site's absolute folder on the device, or "" where it is not there and nothing came."""
    limits = {"limit_bytes": LIMIT_BYTES, "limit_members": LIMIT_MEMBERS, "busy_wait_s": 60.0}
    order = {"cache": device.config.cache, "key": key, "wheels": sha256s, **limits}
    site = _last(device, "unpack", order, timeout_s).get("site")
    whole = isinstance(site, str) and site.startswith("/") and site.endswith(f"/site/{key}") and len(site) <= 1024
    if not whole and site != "":
        raise AgentFailed("the device answers with an impossible folder", hint="is the device trustworthy?")
    return str(site)


def _set_site(name: str, site: str) -> None:
    """Write a device's file anew; that of ``local`` goes when nothing but its defaults would be in it."""
    changed = configs.read(name).model_copy(update={"site": site})
    path = configs.write(name, changed, replace=True)
    if name == "local":
        path.unlink()
        if configs.read(name) != changed:
            configs.write(name, changed, replace=True)


def fetch(runtimes: Sequence[str], target: wheels.Target, into: Path) -> None:
    """Download the wheels of runtimes and of what they need, for a device, by this side's pip.

    Raises:
        RecipeError: no wheel fits; pip's own last words where it fails.
    """
    if not runtimes:
        raise RecipeError("no runtime was named", hint="--runtime onnxruntime, or --wheels DIR")
    choices = [wheels.choose(name, target) for name in dict.fromkeys(runtimes)]
    if lacking := [f"{one.runtime}: {one.why}" for one in choices if one.wheel is None]:
        raise RecipeError(f"no wheel fits the device: {'; '.join(lacking)}", hint="--wheels DIR takes wheels of yours")
    wanted = [one.wheel for one in choices if one.wheel]
    python = f"{target.python[0]}.{target.python[1]}"
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    argv += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", f"--dest={into}"]
    argv += [f"--platform={tag}" for tag in target.platforms if not tag.startswith("linux_")]
    argv += [word for one in wanted for word in (f"{one.package}=={one.version}", *one.beside)]
    hint = "is this machine on the network, and does its Python have pip? else --wheels DIR"
    try:
        done = subprocess.run(argv, capture_output=True, timeout=FETCH_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as cause:
        raise RecipeError(f"pip was not done after {FETCH_TIMEOUT_S:.0f} s", hint=hint) from cause
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").splitlines()
        said = " ".join([line for line in lines if line.startswith("ERROR")] or lines)[-400:]
        raise RecipeError(f"pip could not fetch the wheels: {said}", hint=hint)


def select(folder: Path, target: wheels.Target, runtimes: Sequence[str] = ()) -> tuple[list[Path], list[str]]:
    """The wheels in a folder that fit a device, checked, and the names of those that do not.

    Raises:
        RecipeError: none fits, one is broken, two are of one package, or a named runtime's is missing.
    """
    if not folder.is_dir():
        raise RecipeError(f"no such folder: {folder}", hint="--wheels takes a folder of .whl files")
    every = sorted(folder.glob("*.whl"))
    fitting = [path for path in every if fits(path.name, target)]
    machine = (
        f"Python {target.python[0]}.{target.python[1]}, {target.machine}, glibc {target.glibc[0]}.{target.glibc[1]}"
    )
    if not fitting:
        raise RecipeError(f"of {len(every)} wheels in {folder} none fits {machine}", hint="fetch them for this device")
    packages: dict[str, Path] = {}
    for path in fitting:
        name = _package(path.name)
        if name in packages:
            raise RecipeError(f"two wheels of {name}: {packages[name].name}, {path.name}", hint="leave one of them")
        packages[name] = path
        verify(path)
    for runtime in runtimes:
        known = {row.package for row in wheels.table() if row.runtime == runtime} or {runtime}
        if not known & set(packages):
            raise RecipeError(f"no wheel of {runtime} in {folder} fits {machine}", hint="fetch one for this device")
    return fitting, [path.name for path in every if path not in fitting]


def _package(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.split("-")[0]).lower()


def fits(name: str, target: wheels.Target) -> bool:
    """Whether a wheel of this file name runs there, by its tags (PEP 425, 600)."""
    words = name.removesuffix(".whl").split("-")
    if len(words) not in (5, 6):
        return False
    pythons, abis, platforms = (set(word.split(".")) for word in words[-3:])
    major, minor = target.python
    own = f"cp{major}{minor}"
    older = {f"cp{major}{one}" for one in range(2, minor + 1)}
    pure = {f"py{major}", f"py{major}{minor}", own}
    right_abi = (own in abis and own in pythons) or ("abi3" in abis and bool(pythons & older))
    right_abi = right_abi or ("none" in abis and bool(pythons & pure))
    return right_abi and bool(platforms & {"any", *target.platforms})


def verify(path: Path) -> None:
    """Hold every file of a wheel against the hash in its RECORD.

    Raises:
        RecipeError: not a wheel, or one that was changed or cut.
    """
    hint = "fetch it again"
    try:
        with zipfile.ZipFile(path) as archive:
            names = [member.filename for member in archive.infolist() if not member.is_dir()]
            lists = [name for name in names if re.fullmatch(r"[^/]+\.dist-info/RECORD", name)]
            if len(lists) != 1:
                raise RecipeError(f"{path.name}: not a wheel: no RECORD", hint=hint)
            if sum(member.file_size for member in archive.infolist()) > LIMIT_BYTES or len(names) > LIMIT_MEMBERS:
                raise RecipeError(f"{path.name}: larger than any runtime", hint=hint)
            rows = csv.reader(io.StringIO(archive.read(lists[0]).decode("utf-8")))
            hashes = {row[0]: row[1] for row in rows if len(row) >= 2}
            signatures = {lists[0], f"{lists[0]}.jws", f"{lists[0]}.p7s"}
            for name in names:
                if name not in signatures and not _is_as_listed(archive, name, hashes.get(name, "")):
                    raise RecipeError(f"{path.name}: {name} is not what its RECORD says", hint=hint)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, csv.Error) as cause:
        raise RecipeError(f"{path.name}: not a wheel that can be read: {cause}", hint=hint) from cause


def _is_as_listed(archive: zipfile.ZipFile, name: str, listed: str) -> bool:
    kind, _, wanted = listed.partition("=")
    if kind not in ("sha256", "sha384", "sha512"):
        return False
    with archive.open(name) as stream:
        digest = hashlib.new(kind)
        while block := stream.read(1 << 20):
            digest.update(block)
    return base64.urlsafe_b64encode(digest.digest()).decode().rstrip("=") == wanted.rstrip("=")
