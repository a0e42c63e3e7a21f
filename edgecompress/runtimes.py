"""What the host knows of runtimes: their names, and where the function is that the agent will call on the device.

A runtime is one function (its contract is ``bench_remote.runtimes``), found by the entry-point group
``edgecompress.runtimes``. A stranger's function may live in any module of one file that imports, at its top, nothing
but the standard library: the file travels inside the agent.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path

from edgecompress import plugins
from edgecompress.errors import RecipeError

__all__ = ["Runtime", "find", "names"]

AGENT_PACKAGE = "bench_remote"


@dataclass(frozen=True)
class Runtime:
    """A runtime as the agent is told of it. ``source`` is the file to ship, None when the agent has it already."""

    name: str
    module: str
    function: str
    help: str
    source: Path | None = None


def find(name: str) -> Runtime:
    """A runtime by name.

    Raises:
        PluginNotFound: no such runtime; the hint offers the nearest name.
        RecipeError: its function has no source file that could be shipped.
    """
    function = plugins.find("runtimes", name)
    module = str(function.__module__)
    help_text = (inspect.getdoc(function) or "").split("\n")[0]
    if module.split(".")[0] == AGENT_PACKAGE:
        return Runtime(name, module, function.__name__, help_text)
    source = inspect.getsourcefile(function)
    if source is None:
        raise RecipeError(f"runtime {name!r} has no source file to ship", hint="put its function into a plain module")
    return Runtime(name, module.replace(".", "_"), function.__name__, help_text, Path(source))


def names() -> list[str]:
    """Names of all runtimes."""
    return plugins.names("runtimes")
