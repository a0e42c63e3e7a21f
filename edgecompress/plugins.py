"""Plug-ins: four kinds, one road. ``find(kind, name)`` loads one entry point when it is asked for.

A built-in and a stranger's plug-in differ in nothing: both are entry points of the group ``edgecompress.<kind>``.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from edgecompress.errors import PluginNotFound

KINDS = ("techniques", "exporters", "runtimes", "devices", "tasks")


@cache
def _entry_points(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"edgecompress.{kind}")}


def names(kind: str) -> list[str]:
    """Names of all installed plug-ins of ``kind`` (one of ``KINDS``), sorted; nothing is imported."""
    return sorted(_entry_points(kind))


def find(kind: str, name: str) -> Any:
    """The plug-in ``name`` of ``kind``, imported now.

    Raises:
        PluginNotFound: no such name; the hint offers the nearest one, or lists all.
    """
    found = _entry_points(kind)
    if name not in found:
        raise PluginNotFound(f"no {kind.rstrip('s')} is called {name!r}", hint=nearest(name, sorted(found)))
    return found[name].load()


def nearest(wrong: str, right: list[str]) -> str:
    """A hint for a misspelt name: the nearest right one, or all of them."""
    close = difflib.get_close_matches(wrong, right, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"there are: {', '.join(right)}" if right else "there are none"
