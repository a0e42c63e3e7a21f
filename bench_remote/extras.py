"""Passes of their own, each in a fresh process after the timed ones, since looking disturbs: memory, and operators.

Nothing that goes wrong here takes a measurement with it: the pass then tells why it is absent.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any, Callable, Dict, Tuple

from bench_remote import OPERATORS_PER_EVENT, tensors

Loader = Callable[[Dict[str, str], str, str, Dict[str, Any]], Tuple[Any, Dict[str, Any]]]
Tell = Callable[..., None]

RUNS = 5
MAX_OPERATORS = 10_000
NAME = 200  # characters of an operator's name
_STATUS = {"VmHWM": "peak_rss_bytes", "VmRSS": "rss_bytes", "RssAnon": "anonymous_bytes", "RssFile": "file_bytes"}
_ROLLUP = {"Pss": "pss_bytes", "Pss_Anon": "pss_anonymous_bytes", "Pss_File": "pss_file_bytes", "Swap": "swap_bytes"}


def memory(root: str = "/") -> dict[str, int]:
    """Memory of this process in bytes; what this kernel does not tell is left out.

    Anonymous pages are the process's own; pages of mapped files can be dropped and read again. PSS counts a page that
    is shared among n processes as its n-th part.
    """
    told: dict[str, int] = {}
    for path, fields in (("proc/self/status", _STATUS), ("proc/self/smaps_rollup", _ROLLUP)):
        try:
            with open(os.path.join(root, path), encoding="ascii", errors="replace") as stream:
                found = dict(re.findall(r"^(\w+):\s+(\d+) kB", stream.read(1 << 16), re.M))
        except OSError:
            continue
        told.update({name: int(found[field]) * 1024 for field, name in fields.items() if field in found})
    return told


def memory_pass(job: dict[str, Any], path: str, load: Loader, feed: Callable[[Any], Any], tell: Tell) -> None:
    """Memory of a process that only imported the runtime, then after loading the model, then after some runs of it."""
    options = dict(job.get("options", {}), threads=job["threads"])
    load(job["runtime"], job["site"], "", options)
    baseline = memory()
    run, about = load(job["runtime"], job["site"], path, options)
    loaded = memory()
    feeds = feed(about)
    tensors.check(about["inputs"], feeds)
    runs = _some_runs(run, feeds, job["max_seconds"])
    tell("memory_pass", baseline=baseline, loaded=loaded, steady=memory(), runs=runs)


def operators(job: dict[str, Any], path: str, load: Loader, feed: Callable[[Any], Any], tell: Tell) -> None:
    """Nanoseconds of each operator in each of some runs, where the runtime tells; the first run is left out."""
    scratch = os.path.join(os.path.dirname(path), "profile")
    options = dict(job.get("options", {}), threads=job["threads"], profile=scratch)
    run, about = load(job["runtime"], job["site"], path, options)
    told = about.pop("operators", None)
    if told is None:
        why = about.get("operators_absent", "this runtime has no profile of its operators")
        tell("operators", absent=str(why)[:NAME])
        return
    feeds = feed(about)
    tensors.check(about["inputs"], feeds)
    runs = _some_runs(run, feeds, job["max_seconds"])
    rows = by_operator(told()[1:] if runs > 1 else told())
    for start in range(0, max(1, min(len(rows), MAX_OPERATORS)), OPERATORS_PER_EVENT):
        part = rows[start : min(start + OPERATORS_PER_EVENT, MAX_OPERATORS)]
        tell("operators", operators=part, left_out=max(0, len(rows) - MAX_OPERATORS))


def _some_runs(run: Any, feeds: dict[str, Any], max_seconds: float) -> int:
    """One run, and ``RUNS`` more as long as there is time: how many it were."""
    started = time.monotonic()
    run(feeds)
    count = 1
    while count <= RUNS and time.monotonic() - started < max_seconds:
        run(feeds)
        count += 1
    return count


def by_operator(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """``[{"op", "name", "ns": [one of each run]}]`` in the order in which they first ran.

    ``runs`` holds ``[{"op", "name", "ns"}]`` of each run; what ran several times in one (in a loop) is added up.
    """
    found: dict[tuple[str, str], list[int]] = {}
    for number, rows in enumerate(runs):
        for row in rows:
            key = (str(row["op"])[:NAME], str(row["name"])[:NAME])
            found.setdefault(key, [0] * len(runs))[number] += int(row["ns"])
    return [{"op": op, "name": name, "ns": ns} for (op, name), ns in found.items()]
