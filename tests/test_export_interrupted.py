"""An export that cannot end well leaves nothing: a full disk, an interruption."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgecompress.exporters import Order, Written, export
from edgecompress.exporters.onnx import OnnxExporter
from edgecompress.model import save
from tests.models import tiny

IN_A_SMALL_DISK = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'

OURS = "import sys; from edgecompress.cli import main; sys.exit(main(sys.argv[1:]))"


class Interrupted(OnnxExporter):
    def write(self, order: Order) -> Written:
        (order.folder / "model.onnx").write_bytes(b"half of it")
        raise KeyboardInterrupt


def test_an_interruption_leaves_no_folder_and_an_old_artifact_as_it_was(tmp_path: Path) -> None:
    model = tiny("hubert")
    export(model, "onnx", tmp_path / "old")
    before = {file.name: file.read_bytes() for file in (tmp_path / "old").iterdir() if file.is_file()}
    for folder in ("old", "new"):
        with pytest.raises(KeyboardInterrupt):
            export(model, folder=tmp_path / folder, exporter=Interrupted())
    assert {file.name: file.read_bytes() for file in (tmp_path / "old").iterdir() if file.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.fixture
def small_disk(tmp_path: Path) -> list[str]:
    """A command line that runs what follows it in a mount namespace where ``tmp_path/disk`` holds 200 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    line = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", IN_A_SMALL_DISK, "sh", "200k", str(disk)]
    try:
        tried = subprocess.run([*line, "true"], capture_output=True)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if tried.returncode:
        pytest.skip("no mount namespaces for an ordinary user here")
    return line


@pytest.mark.parametrize("format", ["onnx", "openvino", "tflite"])
def test_a_full_disk_is_one_clear_error_and_nothing_is_left(format: str, small_disk: list[str], tmp_path: Path) -> None:
    save(tiny("hubert"), tmp_path / "model")
    disk = Path(small_disk[-1])
    ours = [sys.executable, "-c", OURS, "export", tmp_path / "model", "--format", format, "-o", disk / "made"]
    told = subprocess.run(
        [*small_disk, "sh", "-c", '"$@"; echo "status $?"; ls -A "$0"', str(disk), *map(str, ours)],
        capture_output=True,
        text=True,
    )
    assert told.stdout.splitlines() == ["status 2"], told.stderr
    last = [line for line in told.stderr.splitlines() if line.startswith(("error:", "hint:"))]
    assert len(last) == 2, told.stderr
    assert "space" in " ".join(last), last
