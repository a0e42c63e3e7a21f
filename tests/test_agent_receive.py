"""Uploads of one object at the same time, as the device sees them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench_remote import receive

CONTENT = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Upload:
    """One upload to a folder, step by step."""

    def __init__(self, cache: Path) -> None:
        program = [sys.executable, str(Path(receive.__file__))]
        self.process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        wanted = [{"sha256": SHA256, "bytes": len(CONTENT)}]
        self.tell({"cache": str(cache), "limit_bytes": 1 << 30, "objects": wanted})
        assert self.answer()["have"][SHA256] != "whole"

    def send(self, data: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def tell(self, value: Any) -> None:
        self.send(json.dumps(value).encode() + b"\n")

    def begin(self, upto: int) -> None:
        """The object from its start."""
        self.tell({"sha256": SHA256, "bytes": len(CONTENT), "offset": 0})
        self.send(CONTENT[:upto])

    def answer(self) -> Any:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(b"edgecompress "):
                return json.loads(line[len("edgecompress ") :])
        return None

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def two(tmp_path: Path) -> Any:
    """Two uploads that have both heard that the object is missing."""
    uploads = [Upload(tmp_path / "cache"), Upload(tmp_path / "cache")]
    yield uploads
    for upload in uploads:
        upload.close()


def wait_for_bytes(part: Path, size: int) -> None:
    for _ in range(1000):
        if part.exists() and part.stat().st_size >= size:
            return
        time.sleep(0.01)
    raise AssertionError(f"{part} never had {size} bytes")


def test_two_uploads_of_one_object_both_end_well(two: list[Upload], tmp_path: Path) -> None:
    first, second = two
    first.begin(500_000)
    wait_for_bytes(tmp_path / "cache/objects" / f"{SHA256}.part", 400_000)
    second.begin(10_000)
    first.send(CONTENT[500_000:])
    assert first.answer() == {"stored": SHA256}
    second.send(CONTENT[10_000:])
    assert second.answer() == {"stored": SHA256}
    assert [path.name for path in (tmp_path / "cache/objects").iterdir()] == [SHA256]
    assert (tmp_path / "cache/objects" / SHA256).read_bytes() == CONTENT


def test_the_second_upload_goes_on_when_the_first_is_cut(two: list[Upload], tmp_path: Path) -> None:
    first, second = two
    first.begin(500_000)
    wait_for_bytes(tmp_path / "cache/objects" / f"{SHA256}.part", 400_000)
    second.begin(10_000)
    first.close()
    second.send(CONTENT[10_000:])
    assert second.answer() == {"stored": SHA256}
    assert (tmp_path / "cache/objects" / SHA256).read_bytes() == CONTENT


def test_a_full_disk_and_a_full_cache_leave_the_parts_that_are_being_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live, dead = tmp_path / "aa.part", tmp_path / "bb.part"
    for path in (live, dead):
        path.write_bytes(b"x" * 100)
    with live.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        receive.make_room(str(tmp_path), {}, 0)
        assert (live.exists(), dead.exists()) == (True, False)
        dead.write_bytes(b"x")
        receive.no_room(str(tmp_path))
    assert (live.exists(), dead.exists()) == (True, False)
    assert '"full"' in capsys.readouterr().out
