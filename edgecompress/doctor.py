"""Whether this installation can do its work: findings, each with what to do about it. Nothing is printed here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from edgecompress import __version__
from edgecompress.errors import EdgeCompressError

OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``absent`` is no fault: the thing is optional; ``broken`` is."""

    what: str
    state: Literal["ok", "absent", "broken"]
    found: str
    hint: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def examine() -> list[Finding]:
    """Look at everything. Takes some seconds: packages are imported, which is what shows that they work."""
    return [
        _python(),
        Finding("edgecompress", "ok", __version__),
        *_packages(),
        *_ssh(),
        *_devices(),
        *_folders(),
        _disk(),
    ]


def packages() -> dict[str, dict[str, str]]:
    """What this installation's own metadata asks for: extra -> {distribution: module}; ``""`` is what all have.

    A distribution that several extras name stands under the smallest: ``all`` and the like repeat the others.
    """
    asked: dict[str, dict[str, str]] = {}
    for line in requires("edgecompress") or []:
        name, marked = re.match(r"[\w.-]+", line), re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
        if name and "python_version" not in line:  # what only a Python older than ours would install
            asked.setdefault(marked[1] if marked else "", {})[name[0]] = name[0].replace("-", "_").lower()
    found: dict[str, dict[str, str]] = {}
    seen: set[str] = set()
    for extra in sorted(asked, key=lambda one: (one != "", len(asked[one]))):
        own = {name: module for name, module in asked[extra].items() if name not in seen}
        seen |= set(own)
        if own:
            found[extra] = own
    return found


def _python() -> Finding:
    text = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        return Finding("python", "broken", text, "use Python 3.11 or later")
    return Finding("python", "ok", text)


def _packages() -> Iterator[Finding]:
    for extra, names in packages().items():
        versions = {name: _version(name) for name in names}
        if extra and not any(versions.values()):
            yield Finding(f"extra {extra}", "absent", "not installed", f"pip install 'edgecompress[{extra}]'")
            continue
        faults = _import_faults([module for name, module in names.items() if versions[name]])
        again = (
            f"pip install --force-reinstall 'edgecompress[{extra}]'"
            if extra
            else "pip install --force-reinstall edgecompress"
        )
        for name, module in names.items():
            what = f"extra {extra}: {name}" if extra else name
            fault = "not installed" if versions[name] is None else faults.get(module)
            if fault is None:
                yield Finding(what, "ok", str(versions[name]))
            else:
                yield Finding(what, "broken", f"{versions[name] or ''} {fault}".strip(), again)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


# One process for each extra: a broken native library ends that process and not this one, and what packages print
# while they are imported is not shown.
_IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        sys.__stdout__.write(f"\\n@{name}@\\n")
    except BaseException as cause:
        text = " ".join(str(cause).split())[:120]
        sys.__stdout__.write(f"\\n@{name}@does not import: {type(cause).__name__}: {text}\\n")
    sys.__stdout__.flush()
"""


def _import_faults(modules: list[str]) -> dict[str, str]:
    """Why modules cannot be imported; those that can are left out."""
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _IMPORTS, *modules], capture_output=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return dict.fromkeys(modules, "does not import within 120 s")
    said = dict(
        line[1:].split("@", 1) for line in ended.stdout.decode(errors="replace").splitlines() if line.startswith("@")
    )
    died = f"does not import: Python died (exit status {ended.returncode})"
    return {name: said.get(name, died) for name in modules if said.get(name, died)}


def _ssh() -> Iterator[Finding]:
    from edgecompress.devices import hostkeys

    pins, users = hostkeys.pins_path(), hostkeys.users_path()
    for what, path in (("pinned host keys", pins), ("your known_hosts", users)):
        if not path.exists():
            yield Finding(
                what, "absent", f"no {path}", "`edgecompress device add` pins a board's key" if path == pins else ""
            )
        elif not os.access(path, os.R_OK):
            yield Finding(what, "broken", f"{path} cannot be read", f"chmod u+r {path}")
        else:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            keys = sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in lines)
            yield Finding(what, "ok", f"{keys} in {path}")
    agent = os.environ.get("SSH_AUTH_SOCK")
    yield Finding("ssh agent", "ok" if agent else "absent", "running" if agent else "none; keys are read from files")
    sshd = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    yield Finding("sshd", "ok" if sshd else "absent", sshd or "none here: only needed where this machine is the board")


def _devices() -> Iterator[Finding]:
    from edgecompress import devices

    for name in devices.config.names():
        try:
            config = devices.config.read(name)
        except EdgeCompressError as fault:
            yield Finding(f"device {name}", "broken", fault.message, fault.hint)
            continue
        yield Finding(f"device {name}", "ok", " ".join(part for part in (config.transport, config.host) if part))


def _folders() -> Iterator[Finding]:
    from edgecompress import paths

    for name in paths.DEFAULTS:
        path = paths.expand("${" + name + "}")
        if path.is_dir():
            yield Finding(name, "ok", str(path))
        else:
            yield Finding(
                name, "absent", f"no folder {path}", f"export {name}=/path/to/folder (only jobs that name it need it)"
            )


def _disk() -> Finding:
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    text = f"{free_gib:.1f} GiB free here"
    if free_gib < 0.5:
        return Finding("disk", "broken", text, "a run of ten recipes of a small model writes about 1 GiB")
    return Finding("disk", "ok", text)
