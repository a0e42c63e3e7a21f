"""A run folder as a job leaves it, with numbers from a seeded generator: 12 recipes, two precisions, two devices."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.records import (
    Artifact,
    AudioShape,
    Checkpoint,
    Cost,
    Failure,
    FileRecord,
    Golden,
    GoldenCheck,
    Macs,
    Measurement,
    Parameters,
    Parity,
    ParityCase,
    Repetition,
    Run,
    Score,
    ScoreItem,
    Source,
    Tensor,
    Tolerance,
)

TOOL = "edgecompress 0.1.0"
TOLERANCE = Tolerance(relative=1e-3, cosine=0.999)
IDENTITY: dict[str, Any] = {
    "model": "Raspberry Pi 4 Model B Rev 1.4",
    "cpu": ["0x41/0xd08"],
    "system": "Debian GNU/Linux 12 (bookworm)",
    "kernel": "6.6.31",
    "virtual": False,
    "absent": {},
}
STATE: dict[str, Any] = {
    "governor": {"policy0": "performance"},
    "frequency_khz": {"policy0": {"cur": 1800000, "min": 600000, "max": 1800000}},
    "temperature_celsius": {"thermal_zone0:cpu-thermal": 48.2},
    "throttled": "0x0",
    "cores_online": "0-3",
    "load_1min": 0.02,
    "absent": {},
}


@dataclass(frozen=True)
class Made:
    """One recipe of the fake run: its techniques, size against dense, zeros, and true score."""

    name: str
    techniques: list[dict[str, Any]] = field(default_factory=list)
    parameters: float = 1.0
    macs: float = 1.0
    zeros: float = 0.0
    recall: float = 0.77
    seconds: float = 30.0


def _ffn(ratio: float, score: str) -> list[dict[str, Any]]:
    return [{"kind": "prune_ffn", "ratio": ratio, "score": score, "compensate": score == "activation"}]


RECIPES = [
    Made("dense"),
    Made("zeros-30", [{"kind": "prune_weights", "sparsity": 0.3}], zeros=0.3),
    Made("zeros-50", [{"kind": "prune_weights", "sparsity": 0.5}], zeros=0.5, recall=0.44),
    Made("heads-1-l1", [{"kind": "prune_heads", "ratio": 0.17, "score": "l1"}], 0.96, 0.93, recall=0.10),
    Made(
        "heads-1-activation", [{"kind": "prune_heads", "ratio": 0.17, "score": "activation"}], 0.96, 0.93, recall=0.51
    ),
    Made("ffn-75-l1", _ffn(0.25, "l1"), 0.86, 0.88, recall=0.08),
    Made("ffn-75-activation", _ffn(0.25, "activation"), 0.86, 0.88, recall=0.776),
    Made("ffn-50-activation", _ffn(0.5, "activation"), 0.71, 0.75, recall=0.687),
    Made("rank-128-weights", [{"kind": "factorize", "rank": 128, "by": "weights"}], 0.78, 0.80, recall=0.05),
    Made("rank-128-activations", [{"kind": "factorize", "rank": 128, "by": "activations"}], 0.78, 0.80, recall=0.731),
    Made("context-12s", [{"kind": "trim_context", "seconds": 12.0}], 1.0, 0.36, recall=0.776, seconds=12.0),
    Made(
        "context-12s-ffn-75",
        [{"kind": "trim_context", "seconds": 12.0}, *_ffn(0.25, "activation")],
        0.86,
        0.31,
        recall=0.77,
        seconds=12.0,
    ),
]
DEVICES = {"pi4": 1.0, "loopback": 0.12}


def source(random_weights: bool = False) -> Source:
    """Where the fake model came from."""
    return Source(name="whisper-tiny.en", sha256="ab" * 32, random_weights=random_weights)


def cost(made: Made) -> Cost:
    """The recipe's cost, from dense's 8.2 M parameters and 17 GMAC over 30 s."""
    total, macs = int(8_208_384 * made.parameters), int(17_040_000_000 * made.macs)
    parts = Macs(total=macs, per_second=macs / made.seconds, parts={"ffn": macs // 2})
    nonzero = Parameters(total=total, nonzero=int(total * (1 - made.zeros)))
    return Cost(parameters=nonzero, bytes=total * 4, macs=parts, seconds=made.seconds)


def checkpoint(made: Made, random_weights: bool = False) -> Checkpoint:
    """The recipe's checkpoint."""
    return Checkpoint(
        recipe=made.name,
        family="whisper",
        source=source(random_weights),
        techniques=made.techniques,
        steps=[],
        cost=cost(made),
        tool=TOOL,
    )


def artifact(made: Made, precision: str, random_weights: bool = False) -> Artifact:
    """The recipe's ONNX export at one precision."""
    size = int(cost(made).bytes * (1 if precision == "fp32" else 0.32))
    relative = 3e-6 if precision == "fp32" else 2.1e-2
    return Artifact(
        name=f"{made.name}-onnx-{precision}",
        recipe=made.name,
        family="whisper",
        format="onnx",
        precision=precision,
        runtime="onnxruntime",
        model_file="model.onnx",
        files={
            "model.onnx": FileRecord(sha256="cd" * 32, bytes=size),
            "golden.npy": FileRecord(sha256="ef" * 32, bytes=999),
        },
        inputs=[Tensor(name="input_features", dtype="float32", shape=["batch", 80, "time"])],
        outputs=[Tensor(name="last_hidden_state", dtype="float32", shape=["batch", "frames", 384])],
        golden=Golden(inputs={"input_features": "golden.npy"}, outputs={}, tolerance=TOLERANCE),
        parity=Parity(
            runtime="onnxruntime",
            tolerance=TOLERANCE,
            cases=[
                ParityCase(
                    batch=1, length=3000, output="last_hidden_state", max_abs=relative, relative=relative, cosine=1.0
                )
            ],
        ),
        audio=AudioShape(input="input_features", unit="mel_frames", per_second=100.0, golden_seconds=made.seconds),
        cost=cost(made),
        source=source(random_weights),
        lineage={"checkpoint": f"{made.name}-0123456789ab"},
        tool=TOOL,
    )


def score(made: Made, subject: str, precision: str | None, metric: str, clips: int = 60) -> Score:
    """Slot recall (3 slots a clip) or word error of the recipe; every recipe hears the same clips."""
    rng = np.random.default_rng([7, sum(made.name.encode()), len(metric)])
    truth = made.recall - (0.02 if precision == "int8" else 0.0)
    hardness = np.random.default_rng(3).random(clips)
    rate = np.clip(truth + 0.25 * (0.5 - hardness), 0, 1)
    if metric == "wer":
        items = [
            ScoreItem(clip=f"o{i}", numerator=float(rng.binomial(9, 1 - 0.9 * r)), denominator=9.0)
            for i, r in enumerate(rate)
        ]
    else:
        items = [
            ScoreItem(clip=f"o{i}", numerator=float(rng.binomial(3, r)), denominator=3.0) for i, r in enumerate(rate)
        ]
    return Score(
        subject=subject,
        recipe=made.name,
        format="onnx" if precision else None,
        precision=precision,
        task="barista",
        metric=metric,
        higher_is_better=metric != "wer",
        items=items,
        tool=TOOL,
    )


def repetition(
    seconds: float, rng: np.random.Generator, samples: int = 80, noise: float = 0.01, **changed: Any
) -> Repetition:
    """One fresh process whose samples scatter around ``seconds``."""
    level = seconds * (1 + 0.004 * rng.standard_normal())
    drawn = level * (1 + noise * np.abs(rng.standard_normal(samples)))
    values: dict[str, Any] = {
        "load_s": 0.4,
        "first_inference_s": seconds * 1.4,
        "warmup_ns": [int(seconds * 1.1e9)],
        "samples_ns": [int(sample * 1e9) for sample in drawn],
        "peak_rss_bytes": 140 * 2**20,
        "golden": [GoldenCheck(output="last_hidden_state", max_abs=1e-6, relative=1e-6, cosine=1.0, passed=True)],
        "facts_before": STATE,
        "facts_after": STATE,
    }
    return Repetition(**{**values, **changed})


def measurement(
    subject: str, made: Made, precision: str, device: str, repetitions: list[Repetition], **changed: Any
) -> Measurement:
    """The recipe's measurement on one device."""
    values: dict[str, Any] = {
        "artifact": subject,
        "artifact_sha256": "cd" * 32,
        "recipe": made.name,
        "format": "onnx",
        "precision": precision,
        "device": device,
        "transport": "ssh",
        "profile": None,
        "runtime": "onnxruntime",
        "runtime_version": "1.31.1",
        "options": {"intra_op_num_threads": 2},
        "plan": {"threads": 2, "repetitions": 3},
        "input": {"source": "golden"},
        "audio_seconds": made.seconds,
        "identity": IDENTITY,
        "repetitions": repetitions,
        "bytes_sent": 0,
        "agent_sha256": "12" * 32,
        "protocol": 1,
        "started": "2024-05-01T10:00:00+00:00",
        "ended": "2024-05-01T10:01:00+00:00",
        "tool": TOOL,
    }
    return Measurement(**{**values, **changed})


def latency_s(made: Made, precision: str, device: str) -> float:
    """A plausible time: partly proportional to MACs, partly fixed; int8 helps less on the second device."""
    gain = 1.0 if precision == "fp32" else 0.62 if device == "pi4" else 0.9
    return 1.15 * DEVICES[device] * (0.25 + 0.75 * made.macs) * gain


def build(folder: Path, recipes: list[Made] = RECIPES, *, random_weights: bool = False, scored: bool = True) -> Path:
    """Write the whole run folder; the int8 export of ``heads-1-l1`` failed, as some do."""
    rng = np.random.default_rng(11)
    names = [made.name for made in recipes]
    Run(name="whisper-barista", source=source(random_weights), job={}, recipes=names, tool=TOOL).write(
        folder / "run.json"
    )
    for made in recipes:
        name = re.sub(r"[^\w.-]", "_", made.name)
        checkpoint(made, random_weights).write(folder / "checkpoints" / f"{name}-0123456789ab" / "checkpoint.json")
        for precision in ("fp32", "int8"):
            if (made.name, precision) == ("heads-1-l1", "int8"):
                failure(made.name).write(folder / "failures" / "heads-1-l1-onnx-int8.json")
                continue
            subject = f"{name}-onnx-{precision}-{'f' * 12}"
            artifact(made, precision, random_weights).write(folder / "artifacts" / subject / "artifact.json")
            for metric in ("slot_recall", "wer") if scored else ():
                one = score(made, subject, precision, metric)
                one.write(folder / "scores" / f"{subject}-{metric}-{'0' * 12}.json")
            for device in DEVICES:
                seconds = latency_s(made, precision, device)
                done = measurement(subject, made, precision, device, [repetition(seconds, rng) for _ in range(3)])
                done.write(folder / "measurements" / f"{subject}-{device}-{'1' * 12}.json")
    return folder


def failure(recipe: str) -> Failure:
    """An export that did not keep its tolerance."""
    return Failure(
        cell=f"{recipe}-onnx-int8",
        recipe=recipe,
        stage="export",
        format="onnx",
        precision="int8",
        kind="ParityError",
        error="last_hidden_state differs by 0.41 at 3000 mel frames (tolerance 0.1)",
        hint="try fp32, or leave the attention projections unquantised",
        when="2024-05-01T10:00:00+00:00",
    )
