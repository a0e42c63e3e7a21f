"""A file in a process of its own that runs when it is told to: blocks of inferences, so that many can take turns.

    python -m benchmarks.blocks ORDER      ORDER: JSON with runtime, file, threads, work, settings

Between its blocks a process waits at a pipe and uses no processor. It first says what it opened and how near its answer
is to torch's, then for every number that it reads runs once uncounted (other processes had the caches) and so many times
counted. Files of one runtime are opened with the same options, whoever made them.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import candidates

Feeds = dict[str, np.ndarray]
Run = Callable[[], list[np.ndarray]]
Ports = dict[str, tuple[str, list[int]]]
ANSWER_S = 180.0  # a process that says nothing for so long is dead
LEAST_FREE_BYTES = 2 << 30  # below this no further process is started: there may be no swap


# --- in the child: how files are opened ------------------------------------------------------------------------------
def feeds_for(ports: Mapping[str, str], samples: np.ndarray) -> Feeds:
    """The samples for the first floating input, all of their length for one called ``lengths``.

    Raises:
        RuntimeError: the file takes something else besides.
    """
    feeds = {}
    for name, dtype in ports.items():
        if "float" in dtype:
            feeds[name] = samples.astype(dtype)
        elif name == "lengths":
            feeds[name] = np.array([samples.shape[1]], dtype)
        else:
            raise RuntimeError(f"the file takes {name!r} ({dtype})")
    return feeds


def torch_eager(file: str, threads: int, samples: np.ndarray, settings: Mapping[str, Any]) -> tuple[Run, Any]:
    import torch
    import transformers

    torch.set_num_threads(threads)
    network = transformers.HubertModel.from_pretrained(Path(file).parent).eval()
    given = torch.from_numpy(samples)

    def run() -> list[np.ndarray]:
        with torch.inference_mode():
            return [network(given).last_hidden_state.numpy()]

    return run, {"threads": torch.get_num_threads(), "attention": network.config._attn_implementation}


def onnxruntime(file: str, threads: int, samples: np.ndarray, settings: Mapping[str, Any]) -> tuple[Run, Any]:
    import onnxruntime as ort

    asked = ort.SessionOptions()
    asked.intra_op_num_threads, asked.inter_op_num_threads = threads, 1
    asked.log_severity_level = 3
    session = ort.InferenceSession(file, asked, providers=["CPUExecutionProvider"])
    words = {"float": "float32"}
    kinds = {port.name: port.type[len("tensor(") : -1] for port in session.get_inputs()}
    feeds = feeds_for({name: words.get(kind, kind) for name, kind in kinds.items()}, samples)
    return lambda: list(session.run(None, feeds)), {"threads": threads, "version": ort.__version__}


def openvino(file: str, threads: int, samples: np.ndarray, settings: Mapping[str, Any]) -> tuple[Run, Any]:
    """Held to float32, where the settings do not say ``precision: None``: then it computes as it likes."""
    ov = candidates.without_telemetry()
    asked = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY"}
    precision = settings.get("precision", "f32")
    if precision is not None:
        asked["INFERENCE_PRECISION_HINT"] = precision
    compiled = ov.Core().compile_model(file, "CPU", asked)
    kinds = {port.get_any_name(): str(port.get_element_type().to_dtype()) for port in compiled.inputs}
    feeds = feeds_for(kinds, samples)
    request = compiled.create_infer_request()

    def run() -> list[np.ndarray]:
        request.infer(feeds, share_inputs=True, share_outputs=True)
        return [request.get_output_tensor(place).data for place in range(len(compiled.outputs))]

    told = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return run, {"threads": compiled.get_property("INFERENCE_NUM_THREADS"), "precision": told,
                 "version": ov.get_version()}  # fmt: skip


def tflite(file: str, threads: int, samples: np.ndarray, settings: Mapping[str, Any]) -> tuple[Run, Any]:
    """The signature, by XNNPACK. The file must have been made for this length."""
    from importlib.metadata import version

    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=file, num_threads=threads)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner(next(iter(interpreter.get_signature_list())))
    kinds = {name: np.dtype(port["dtype"]).name for name, port in runner.get_input_details().items()}
    feeds = feeds_for(kinds, samples)
    return lambda: list(runner(**feeds).values()), {"threads": threads, "version": version("ai-edge-litert")}


OPENERS = {"torch": torch_eager, "onnxruntime": onnxruntime, "openvino": openvino, "tflite": tflite}


def distances(answers: list[np.ndarray], reference: np.ndarray) -> dict[str, float]:
    """1 - cosine and the greatest difference of the answer that has the reference's shape.

    Raises:
        RuntimeError: no answer has it, or numbers are not finite.
    """
    said = next((each for each in answers if each.shape == reference.shape), None)
    if said is None:
        raise RuntimeError(f"answers of shapes {[each.shape for each in answers]}, torch's is {reference.shape}")
    one, other = said.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    if not np.isfinite(one).all():
        raise RuntimeError("the answer has numbers that are not finite")
    cosine = float(one @ other / np.sqrt((one @ one) * (other @ other)))
    return {"one_minus_cosine": max(0.0, 1 - cosine), "greatest_difference": float(np.abs(one - other).max())}


def serve(order: Mapping[str, Any], say: Callable[[Mapping[str, Any]], None]) -> None:
    """Open, compare, then blocks until the pipe ends."""
    work = Path(order["work"])
    reference = np.load(work / "model" / "reference.npy", allow_pickle=False)
    started = time.perf_counter()
    open_file = OPENERS[order["runtime"]]
    run, conditions = open_file(order["file"], order["threads"], candidates.input_of(work), order["settings"])
    opened_s = time.perf_counter() - started
    told = distances(run(), reference)
    run()
    say({**told, "opened_s": opened_s, "conditions": conditions, "rss_bytes": candidates.memory("VmRSS")})
    for line in sys.stdin:
        run()
        times, cpu = [], time.process_time_ns()
        for _ in range(int(line)):
            before = time.perf_counter_ns()
            run()
            times.append(time.perf_counter_ns() - before)
        say({"ns": times, "cpu_ns": time.process_time_ns() - cpu, "peak_rss_bytes": candidates.memory("VmHWM")})


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # libraries may print: that goes to standard error
    os.dup2(2, 1)

    def say(told: Mapping[str, Any]) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    serve(json.loads(sys.argv[1]), say)


# --- in the parent ---------------------------------------------------------------------------------------------------
class Dead(Exception):
    """A process that did not answer; the message is its last word."""


class Contestant:
    """A child process that has a file open, at so many threads. ``told`` is what it said of it."""

    def __init__(self, candidate: candidates.Candidate, file: Path, threads: int, work: Path) -> None:
        """Start it; ``ready`` waits until it has opened the file.

        Raises:
            Dead: there is too little memory left to start it.
        """
        free = available_bytes()
        if free < LEAST_FREE_BYTES:
            raise Dead(f"only {free / 2**30:.1f} GiB of memory are free: not started")
        order = {
            "runtime": candidate.runtime, "file": str(file), "threads": threads, "work": str(work),
            "settings": dict(candidate.settings),
        }  # fmt: skip
        self.log = work / candidate.recipe / f"{candidate.precision}-{threads}.log"
        with self.log.open("wb") as heard:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.blocks", json.dumps(order)], cwd=candidates.ROOT, bufsize=0,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=heard, env=surroundings(threads),
            )  # fmt: skip
        self.told: dict[str, Any] = {}

    def ready(self) -> None:
        """Raises: Dead: the runtime cannot open or run the file."""
        self.told = self._answer()

    def block(self, inferences: int) -> dict[str, Any]:
        """``ns`` of each inference, ``cpu_ns`` and ``wall_ns`` of the block, and ``others``: the share of the machine's
        processor time meanwhile that was not this process's.

        Raises:
            Dead: it crashed or hangs.
        """
        assert self.process.stdin is not None
        busy, wall = busy_s(), time.perf_counter()
        try:
            self.process.stdin.write(f"{inferences}\n".encode())
        except BrokenPipeError:
            raise Dead(self._last_words()) from None
        found = self._answer()
        wall, busy = time.perf_counter() - wall, busy_s() - busy
        mine = found["cpu_ns"] * 1e-9 * (1 + 1 / inferences)  # the uncounted one is not in it
        return found | {"others": max(0.0, busy - mine) / (wall * (os.cpu_count() or 1))}

    def end(self) -> None:
        """Close the pipe, which ends the process; kill it if it does not."""
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _answer(self) -> dict[str, Any]:
        stream, heard, until = self.process.stdout, b"", time.monotonic() + ANSWER_S
        assert stream is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(stream, selectors.EVENT_READ)
            while not heard.endswith(b"\n"):
                if not waiting.select(max(0.0, until - time.monotonic())):
                    self.process.kill()
                    raise Dead(f"no answer for {ANSWER_S:.0f} s")
                piece = stream.read(65536)
                if not piece:
                    raise Dead(self._last_words())
                heard += piece
        answer: dict[str, Any] = json.loads(heard)
        return answer

    def _last_words(self) -> str:
        code = self.process.wait(20)
        said = last_line(self.log.read_text(errors="replace"))
        return f"killed by signal {-code}" if code < 0 else said or f"ended with status {code}"


def last_line(text: str) -> str:
    """What an error comes down to: its last line that is not empty; 200 letters of it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def surroundings(threads: int) -> dict[str, str]:
    """The environment of a child: so many threads in every pool, nothing from the network."""
    pools = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return os.environ | pools | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def available_bytes() -> int:
    """Memory that can be had without swapping. Linux only."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def busy_s() -> float:
    """Seconds of processor that were used on this machine since it started, by anybody; in steps of 10 ms. Linux only."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    ticks = [int(word) for word in words]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
