"""What is promised to an installer: every dependency is pinned, and every plug-in that is named is there."""

from __future__ import annotations

import re
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


def test_the_changelog_knows_this_version() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
