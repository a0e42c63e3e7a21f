"""Content-addressed upload over nothing but a running program: no SFTP, which breaks when a login shell prints
anything and cannot say that a disk is full.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from edgecompress.devices.transport import Blob, Process, Progress, Put, Transport
from edgecompress.errors import AgentFailed, DeviceError, DeviceFull, Refused, Unreachable

# Reads a program from the first line of standard input. Constant, and one line: every login shell can quote it.
BOOT = "import sys, json; exec(json.loads(sys.stdin.buffer.readline().decode()))"
GET = """
import json, os, sys
order = json.loads(sys.stdin.buffer.readline().decode())
path = os.path.join(os.path.expanduser(order["cache"]), "objects", order["sha256"])
size = os.path.getsize(path) if os.path.exists(path) else -1
sys.stdout.write("\\nedgecompress " + json.dumps({"bytes": size}) + "\\n")
sys.stdout.flush()
if os.path.exists(path):
    with open(path, "rb") as stream:
        sys.stdout.write(stream.read().hex() + "\\n")
"""
MARK = b"edgecompress "
BLOCK_BYTES = 256 << 10
REPLY_TIMEOUT_S = 120.0
CACHE_LIMIT_BYTES = 8 << 30


def put(transport: Transport, python: str, cache: str, blobs: Sequence[Blob], progress: Progress | None) -> Put:
    """See ``Transport.put``.

    Raises:
        DeviceFull: no space; no partial file is left there.
        Refused: no Python, or one that is too old.
        Unreachable: the connection ended; what has arrived is kept and the next run goes on from there.
    """
    wanted = {blob.sha256: blob for blob in blobs}
    process = transport.start([python, "-c", BOOT])
    try:
        order = [{"sha256": blob.sha256, "bytes": blob.size} for blob in wanted.values()]
        program = files("bench_remote").joinpath("receive.py").read_text(encoding="utf-8")
        _send(process, python, json.dumps(program).encode() + b"\n")
        _send(process, python, _line(cache=cache, limit_bytes=CACHE_LIMIT_BYTES, objects=order))
        have = _answer(process, python)
        root, version = have.get("cache"), have.get("python")
        if not isinstance(root, str) or not root.startswith("/") or not root.isprintable() or len(root) > 1024:
            raise AgentFailed("the device answers with an impossible cache folder")
        states = have.get("have")
        if not isinstance(states, dict):
            raise AgentFailed("the device does not say which objects it has")
        missing = [blob for blob in wanted.values() if states.get(blob.sha256) != "whole"]
        offsets = [_offset(blob, states.get(blob.sha256)) for blob in missing]
        total = sum(blob.size - offset for blob, offset in zip(missing, offsets, strict=True))
        sent = 0
        for blob, offset in zip(missing, offsets, strict=True):
            sent = _send_blob(process, python, blob, offset, sent, total, progress)
            if _answer(process, python).get("stored") != blob.sha256:
                raise AgentFailed("the device acknowledges another object than was sent")
        _send(process, python, _line(end=True))
        process.end_input()
        return Put(root, sent, clean(str(version)[:32]))
    finally:
        process.kill()


def get(transport: Transport, python: str, cache: str, sha256: str, limit_bytes: int) -> bytes:
    """See ``Transport.get``.

    Raises:
        DeviceError: no such object there, too large, or its content is not its name's.
    """
    process = transport.start([python, "-c", BOOT])
    try:
        _send(process, python, json.dumps(GET).encode() + b"\n" + _line(cache=cache, sha256=sha256))
        size = _answer(process, python).get("bytes", -1)
        if not isinstance(size, int) or not 0 <= size <= limit_bytes:
            raise DeviceError(f"object {sha256[:12]} is not there, or larger than {limit_bytes} bytes")
        line = process.line(REPLY_TIMEOUT_S) or b""
        data = bytes.fromhex(line.decode("ascii", "replace"))
    except (TimeoutError, ValueError) as cause:
        raise AgentFailed(f"object {sha256[:12]} did not arrive whole") from cause
    finally:
        process.kill()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise AgentFailed(f"object {sha256[:12]} has another content than its name says")
    return data


def _line(**value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _offset(blob: Blob, state: Any) -> int:
    """How much of ``blob`` is there for certain: the device's offset, if the hash of that much is ours too."""
    if not (isinstance(state, list) and len(state) == 2 and isinstance(state[0], int) and 0 < state[0] <= blob.size):
        return 0
    digest, left = hashlib.sha256(), state[0]
    with blob.open() as stream:
        while left and (block := stream.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return state[0] if digest.hexdigest() == state[1] else 0


def _send_blob(
    process: Process, python: str, blob: Blob, offset: int, sent: int, total: int, progress: Progress | None
) -> int:
    """Send a blob from ``offset`` on; the payload bytes sent so far, this one included."""
    _send(process, python, _line(sha256=blob.sha256, bytes=blob.size, offset=offset))
    with blob.open() as stream:
        stream.seek(offset)
        while block := stream.read(BLOCK_BYTES):
            _send(process, python, block)
            sent += len(block)
            if progress:
                progress(sent, total)
    return sent


def _send(process: Process, python: str, data: bytes) -> None:
    """Send; when the other end is gone, its last answer says why."""
    try:
        process.send(data)
    except OSError as cause:
        _answer(process, python)
        raise Unreachable(
            "the connection ended during an upload", hint="run again: it goes on where it was cut"
        ) from cause


def _answer(process: Process, python: str) -> dict[str, Any]:
    """The device's next marked answer; what a login shell prints is passed over. Errors become ours."""
    while True:
        try:
            line = process.line(REPLY_TIMEOUT_S)
        except TimeoutError:
            raise Unreachable(
                f"no answer to an upload within {REPLY_TIMEOUT_S:.0f} s", hint="run again to resume"
            ) from None
        if line is None:
            raise _ended(process, python)
        if line.startswith(MARK):
            break
    try:
        answer = json.loads(line[len(MARK) :])
    except ValueError as cause:
        raise AgentFailed("the device answers an upload with something that is not JSON") from cause
    if not isinstance(answer, dict):
        raise AgentFailed("the device answers an upload with something that is not an object")
    if "error" in answer:
        raise _told(str(answer["error"]), clean(str(answer.get("message", ""))))
    return answer


def _told(error: str, message: str) -> DeviceError:
    if error == "full":
        return DeviceFull(message, hint="free some space there, or set another `cache` folder in the device's file")
    if error == "python":
        return Refused(f"the device has {message}", hint="set `python` in the device's file to a newer one")
    return DeviceError(f"upload failed on the device: {message}", hint="check the `cache` folder in the device's file")


def _ended(process: Process, python: str) -> DeviceError:
    status = process.wait()
    said = clean(process.stderr.decode("utf-8", "replace")).strip()[-300:]
    if status in (126, 127):
        hint = "install python3 on the device, or set `python` in the device's file"
        return Refused(f"the device cannot run {python!r}: {said or 'not found'}", hint=hint)
    if status > 0:
        return AgentFailed(
            f"{python!r} ended with status {status} on the device: {said}", hint="is it Python 3.8 or newer?"
        )
    return Unreachable("the connection ended during an upload", hint="run again: it goes on where it was cut")


def clean(text: str) -> str:
    """Text from a device as one printable line: no escape sequences reach the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:4096])
