"""Run one function of ``bench_remote`` on a device and read its answers; nothing is stored there for it.

The agent's modules travel over standard input, after a loader. Standard input then stays open: when it ends, or at the
deadline, the program ends. An answer is one marked JSON line; it is limited here in number, length and nesting, and
whoever asked checks its fields.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from edgecompress.devices.objects import BOOT, MARK, clean
from edgecompress.errors import AgentDied, AgentFailed, Busy, DeviceError, DeviceFull, DeviceTimeout, Refused

if TYPE_CHECKING:
    from edgecompress.devices import Device
    from edgecompress.devices.transport import Process

LOADER = """
import errno, importlib.util, json, os, signal, sys, threading

class Carried:
    def __init__(self, texts):
        self.texts = texts
    def find_spec(self, name, path=None, target=None):
        if name not in self.texts:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=name == "bench_remote")
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        exec(compile(self.texts[module.__name__], module.__name__, "exec"), module.__dict__)

def say(**answer):
    sys.stdout.write("edgecompress " + json.dumps(answer) + "\\n")
    sys.stdout.flush()

def lifeline():
    while os.read(0, 65536):
        pass
    os.killpg(0, signal.SIGKILL)

if os.getpgrp() != os.getpid():
    os.setsid()
order = json.loads(sys.stdin.buffer.readline().decode())
sys.stdout.write("\\n")
if sys.version_info < (3, 8):
    say(error="python", message="Python {}.{}; 3.8 or newer is needed".format(*sys.version_info))
    sys.exit(0)
say(group=os.getpid())
signal.signal(signal.SIGALRM, signal.SIG_DFL)
signal.setitimer(signal.ITIMER_REAL, order["deadline_s"])
threading.Thread(target=lifeline, daemon=True).start()
sys.meta_path.insert(0, Carried(order["texts"]))
try:
    importlib.import_module("bench_remote." + order["module"]).main(order["order"], say)
    say(done=True)
except Exception as why:
    full = getattr(why, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    message = getattr(why, "message", None) or "{}: {}".format(type(why).__name__, why)
    say(error="full" if full else getattr(why, "need", "failed"), message=message)
"""
GRACE_S = 10.0
MAX_LINE_BYTES = 1 << 20
MAX_BRACKETS = 4000  # each could be a level of nesting, and the parser recurses
MAX_DEPTH = 8
MAX_ANSWERS = 10_000


# For the fields of answers: texts (printable already), sizes and core numbers that a board may have.
Text = Annotated[str, Field(max_length=4096)]
Bytes = Annotated[int, Field(ge=0, le=1 << 50)]
Core = Annotated[int, Field(ge=0, lt=4096)]


def run(device: Device, module: str, order: Mapping[str, Any], timeout_s: float) -> Iterator[dict[str, Any]]:
    """Answers of ``main(order, say)`` of a module of ``bench_remote``.

    Raises:
        DeviceError: the device, or the way to it; Refused also where the function refuses, Busy for another's lock,
            AgentDied when its process just ended (a library may crash at import).
    """
    until = time.monotonic() + timeout_s + GRACE_S
    process = device.transport.start([device.config.python, "-c", BOOT])
    try:
        what = {"module": module, "texts": _texts(), "order": dict(order), "deadline_s": timeout_s}
        try:
            process.send(json.dumps(LOADER).encode() + b"\n" + json.dumps(what).encode() + b"\n")
        except OSError:
            raise _ended(process, device, until) from None
        for _ in range(MAX_ANSWERS):
            answer = _answer(process, device, until)
            if "group" in answer:
                group = answer["group"]
                process.group = group if isinstance(group, int) and 1 < group < 1 << 31 else None
            elif "error" in answer:
                raise _told(clean(str(answer["error"])), clean(str(answer.get("message", ""))))
            elif answer.get("done") is True:
                return
            else:
                yield answer
        raise AgentFailed(f"the device sends more than {MAX_ANSWERS} answers", hint="is the device trustworthy?")
    finally:
        process.kill()


@cache
def _texts() -> dict[str, str]:
    """The agent's whole package, by dotted name: some 100 kB, and which module imports which is its own business."""
    every = [entry for entry in files("bench_remote").iterdir() if entry.name.endswith(".py")]
    names = {entry.name: f"bench_remote.{entry.name.removesuffix('.py')}" for entry in every}
    names["__init__.py"] = "bench_remote"
    return {names[entry.name]: entry.read_text(encoding="utf-8") for entry in every if entry.name != "__main__.py"}


def _answer(process: Process, device: Device, until: float) -> dict[str, Any]:
    """The next marked line as an object; what a login shell prints is passed over."""
    while True:
        try:
            line = process.line(max(until - time.monotonic(), 0.001))
        except TimeoutError:
            raise DeviceTimeout(f"{device.name} did not answer in time", hint="raise --timeout-s") from None
        if line is None:
            raise _ended(process, device, until)
        if line.startswith(MARK):
            break
    body = line[len(MARK) :]
    if len(body) > MAX_LINE_BYTES or body.count(b"[") + body.count(b"{") > MAX_BRACKETS:
        raise AgentFailed("the device's answer is larger than any of ours", hint="is the device trustworthy?")
    try:
        answer = _tidy(json.loads(body), 0)
    except (ValueError, RecursionError) as cause:
        raise AgentFailed("the device's answer is not JSON of ours", hint="is the device trustworthy?") from cause
    if not isinstance(answer, dict):
        raise AgentFailed("the device's answer is not an object", hint="is the device trustworthy?")
    return answer


def _tidy(value: Any, depth: int) -> Any:
    """The same value with printable text; ValueError when it is deeper than any of ours, or no finite number."""
    if depth > MAX_DEPTH:
        raise ValueError("too deep")
    if isinstance(value, str):
        return clean(value).strip()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not finite")
    if isinstance(value, dict):
        return {clean(key): _tidy(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list):
        return [_tidy(one, depth + 1) for one in value]
    return value


def _ended(process: Process, device: Device, until: float) -> DeviceError:
    status = process.wait()
    said = clean(process.stderr.decode("utf-8", "replace")).strip()[-300:]
    python = device.config.python
    if status in (126, 127):
        hint = "install python3 on the device, or set `python` in the device's file"
        return Refused(f"the device cannot run {python!r}: {said or 'not found'}", hint=hint)
    if time.monotonic() >= until - GRACE_S:
        return DeviceTimeout(f"{device.name} was not done in time, and ended it", hint="raise --timeout-s")
    more = f"; it said: {said}" if said else ""
    hint = "a library that crashes, no memory left, a reboot or a lost connection look like this"
    return AgentDied(f"{python} on {device.name} just ended, with status {status}{more}", hint=hint)


def _told(error: str, message: str) -> DeviceError:
    if error == "full":
        return DeviceFull(message, hint="free some space there, or set another `cache` folder in the device's file")
    if error == "python":
        return Refused(f"the device has {message}", hint="set `python` in the device's file to a newer one")
    if error == "lock":
        return Busy(message, hint="wait until it is done")
    if error == "failed":
        return AgentFailed(f"it failed on the device: {message}", hint="is it Python 3.8 or newer, and whole?")
    return Refused(message, hint="see `edgecompress device probe`")
