"""The command line: the only place that prints or exits. Commands import what they need when they are called.

``main`` is the one door: it turns an EdgeCompressError into ``error:`` and ``hint:`` lines and an exit status of 2.
A bug shows its traceback.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Sequence

from edgecompress.errors import EdgeCompressError

INTERRUPTED = 130
NOT_STARTED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit status: 0 well, 1 partly, 2 not at all, 130 interrupted."""
    from edgecompress.cli.app import command

    # What these two say at import is about libraries that are there and not used (torchao's kernels for GPUs).
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        status = command().main(args=given, prog_name="edgecompress", standalone_mode=False)
    except EdgeCompressError as error:
        return _say(error.message, error.hint)
    except ModuleNotFoundError as error:
        extra = _extra_of((error.name or "").split(".")[0])
        if extra is None:
            raise
        if not extra:
            return _say(f"this installation is not whole: {error.name} is not installed", "pip install edgecompress")
        return _say(
            f"this needs the {extra} extra ({error.name} is not installed)", f"pip install 'edgecompress[{extra}]'"
        )
    except OSError as error:
        return _of_the_system(error)
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:  # typer's own kinds moved between its versions; what they can do did not
        if type(error).__name__ == "Abort":
            return _interrupted()
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _usage(error)
        raise
    if status == INTERRUPTED:  # typer answers so to a KeyboardInterrupt
        return _interrupted()
    return status if isinstance(status, int) else 0


def _extra_of(module: str) -> str | None:
    """The extra that brings a module: empty for what every installation has, None for what is none of ours."""
    from edgecompress.doctor import packages

    return next((extra for extra, names in packages().items() if module in names.values()), None)


def _say(message: str, hint: str) -> int:
    from edgecompress.cli.say import note

    note(f"error: {message}")
    if hint:
        note(f"hint:  {hint}")
    return NOT_STARTED


def _usage(error: Exception) -> int:
    """A command line that typer cannot take: no such command or option, a value missing."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
        print(context.get_help())
        return NOT_STARTED
    path = context.command_path if context is not None else "edgecompress"
    return _say(error.format_message().rstrip("."), f"{path} --help")  # type: ignore[attr-defined]


def _of_the_system(error: OSError) -> int:
    """A disk that is full, a folder that may not be written: the user's to mend. Anything else is a bug of ours."""
    hints = {
        errno.ENOSPC: "free some space and run the same command again: what was finished is kept",
        errno.EFBIG: "raise the limit on the size of files (ulimit -f): what was finished is kept",
        errno.EDQUOT: "free some of your quota and run the same command again: what was finished is kept",
        errno.EACCES: "check who may read and write there",
        errno.EPERM: "check who may read and write there",
        errno.EROFS: "choose an output folder that can be written",
        errno.ENOTDIR: "a part of that path is a file",
        errno.EISDIR: "give a file, not a folder",
        errno.ENAMETOOLONG: "choose a shorter name",
    }
    if error.errno not in hints:
        raise error
    where = f"{error.filename}: " if error.filename else ""
    return _say(f"{where}{os.strerror(error.errno)}", hints[error.errno])


def _interrupted() -> int:
    print("interrupted; finished cells are kept: run the same command again to go on", file=sys.stderr)
    return INTERRUPTED
