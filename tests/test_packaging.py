"""What is promised to an installer: every dependency is pinned, and every plug-in that is named is there."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from edgecompress import __version__, plugins

ROOT = Path(__file__).parent.parent
NOT_PINNED = {"edgecompress", "tflite-runtime"}  # ourselves, and what only an older Python than ours may install


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;~! ]", name)[0]).lower()


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize(
    ("file", "extras"), [("constraints.txt", None), ("constraints-transformers4.txt", ("torch", "onnx", "dev"))]
)
def test_every_dependency_has_one_exact_version(
    project: dict[str, Any], file: str, extras: tuple[str, ...] | None
) -> None:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []
    optional = project["project"]["optional-dependencies"]
    wanted = project["project"]["dependencies"] + [one for extra in extras or optional for one in optional[extra]]
    missing = {canonical(name) for name in wanted} - {canonical(line) for line in lines} - NOT_PINNED
    assert missing == set()


def test_the_extras_that_are_promised_are_there(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    assert {"torch", "onnx", "openvino", "tflite", "report", "dev", "all"} <= set(extras)
    assert set(re.findall(r"\[(.*)\]", extras["all"][0])[0].split(",")) == set(extras) - {"all"}


def test_what_works_without_extras_asks_for_no_torch(project: dict[str, Any]) -> None:
    assert {"torch", "transformers", "onnx"} & {canonical(one) for one in project["project"]["dependencies"]} == set()


def every_plugin() -> list[tuple[str, str]]:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    return [(group.removeprefix("edgecompress."), name) for group, names in groups.items() for name in names]


@pytest.mark.parametrize(("kind", "name"), every_plugin())
def test_every_plugin_that_is_named_can_be_loaded_and_explains_itself(kind: str, name: str) -> None:
    found = plugins.find(kind, name)
    assert found.__doc__
    assert getattr(found, "kind", name) == name


# A Python for make: what it answers to -c is its first word; `-m venv` makes a folder, and fails if that is asked.
FAKE = """#!/bin/sh
case "$1" in
-c) exit {answer} ;;
esac
if [ "$2" = venv ]; then mkdir -p "$3/bin"; {venv}; cp "$0" "$3/bin/python"; fi
echo "$@" >> {log}
"""


def make(place: Path, *, answer: int = 0, venv: str = "true") -> subprocess.CompletedProcess[str]:
    """``make demo`` in a folder with our Makefile alone, by a Python that is not one."""
    for name in ("Makefile", "constraints.txt", "constraints-transformers4.txt", "pyproject.toml"):
        (place / name).write_text((ROOT / name).read_text())
    python = place / "python"
    python.write_text(FAKE.format(answer=answer, venv=venv, log=place / "log"))
    python.chmod(0o755)
    line = ["make", f"PYTHON={python}", f".venv/installed-demo-{key_of(place)}"]
    return subprocess.run(line, cwd=place, capture_output=True, text=True, timeout=60, check=False)


def key_of(place: Path) -> str:
    text = (place / "constraints.txt").read_bytes() + (place / "pyproject.toml").read_bytes()
    return hashlib.sha256(text).hexdigest()[:12]


def test_make_with_too_old_a_python_says_so_and_makes_nothing(tmp_path: Path) -> None:
    ended = make(tmp_path, answer=1)
    assert ended.returncode != 0
    assert "error: Python 3.11 or later is needed" in ended.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_leaves_no_half_environment_when_there_is_no_venv_module(tmp_path: Path) -> None:
    ended = make(tmp_path, venv="exit 1")
    assert ended.returncode != 0
    assert "apt-get install python3-venv" in ended.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("left", ["exit 1", None])
def test_make_remakes_an_environment_that_cannot_be_used(tmp_path: Path, left: str | None) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/old").touch()
    if left is not None:  # its Python is too old, or has no pip
        (tmp_path / ".venv/bin/python").write_text(f"#!/bin/sh\n{left}\n")
        (tmp_path / ".venv/bin/python").chmod(0o755)
    ended = make(tmp_path)
    assert (ended.returncode, ended.stderr.count("error")) == (0, 0)
    assert not (tmp_path / ".venv/old").exists()
    told = (tmp_path / "log").read_text().splitlines()
    assert [line.split()[:2] for line in told] == [["-m", "venv"], ["-m", "pip"]]


def test_the_changelog_knows_this_version() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
