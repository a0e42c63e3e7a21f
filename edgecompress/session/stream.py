"""Follow one job on a device: start the agent, read events to the end, turn every bad ending into its error."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from edgecompress.devices import Device, Process
from edgecompress.devices.objects import clean
from edgecompress.errors import (
    AgentDied,
    AgentFailed,
    Busy,
    DeviceError,
    DeviceFull,
    DeviceTimeout,
    Refused,
    RuntimeMissing,
    Unreachable,
)
from edgecompress.phases import Arrivals, MemoryPass, Operators, Steady
from edgecompress.records import GoldenCheck, Repetition
from edgecompress.session import events
from edgecompress.session.link import Link
from edgecompress.traces import Telemetry

# The agent ends itself at its deadline; only when it does not (stopped, swapped out) does the host step in.
GRACE_S = 10.0


def follow(
    device: Device,
    agent_path: str,
    job: dict[str, Any],
    timeout_s: float,
    progress: Callable[[str], None] | None = None,
) -> Iterator[events.AnyEvent]:
    """Events of a job until ``done``. When the caller stops listening, the job is ended.

    A measurement is detached: it goes on while the connection is lost, and is taken up where it was.

    Raises:
        DeviceTimeout, AgentDied, AgentFailed, Refused, RuntimeMissing, Busy, DeviceFull, Unreachable
    """
    road = _attached(device, agent_path, job, timeout_s)
    if job["action"] == "measure":
        road = _detached(device, agent_path, job, timeout_s, progress)
    yield from road


def _detached(
    device: Device, agent_path: str, job: dict[str, Any], timeout_s: float, progress: Callable[[str], None] | None
) -> Iterator[events.AnyEvent]:
    until = time.monotonic() + timeout_s + GRACE_S
    link = Link(device, agent_path, job, until, progress)
    try:
        for event in link.follow():
            if isinstance(event, events.Hello):
                _same_protocol(event, job)
            if isinstance(event, events.Refused | events.Failed):
                link.fetched()
                raise _told(event, device, timeout_s, link)
            yield event
            if isinstance(event, events.Done):
                link.fetched()
                return
    except Unreachable:
        link.leave()
        raise
    except TimeoutError:
        link.cancel()
        raise _late(timeout_s, f"last event {link.last!r}") from None
    except BaseException:
        link.cancel()
        raise


def _told(event: events.Refused | events.Failed, device: Device, timeout_s: float, link: Link) -> DeviceError:
    if isinstance(event, events.Refused):
        return link.died(event.message) if event.need == "lost" else _refused(event, device)
    return link.died(event.message) if event.kind == "lost" else _failed(event, timeout_s)


def _attached(device: Device, agent_path: str, job: dict[str, Any], timeout_s: float) -> Iterator[events.AnyEvent]:
    """A job that lives as long as its connection."""
    process = device.transport.start([device.config.python, agent_path])
    last = "nothing"
    until = time.monotonic() + timeout_s + GRACE_S
    try:
        try:
            process.send(json.dumps(job).encode() + b"\n")
        except OSError as cause:
            raise _died(process, last) from cause
        while True:
            line = _next(process, until, timeout_s, last)
            if last == "nothing" and not events.is_event(line):
                continue
            event = events.parse(line)
            last = event.event
            if isinstance(event, events.Hello):
                _same_protocol(event, job)
                process.group = event.pgid
            if isinstance(event, events.Refused):
                raise _refused(event, device)
            if isinstance(event, events.Failed):
                raise _failed(event, timeout_s)
            yield event
            if isinstance(event, events.Done):
                return
    finally:
        process.kill()


def _next(process: Process, until: float, timeout_s: float, last: str) -> bytes:
    try:
        line = process.line(max(until - time.monotonic(), 0.001))
    except TimeoutError:
        raise _late(timeout_s, f"last event {last!r}") from None
    except (OSError, EOFError) as cause:
        raise Unreachable(
            f"the connection ended after {last!r}: {cause}", hint="the job was ended; run again"
        ) from cause
    if line is None:
        raise _died(process, last)
    return line


def _same_protocol(hello: events.Hello, job: dict[str, Any]) -> None:
    if hello.protocol != job["protocol"]:
        raise AgentFailed(f"the agent speaks protocol {hello.protocol}, wanted {job['protocol']}")


def _died(process: Process, last: str) -> AgentDied:
    status = process.wait()
    said = clean(process.stderr.decode("utf-8", "replace")).strip()[-500:]
    text = f"the agent's stream just stopped: exit status {status} after {last!r}" + (
        f"; it said: {said}" if said else ""
    )
    return AgentDied(text, hint="out of memory, a reboot or a lost connection look like this; run again to resume")


def _late(timeout_s: float, more: str) -> DeviceTimeout:
    text = f"the job ran past its {timeout_s:g} s and its process group was ended ({more})"
    return DeviceTimeout(text, hint="raise timeout_s, or measure fewer samples")


def _refused(event: events.Refused, device: Device) -> DeviceError:
    if event.need == "runtime":
        wanted = event.name or "the runtime"
        hint = f"install it there: {device.config.python} -m pip install {wanted}; or set `site` in the device's file"
        return RuntimeMissing(f"{device.name} cannot import {wanted}: {event.message}", hint=hint)
    if event.need == "lock":
        return Busy(f"{device.name}: {event.message}", hint="wait for it, or look who is logged in there")
    if event.need == "disk":
        return DeviceFull(f"{device.name}: {event.message}", hint="free some space there")
    if event.need == "job":
        hint = "give what the model takes: sizes (--dim), arrays (--inputs) or a recording (--audio)"
        return Refused(f"{device.name}: {event.message}", hint=hint)
    hint = "run again; if it stays, look at the device's file and the plan"
    return Refused(f"{device.name}: {event.need}: {event.message}", hint=hint)


def _failed(event: events.Failed, timeout_s: float) -> DeviceError:
    if event.kind == "deadline":
        return _late(timeout_s, "by the agent itself")
    hints = {
        "golden": "this runtime computes something else on this device; nothing was timed",
        "signal": "the runtime crashed or ran out of memory; try an older version of it, or a smaller model",
        "memory": "the model is too large for this device",
        "orphan": "the connection was away for longer than the job waits; run it again",
        "lease": "the device stood still for a while (suspended?); run again",
        "ended": "somebody or something ended it there; run again",
    }
    what = event.message if event.kind == "error" else f"{event.kind}: {event.message}"
    return AgentFailed(what, hint=hints.get(event.kind, "the message is the runtime's own"))


MAX_OPERATORS = 20_000


class Collector:
    """Puts a job's events together into repetitions, and keeps what belongs to the whole job."""

    def __init__(self, progress: Callable[[str], None] | None = None) -> None:
        self.identity: dict[str, Any] = {}
        self.version = ""
        self.options: dict[str, Any] = {}
        self.input: dict[str, Any] = {}
        self.memory_pass: MemoryPass | None = None
        self.operators: Operators | None = None
        self._progress = progress
        self._parts: dict[int, dict[str, Any]] = {}

    def take(self, event: events.AnyEvent) -> None:
        """Take one event."""
        part = self._parts.setdefault(event.repetition, {"samples_ns": []})
        match event:
            case events.Hello():
                self.identity = event.identity
            case events.Facts():
                part[f"facts_{event.when}"] = event.facts
            case events.Clock():
                part[f"clock_{event.when}"] = event.loops
            case events.Loaded():
                self.version, self.options = event.version, event.options
                part |= {"load_s": event.load_s, "rss_after_load_bytes": event.rss_bytes}
                part |= {"first_load_s": event.first_load_s, "page_cache": event.page_cache}
            case events.Golden():
                part["golden"] = [GoldenCheck(**check.model_dump()) for check in event.checks]
            case events.Warmup():
                part |= {"first_inference_s": event.first_inference_s, "warmup_ns": event.ns}
                part["warmup_ended"] = event.ended
                self.input = event.input.model_dump(exclude_none=True)
            case events.Samples():
                part["samples_ns"] += event.ns
            case events.Arrived():
                told = part.setdefault("arrivals", {name: [] for name in Arrivals.model_fields})
                for name, values in told.items():
                    values += getattr(event, name)
                part["samples_ns"] += event.latencies_ns()
            case events.SteadyEnded():
                part["steady"] = Steady(**{name: getattr(event, name) for name in Steady.model_fields})
            case events.TelemetryTold():
                rows = Telemetry(**{name: getattr(event, name) for name in Telemetry.model_fields})
                part.setdefault("telemetry", []).append(rows)
            case events.MemoryTold():
                self.memory_pass = MemoryPass(**{name: getattr(event, name) for name in MemoryPass.model_fields})
            case events.OperatorsTold():
                self._take_operators(event)
            case events.Memory():
                part["peak_rss_bytes"] = event.peak_rss_bytes
        if self._progress and isinstance(event, events.Waiting):
            self._progress(f"waiting for {event.holder}, {event.before} before you")
        if self._progress and event.event in ("loaded", "golden", "warmup", "memory"):
            self._progress(f"repetition {event.repetition + 1}: {event.event}")
        elif self._progress and event.event in ("memory_pass", "operators"):
            self._progress(event.event.replace("_", " "))

    def _take_operators(self, event: events.OperatorsTold) -> None:
        before = self.operators or Operators()
        told = [*before.operators, *event.operators]
        if len(told) > MAX_OPERATORS:
            raise AgentFailed(f"the device told more than {MAX_OPERATORS} operators", hint="is the device trustworthy?")
        self.operators = Operators(operators=told, left_out=event.left_out, absent=event.absent)

    def repetitions(self, wanted: int) -> list[Repetition]:
        """The repetitions, whole and in order; AgentFailed if the agent said ``done`` without telling them all."""
        needed = {"load_s", "first_inference_s", "warmup_ns", "peak_rss_bytes", "facts_before", "facts_after"}
        for number in range(wanted):
            part = self._parts.get(number, {})
            missing = sorted(needed - set(part)) + ([] if part.get("samples_ns") else ["samples_ns"])
            if missing:
                raise AgentFailed(f"the agent was done but repetition {number + 1} has no {', '.join(missing)}")
        return [Repetition(**self._parts[number]) for number in range(wanted)]
