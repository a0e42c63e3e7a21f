"""One process: a repetition (clock, loads, golden check, warm-up, samples, clock), a pass of its own, or a probe."""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
from typing import Any, Callable

from bench_remote import SAMPLES_PER_EVENT, clock, extras, facts, paging, phases, store, tensors

Tell = Callable[..., None]
PASSES = {"memory_pass": extras.memory_pass, "operators": extras.operators}
PR_SET_PDEATHSIG = 1


class Failure(Exception):
    """The job ran and went wrong: ``kind`` is one of the protocol's words."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message


def main() -> None:
    """Read ``{"job", "folder", "repetition" or "pass"}`` from standard input; tell events on what was standard output."""
    tell = _private_output()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # outlives nobody: not even a supervisor killed by OOM
    order = json.loads(sys.stdin.buffer.readline().decode("utf-8"))
    job = order["job"]
    try:
        if job["action"] == "probe":
            _probe(order["runtime"], job["site"], tell)
        elif "pass" in order:
            _pass(order["pass"], job, order["folder"], tell)
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
    _pin(job["affinity"])
    store.verify(folder, job["files"], job["cache"])
    before = clock.measure(job["affinity"])
    tell("clock", when="before", loops=before)
    run, about = _load_twice(job, folder, tell)
    _run(job, folder, run, about, tell)
    peak = facts.memory_bytes("VmHWM")
    del run
    gc.collect()  # a pool of threads that still spins would slow the loop down
    tell("clock", when="after", loops=clock.measure(job["affinity"], before))
    tell("memory", peak_rss_bytes=peak)


def _run(job: dict[str, Any], folder: str, run: Any, about: dict[str, Any], tell: Tell) -> None:
    """Golden check, warm-up and samples."""
    first_s = _golden(job["golden"], folder, run, about, tell) if job["golden"] else None
    source, feeds, heard = _feeds(job, folder, about)
    if job.get("scenario") == "offline":
        feeds = tensors.batched(about["inputs"], feeds, job["batch"])
    tensors.check(about["inputs"], feeds)
    if first_s is None:
        first_s = phases.timed(lambda: run(feeds)) / 1e9
    described: dict[str, Any] = {"source": source, "shapes": {name: list(array.shape) for name, array in feeds.items()}}
    if heard is not None:
        described["audio_samples"] = int(feeds[heard].shape[-1])
    samples, ended = phases.warm_up(lambda: run(feeds), job["warmup_s"], job["max_seconds"])
    tell("warmup", first_inference_s=first_s, ns=samples, ended=ended, input=described)
    _steady(job, lambda: run(feeds), tell)


def _pin(affinity: list[int]) -> None:
    if affinity:
        try:
            os.sched_setaffinity(0, affinity)
        except (OSError, ValueError) as why:
            raise store.Refusal("affinity", f"cannot run on cores {affinity}: {why}") from why


def _load_twice(job: dict[str, Any], folder: str, tell: Tell) -> tuple[Any, dict[str, Any]]:
    """The model loaded from what the disk has, dropped, and loaded again from warm pages: the second one is kept."""
    path = os.path.join(folder, job["model"])
    options = dict(job.get("options", {}), threads=job["threads"])
    started = time.perf_counter()
    _load(job["runtime"], job["site"], "", options)  # the import, numpy's with it, is no load
    import_s = time.perf_counter() - started
    page_cache = paging.evict(os.path.join(folder, name) for name in _of_the_model(job))
    seconds = []
    run: Any = None
    about: Any = None
    for _ in range(2):
        run = about = None
        gc.collect()
        started = time.perf_counter()
        run, about = _load(job["runtime"], job["site"], path, options)
        seconds.append(max(time.perf_counter() - started - about["import_s"], 0.0))
    told = dict(about, first_load_s=seconds[0], load_s=seconds[1], import_s=import_s, page_cache=page_cache)
    tell("loaded", rss_bytes=facts.memory_bytes("VmRSS"), **told)
    return run, about


def _of_the_model(job: dict[str, Any]) -> list[str]:
    """The job's files that the runtime reads: all but inputs and reference outputs."""
    golden = job["golden"] or {"inputs": {}, "outputs": {}}
    ours = {*golden["inputs"].values(), *golden["outputs"].values(), *(job["inputs"] or {}).values(), job.get("audio")}
    return [name for name in job["files"] if name not in ours]


def _steady(job: dict[str, Any], run: Callable[[], Any], tell: Tell) -> None:
    """The timed phase by the job's scenario, told with which bound ended it."""
    bounds = (job["min_samples"], job["min_seconds"], job["max_seconds"])
    watch = phases.Watch()
    if job.get("scenario") == "paced_stream":
        arrivals, ended = phases.paced(run, job["hop_s"], *bounds)
        seen = watch.told()
        few = SAMPLES_PER_EVENT // len(arrivals)
        for start in range(0, len(arrivals["end_ns"]), few):
            tell("arrivals", **{name: values[start : start + few] for name, values in arrivals.items()})
    else:
        samples, ended = phases.stream(run, *bounds)
        seen = watch.told()
        for start in range(0, len(samples), SAMPLES_PER_EVENT):
            tell("samples", ns=samples[start : start + SAMPLES_PER_EVENT])
    tell("steady", ended=ended, **seen)


def _pass(name: str, job: dict[str, Any], folder: str, tell: Tell) -> None:
    """A pass of its own; whatever goes wrong in it is its absence, and no failure of the job."""
    try:
        _pin(job["affinity"])
        store.verify(folder, job["files"], job["cache"])
        path = os.path.join(folder, job["model"])
        PASSES[name](job, path, _load, lambda about: _feeds(job, folder, about)[1], tell)
    except store.Refusal as why:
        tell(name, absent=why.message)
    except Exception as why:
        tell(name, absent=f"{type(why).__name__}: {why}"[:500])


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
