"""One repetition in its own process: load, golden check, warm up, time, tell. Or one runtime's import, for a probe."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
import traceback
from typing import Any, Callable

from bench_remote import SAMPLES_PER_EVENT, facts, store, tensors

Tell = Callable[..., None]
MAX_SAMPLES = 20000  # of one repetition: what runs faster than 0.1 ms needs no more
PR_SET_PDEATHSIG = 1


class Failure(Exception):
    """The job ran and went wrong: ``kind`` is one of the protocol's words."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message


def main() -> None:
    """Read ``{"job", "folder", "repetition"}`` from standard input and tell events on what was standard output."""
    tell = _private_output()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # outlives nobody: not even a supervisor killed by OOM
    order = json.loads(sys.stdin.buffer.readline().decode("utf-8"))
    job = order["job"]
    try:
        if job["action"] == "probe":
            _probe(order["runtime"], job["site"], tell)
        else:
            _measure(job, order["folder"], lambda event, **more: tell(event, repetition=order["repetition"], **more))
    except store.Refusal as why:
        tell("refused", need=why.need, message=why.message, **why.more)
    except tensors.BadInput as why:
        tell("refused", need="job", message=str(why))
    except Failure as why:
        tell("failed", kind=why.kind, message=why.message)
    except MemoryError:
        tell("failed", kind="memory", message="out of memory")
    except Exception as why:
        traceback.print_exc()
        tell("failed", kind="error", message=f"{type(why).__name__}: {why}")


def _private_output() -> Tell:
    """Keep standard output for events: whatever a runtime prints there goes to standard error instead."""
    channel = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def tell(event: str, **more: Any) -> None:
        channel.write(json.dumps(dict(more, event=event)) + "\n")
        channel.flush()

    return tell


def _load(runtime: dict[str, str], site: str, path: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if site:
        sys.path.insert(0, os.path.expanduser(site))
    try:
        function = getattr(importlib.import_module(runtime["module"]), runtime["function"])
        import numpy  # noqa: F401 - every runtime takes and gives its arrays

        return function(path, options)
    except ImportError as why:
        raise store.Refusal("runtime", f"{sys.executable}: {why}", name=runtime["name"]) from why


def _probe(runtime: dict[str, str], site: str, tell: Tell) -> None:
    try:
        _, about = _load(runtime, site, "", {})
        tell("runtime", name=runtime["name"], version=about["version"])
    except store.Refusal as why:
        tell("runtime", name=runtime["name"], absent=why.message)


def _measure(job: dict[str, Any], folder: str, tell: Tell) -> None:
    if job["affinity"]:
        try:
            os.sched_setaffinity(0, job["affinity"])
        except (OSError, ValueError) as why:
            raise store.Refusal("affinity", "cannot run on cores {}: {}".format(job["affinity"], why)) from why
    store.verify(folder, job["files"], job["cache"])  # it also warms the page cache: load_s is never a cold start
    options = dict(job.get("options", {}), threads=job["threads"])
    started = time.perf_counter()
    run, about = _load(job["runtime"], job["site"], os.path.join(folder, job["model"]), options)
    load_s = time.perf_counter() - started - about["import_s"]
    rss = facts.memory_bytes("VmRSS")
    tell("loaded", load_s=max(load_s, 0.0), rss_bytes=rss, **about)
    first_s = _golden(job["golden"], folder, run, about, tell) if job["golden"] else None
    source, feeds, heard = _feeds(job, folder, about)
    tensors.check(about["inputs"], feeds)
    if first_s is None:
        first_s = _timed(run, feeds) / 1e9
    described: dict[str, Any] = {"source": source, "shapes": {name: list(array.shape) for name, array in feeds.items()}}
    if heard is not None:
        described["audio_samples"] = int(feeds[heard].shape[-1])
    warmup = _repeat(run, feeds, 1, job["warmup_s"], max(job["warmup_s"], job["max_seconds"]))
    tell("warmup", first_inference_s=first_s, ns=warmup, input=described)
    samples = _repeat(run, feeds, job["min_samples"], job["min_seconds"], job["max_seconds"])
    for start in range(0, len(samples), SAMPLES_PER_EVENT):
        tell("samples", ns=samples[start : start + SAMPLES_PER_EVENT])
    tell("memory", peak_rss_bytes=facts.memory_bytes("VmHWM"))


def _golden(golden: dict[str, Any], folder: str, run: Any, about: dict[str, Any], tell: Tell) -> float:
    """Compare with the reference before anything is timed: a fast wrong kernel is a failure, not a fast row.

    Returns the seconds of this first inference.
    """
    feeds = tensors.read(folder, golden["inputs"])
    tensors.check(about["inputs"], feeds)
    started = time.perf_counter()
    answers = run(feeds)
    first_s = time.perf_counter() - started
    limits = golden["tolerance"]
    checks = []
    for name, reference in tensors.read(folder, golden["outputs"]).items():
        if name not in answers:
            raise Failure("golden", f"the model has no output {name!r}")
        checks.append(
            dict(tensors.compare(answers[name], reference, limits["relative"], limits["cosine"]), output=name)
        )
    tell("golden", first_inference_s=first_s, checks=checks)
    for one in checks:
        if not one["passed"]:
            message = "output %r is not what it should be: relative error %.3g (limit %.3g), cosine %.6f (limit %.6f)"
            values = (one["output"], one["relative"], limits["relative"], one["cosine"], limits["cosine"])
            raise Failure("golden", message % values)
    return first_s


def _feeds(job: dict[str, Any], folder: str, about: dict[str, Any]) -> tuple[str, dict[str, Any], str | None]:
    """What it is, the arrays by input, and the name of that which is audio, where one is known to be."""
    if job["inputs"]:
        return "given", tensors.fit(tensors.read(folder, job["inputs"]), job["lengths"], job.get("filled", {})), None
    if job["golden"]:
        source = "golden, fitted" if job["lengths"] else "golden"
        golden = tensors.read(folder, job["golden"]["inputs"])
        return source, tensors.fit(golden, job["lengths"], job.get("filled", {})), None
    if job.get("audio"):
        samples = tensors.read(folder, {"audio": job["audio"]})["audio"]
        feeds, name = tensors.hear(about["inputs"], job["dims"], samples)
        return "audio", feeds, name
    return "random", tensors.make(about["inputs"], job["dims"]), None


def _timed(run: Any, feeds: dict[str, Any]) -> int:
    started = time.perf_counter_ns()
    run(feeds)
    return time.perf_counter_ns() - started


def _repeat(run: Any, feeds: dict[str, Any], least: int, min_seconds: float, max_seconds: float) -> list[int]:
    """Nanoseconds of each run, until there are ``least`` of them over ``min_seconds``, or ``max_seconds`` are over."""
    samples: list[int] = []
    started = time.perf_counter()
    while len(samples) < MAX_SAMPLES:
        samples.append(_timed(run, feeds))
        passed = time.perf_counter() - started
        if (len(samples) >= least and passed >= min_seconds) or passed >= max_seconds:
            break
    return samples
