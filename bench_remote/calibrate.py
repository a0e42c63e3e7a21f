"""What a board's cores and memory can do at best: raw nanoseconds of fixed work, one stage a process.

``clock``: a chain of additions in the interpreter, on each core. ``memory``: copying and reading arrays larger than
caches. ``numpy`` and ``onnxruntime``: products of square fp32 matrices. Threads are set before a library is loaded, so
each stage and each number of threads has a process of its own; a library that crashes costs one stage.
"""

from __future__ import annotations

import itertools
import os
import struct
import sys
import time
from functools import partial
from typing import Any, Callable

from bench_remote import facts, holding
from bench_remote.phases import timed
from bench_remote.store import Refusal

CHAIN = 2_000_000
TRIES = 5
MEMORY_BYTES = 64 << 20  # larger than the last cache of any board here; less where there is little memory
SAMPLE_NS = 2_000_000  # short products are repeated within a sample: below this the clock's own cost would show
MAX_SAMPLES = 200

Say = Callable[..., None]


def main(order: dict[str, Any], say: Say) -> None:
    """``{"cache", "site", "stage", "threads", "affinity", "sizes", "seconds", "busy_wait_s"}``; see the stages."""
    held = holding.hold(os.path.abspath(os.path.expanduser(order["cache"])), order["busy_wait_s"])
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(order["threads"])
    if order["affinity"]:
        try:
            os.sched_setaffinity(0, order["affinity"])
        except (OSError, ValueError) as why:
            raise Refusal("affinity", "cannot run on cores {}: {}".format(order["affinity"], why)) from why
    if order["site"]:
        sys.path.insert(0, os.path.expanduser(order["site"]))
    say(identity=facts.identity(), state=facts.state(), when="before")
    try:
        STAGES[order["stage"]](order, say)
    except ImportError as why:
        raise Refusal("runtime", f"{sys.executable}: {why}") from why
    say(state=facts.state(), when="after")
    held.close()


def clock(order: dict[str, Any], say: Say) -> None:
    """Tells ``core``, ``iterations`` and ``ns`` of each usable core. A chain: each addition waits for the one before."""
    home = sorted(os.sched_getaffinity(0))
    for core in home:
        os.sched_setaffinity(0, [core])
        say(core=core, iterations=CHAIN, ns=[timed(_chain) for _ in range(TRIES)])
    os.sched_setaffinity(0, home)


def _chain() -> None:
    sum(itertools.repeat(1, CHAIN))


def memory(order: dict[str, Any], say: Say) -> None:
    """Tells ``kind``, ``bytes`` of a pass and ``ns``: ``copy`` moves that many, ``read`` goes over so many once."""
    import numpy

    try:
        free = facts.state()["mem_available_bytes"]
    except KeyError:
        free = 8 * MEMORY_BYTES
    count = max(min(MEMORY_BYTES, free // 8) // 4, 1 << 16)
    source = numpy.arange(count, dtype="float32") % 3
    target = numpy.zeros_like(source)
    size = int(source.nbytes)
    copied = samples(lambda: numpy.copyto(target, source), order["seconds"])
    say(kind="copy", bytes=size, ns=copied, version=numpy.__version__)
    read = samples(lambda: numpy.dot(source, source), order["seconds"])
    say(kind="read", bytes=size, ns=read, version=numpy.__version__)


def by_numpy(order: dict[str, Any], say: Say) -> None:
    """Tells ``size``, ``inner`` products of a sample and ``ns``, for every size."""
    import numpy

    for size in order["sizes"]:
        left, right = (_matrix(numpy, size, seed) for seed in (0, 1))
        answer = numpy.empty_like(left)
        _ladder(size, partial(numpy.matmul, left, right, out=answer), order, say, numpy.__version__)


def by_onnxruntime(order: dict[str, Any], say: Say) -> None:
    """As ``by_numpy``; the right matrix is a constant of the graph, as weights are."""
    import numpy
    import onnxruntime

    for size in order["sizes"]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = order["threads"], 1
        options.log_severity_level = 3
        model = matmul_model(size, _matrix(numpy, size, 1).tobytes())
        session = onnxruntime.InferenceSession(model, sess_options=options, providers=["CPUExecutionProvider"])
        feeds = {"x": _matrix(numpy, size, 0)}
        wrong = abs(session.run(None, feeds)[0] - feeds["x"] @ _matrix(numpy, size, 1)).max()
        if not wrong < 1e-3 * size:
            raise Refusal("golden", f"a product of {size} x {size} is wrong by {wrong}")
        _ladder(size, partial(session.run, None, feeds), order, say, onnxruntime.__version__)


STAGES: dict[str, Callable[[dict[str, Any], Say], None]] = {
    "clock": clock,
    "memory": memory,
    "numpy": by_numpy,
    "onnxruntime": by_onnxruntime,
}


def _matrix(numpy: Any, size: int, seed: int) -> Any:
    return numpy.random.RandomState(seed).standard_normal((size, size)).astype("float32")


def _ladder(size: int, product: Callable[[], Any], order: dict[str, Any], say: Say, version: str) -> None:
    product()
    inner = max(1, min(10_000, SAMPLE_NS // max(timed(product), 1)))

    def several() -> None:
        for _ in range(inner):
            product()

    say(size=size, inner=inner, ns=samples(several, order["seconds"]), version=version)


def samples(work: Callable[[], Any], seconds: float) -> list[int]:
    """Nanoseconds of each run, after one that is not kept: three at least, then until ``seconds`` have passed."""
    work()
    found: list[int] = []
    started = time.perf_counter()
    while len(found) < 3 or (time.perf_counter() - started < seconds and len(found) < MAX_SAMPLES):
        found.append(timed(work))
    return found


def matmul_model(size: int, weights: bytes) -> bytes:
    """``y = x @ w`` as an ONNX file: x (size, size) float32, w its constant. The fields are those of onnx.proto."""
    shape = b"".join(_field(1, _number(1, size)) for _ in range(2))
    kind = _field(1, _number(1, 1) + _field(2, shape))  # TypeProto.tensor_type: elem_type FLOAT, shape
    node = _field(1, b"x") + _field(1, b"w") + _field(2, b"y") + _field(4, b"MatMul")
    constant = _number(1, size) + _number(1, size) + _number(2, 1) + _field(8, b"w") + _field(9, weights)
    graph = _field(1, node) + _field(2, b"matmul") + _field(5, constant)
    graph += _field(11, _field(1, b"x") + _field(2, kind)) + _field(12, _field(1, b"y") + _field(2, kind))
    return _number(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _number(2, 13))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found += struct.pack("B", value & 127 | 128)
        value >>= 7
    return found + struct.pack("B", value)
