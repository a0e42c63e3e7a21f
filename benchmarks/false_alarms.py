"""How often a comparison of a model with itself finds a difference, and how often a true one of 5 % is found.

    python -m benchmarks.false_alarms [--devices 200] [--json FILE]
    python -m benchmarks.false_alarms --real 5

Held against what people do: run A three times, then B three times, and Welch's t-test on all samples. On simulated
devices (``simulated_devices``) of every kind; with ``--real`` on this machine while other processes come and go, with a
tiny ONNX model as A and as B. Ends with 1 if false alarms exceed 5 % on any kind (``--real``: if one was raised).

``alarms`` counts findings (the interval lies beyond 2 %); ``misses`` counts intervals that do not hold the truth, of
which 5 % are to be expected.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.simulated_devices import KINDS, SimulatedDevice
from edgecompress.comparing.estimate import verdict
from edgecompress.comparing.loop import Outcome, Rule, carry_out

ALLOWED = 0.05
RESAMPLES = 2000
BUDGET_S = 1800.0  # of the simulated clock: some 120 blocks
REPETITIONS = 3


@dataclass(frozen=True)
class Rates:
    """Shares of comparisons on one kind of device."""

    kind: str
    comparisons: int
    alarms: float
    misses: float
    naive_alarms: float
    found: float
    naive_found: float
    undecided: float
    blocks: float
    void: float


def welch_p(one: Sequence[float], other: Sequence[float]) -> float:
    """Welch's t-test on all samples, as if they were independent."""
    from scipy.stats import ttest_ind

    return float(ttest_ind(one, other, equal_var=False).pvalue)


def naive(device: SimulatedDevice) -> tuple[bool, bool]:
    """Whether consecutive runs say that the two differ, and that the second is the faster one."""
    first, second = ([ns for _ in range(REPETITIONS) for ns in device.session(variant)] for variant in (0, 1))
    differs = welch_p(first, second) < 1 - 0.95
    return differs, differs and float(np.mean(second)) < float(np.mean(first))


def ours(kind: str, seed: int, latencies: tuple[float, ...]) -> Outcome:
    """One comparison on a simulated device."""
    device = SimulatedDevice(kind, seed, latencies)
    rule = Rule(budget_s=BUDGET_S, seed=seed)
    return carry_out(rule, len(latencies), device.block, resamples=RESAMPLES)


def words(outcome: Outcome) -> list[str]:
    """The verdict on each variant; undecided where no pair of blocks counted."""
    return [verdict(speed) for speed in outcome.speeds] or ["undecided"]


def holds(outcome: Outcome, truth: float) -> bool:
    """Whether every interval holds the truth (one that is not there says nothing false)."""
    return all(one.low is None or one.high is None or one.low <= truth <= one.high for one in outcome.speeds)


def rates(kind: str, devices: int) -> Rates:
    """A model with itself and one that is 5 % faster, on so many devices of a kind."""
    same, faster = (1.0, 1.0), (1.0, 1 / 1.05)
    outcomes = [ours(kind, seed, same) for seed in range(devices)]
    told = [words(outcome)[0] for outcome in outcomes]
    found = [words(ours(kind, devices + seed, faster))[0] == "faster" for seed in range(devices)]

    def share(values: Sequence[Any]) -> float:
        return float(np.mean(values))

    return Rates(
        kind=kind,
        comparisons=devices,
        alarms=share([word in ("faster", "slower") for word in told]),
        misses=share([not holds(outcome, 1.0) for outcome in outcomes]),
        naive_alarms=share([naive(SimulatedDevice(kind, seed, same))[0] for seed in range(devices)]),
        found=share(found),
        naive_found=share([naive(SimulatedDevice(kind, devices + seed, faster))[1] for seed in range(devices)]),
        undecided=share([word == "undecided" for word in told]),
        blocks=share([outcome.valid for outcome in outcomes]),
        void=share([sum(bool(block.void) for block in outcome.blocks) for outcome in outcomes]),
    )


# --- on this machine -------------------------------------------------------------------------------------------------
def burn(seed: int) -> None:
    """Work and rest in turns, a few seconds each, until somebody ends it."""
    rng = random.Random(seed)
    while True:
        until = time.monotonic() + rng.uniform(0.5, 6)
        while time.monotonic() < until:
            sum(range(20_000))
        time.sleep(rng.uniform(0.5, 8))


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """Background load while the block runs."""
    workers = [multiprocessing.Process(target=burn, args=(seed,), daemon=True) for seed in range(processes)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def real(comparisons: int, processes: int, budget_minutes: float) -> list[dict[str, Any]]:
    """A tiny model against itself on this machine, under load; after each comparison the naive way, straight through."""
    from edgecompress import devices
    from edgecompress.comparing import campaign, subjects
    from edgecompress.comparing.record import Question
    from edgecompress.session import Plan

    found = []
    plan = Plan(repetitions=1, warmup_s=0.1, min_samples=50, min_seconds=0.4, max_seconds=2.0)
    with tempfile.TemporaryDirectory() as place, devices.open_device("local") as device, load(processes):
        model = tiny_model(Path(place) / "tiny.onnx")
        given = subjects.Given({"time": 100})
        variants = subjects.targets([model, model], given)
        measure = subjects.measuring(device, variants, None, given, None)
        for number in range(comparisons):
            question = Question(
                variants=[one.subject for one in variants],
                device="local",
                seed=number,
                plan=asdict(plan) | {"affinity": []},
                inputs=given.described(),
            )
            held = campaign.Campaign(Path(place) / str(number), question, plan, measure, "false_alarms")
            outcome = held.carry_out(Rule(budget_s=budget_minutes * 60, seed=number))
            one, other = (
                [ns for _ in range(REPETITIONS) for ns in measure(variant, plan).repetitions[0].samples_ns]
                for variant in (0, 1)
            )
            told = campaign.as_data(held.comparison, outcome)
            found.append(
                {
                    "text": told["results"][0]["text"] if told["results"] else "undecided: no pair of blocks counted",
                    "verdict": words(outcome)[0],
                    "counted": outcome.valid,
                    "void": len(told["void"]),
                    "ended": outcome.ended,
                    "naive_ratio": float(np.mean(one) / np.mean(other)),
                    "naive_p": welch_p(one, other),
                }
            )
            print(json.dumps(found[-1]), flush=True)
    return found


def tiny_model(path: Path) -> Path:
    """A matrix product as an ONNX file: x (batch, time, 512) to y (batch, time, 512)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).standard_normal((512, 512)).astype("float32")
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "time", 512]) for name in ("x", "y")]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "tiny", sides[:1], sides[1:], [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def table(found: Sequence[Rates]) -> str:
    """The rates as Markdown."""
    head = "| device | A/A alarms | A/A misses | A/A alarms, naive | 5 % found | 5 % found, naive | undecided | blocks | void |"
    lines = [head, "|---|" + "---:|" * 8]
    for one in found:
        shares = (one.alarms, one.misses, one.naive_alarms, one.found, one.naive_found, one.undecided)
        told = " | ".join(f"{share:.1%}" for share in shares)
        lines.append(f"| {one.kind} | {told} | {one.blocks:.1f} | {one.void:.1f} |")
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--devices", type=int, default=200, help="simulated devices of each kind")
    asked.add_argument("--real", type=int, default=0, metavar="N", help="N comparisons on this machine instead")
    asked.add_argument("--load", type=int, default=2, help="processes that load this machine meanwhile")
    asked.add_argument("--budget-minutes", type=float, default=3.0, help="of each real comparison")
    asked.add_argument("--json", type=Path, help="file for the rates")
    options = asked.parse_args()
    if options.real:
        seen = real(options.real, options.load, options.budget_minutes)
        result: list[dict[str, Any]] = seen
        alarms = sum(one["verdict"] in ("faster", "slower") for one in seen)
        naive_alarms = sum(one["naive_p"] < 1 - 0.95 for one in seen)
        print(f"{alarms} false alarms in {len(seen)} comparisons; naive: {naive_alarms}")
        bad = alarms > 0
    else:
        found = [rates(kind, options.devices) for kind in KINDS]
        result = [asdict(one) for one in found]
        print(table(found))
        bad = any(one.alarms > ALLOWED for one in found)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
