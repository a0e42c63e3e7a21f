"""Paths in jobs: ``${NAME}`` is an environment variable, and the two folders of data have defaults."""

from __future__ import annotations

import os
import re
from pathlib import Path

from edgecompress.errors import RecipeError

# Relative to the current folder: a clone beside a folder of shared data works without setting anything.
DEFAULTS = {"EDGECOMPRESS_MODELS": "../shared/models", "EDGECOMPRESS_SPEECH": "../shared/speech"}
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def expand(text: str) -> Path:
    """A path with every ``${NAME}`` replaced and a leading ``~`` expanded; it need not exist.

    Raises:
        RecipeError: a variable that is not set and has no default.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        found = os.environ.get(name) or DEFAULTS.get(name)
        if not found:
            raise RecipeError(
                f"{text}: the environment variable {name} is not set", hint=f"export {name}=/path/to/folder"
            )
        return found

    return Path(_VARIABLE.sub(value, text)).expanduser()


def existing(text: str, what: str) -> Path:
    """The path of :func:`expand`, which must exist. ``what`` names it in the error: "model folder", "audio folder".

    Raises:
        RecipeError: nothing is there; the hint says which variable to set.
    """
    path = expand(text)
    if path.exists():
        return path
    names = _VARIABLE.findall(text)
    hint = f"set {names[0]} to the folder that has it (now {_now(names[0])})" if names else "check the path"
    raise RecipeError(f"no such {what}: {path}", hint=hint)


def _now(name: str) -> str:
    if os.environ.get(name):
        return repr(os.environ[name])
    return f"not set, so {DEFAULTS[name]!r} is looked at" if name in DEFAULTS else "not set"
