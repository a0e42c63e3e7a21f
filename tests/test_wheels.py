"""Which wheel fits which board: a function of its facts alone, with a reason where none does."""

from __future__ import annotations

import pytest

from edgecompress.devices import board, wheels
from edgecompress.devices.provisioning import fits
from edgecompress.devices.wheels import Target
from edgecompress.errors import RecipeError


def a_board(
    python: str = "3.11.2", machine: str = "aarch64", bits: int = 64, glibc: str = "2.36", **more: object
) -> board.Board:
    version = [int(part) for part in python.split(".")]
    about = {"version": version, "implementation": "cpython", "bits": bits, "machine": machine, **more}
    return board.parse({"python": about, "glibc": glibc})


@pytest.mark.parametrize(
    ("system", "runtime", "said"),
    [
        (a_board(), "onnxruntime", "onnxruntime 1.32.0"),  # Raspberry Pi OS 12
        (a_board("3.13.5", glibc="2.41"), "tflite", "ai-edge-litert 2.3.0"),  # Raspberry Pi OS 13
        (a_board("3.8.10", glibc="2.31"), "onnxruntime", "onnxruntime 1.19.2"),  # JetPack 5
        (a_board("3.10.12", glibc="2.35"), "openvino", "openvino 2026.4.1"),  # JetPack 6
        (a_board("3.8.10", glibc="2.31"), "openvino", "openvino 2024.4.0"),
        (a_board("3.11.0", glibc="2.27"), "onnxruntime", "onnxruntime 1.28.0"),  # JetPack 4 with a Python of one's own
        (a_board("3.6.9", glibc="2.27"), "onnxruntime", "none: no wheel for Python 3.6 on aarch64, only 3.8 to 3.14"),
        (a_board("3.8.0", glibc="2.24"), "openvino", "none: needs glibc 2.27, the device has 2.24"),
        (a_board(bits=32), "onnxruntime", "none: no wheel for armv7l"),  # a 32-bit system on a 64-bit kernel
        (a_board(bits=32), "tflite", "tflite-runtime 2.14.0, but PyPI has no numpy"),
        (a_board(machine="riscv64"), "tflite", "none: no wheel for riscv64"),
        (a_board(), "stranger", "none: not in our table"),
    ],
)  # fmt: skip
def test_the_newest_wheel_that_fits_is_taken_and_a_reason_given_where_none_does(
    system: board.Board, runtime: str, said: str
) -> None:
    found = str(wheels.choose(runtime, wheels.target(system)))
    assert found.startswith(said) if "," in said else found == said


@pytest.mark.parametrize(
    ("system", "word"),
    [
        (a_board(implementation="pypy"), "pypy"),
        (a_board(free_threaded=True), "free-threaded"),
        (board.parse({"python": a_board().python.model_dump(), "absent": {"glibc": "not glibc"}}), "not glibc"),  # type: ignore[union-attr]
        (board.parse({"absent": {"python": "refused"}}), "refused"),
    ],
)
def test_a_system_that_no_wheel_of_ours_is_for_is_told_so(system: board.Board, word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        wheels.target(system)


PI = Target((3, 11), "aarch64", (2, 36))


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_aarch64.whl", True),
        ("numpy-2.3.1-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl", True),
        ("packaging-25.0-py3-none-any.whl", True),
        ("six-1.17.0-py2.py3-none-any.whl", True),
        ("psutil-7.0.0-cp36-abi3-manylinux2014_aarch64.whl", True),
        ("mine-1-1-cp311-cp311-linux_aarch64.whl", True),
        ("ahead-1-cp313-abi3-manylinux2014_aarch64.whl", False),
        ("onnxruntime-1.32.0-cp312-cp312-manylinux_2_28_aarch64.whl", False),
        ("onnxruntime-1.32.0-cp311-cp311t-manylinux_2_28_aarch64.whl", False),
        ("onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_x86_64.whl", False),
        ("new-1-cp311-cp311-manylinux_2_39_aarch64.whl", False),
        ("musl-1-cp311-cp311-musllinux_1_2_aarch64.whl", False),
        ("old-1-py2-none-any.whl", False),
        ("odd.whl", False),
    ],
)
def test_a_wheel_is_told_to_fit_by_its_tags(name: str, right: bool) -> None:
    assert fits(name, PI) is right


def test_every_row_of_the_table_names_a_runtime_of_ours_and_can_be_reached() -> None:
    from edgecompress import runtimes

    for row in wheels.table():
        assert row.runtime in runtimes.names()
        reached = [
            wheels.choose(row.runtime, Target((int(p.split(".")[0]), int(p.split(".")[1])), machine, _glibc(row))).wheel
            for p in row.python
            for machine in row.machine
        ]
        assert row in reached, f"{row.package} {row.version} is always behind another"


def _glibc(row: wheels.Wheel) -> tuple[int, int]:
    major, minor = row.glibc.split(".")
    return int(major), int(minor)
