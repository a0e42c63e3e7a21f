"""Calling the command line from a test, what it left, and the smallest whole job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# A whole job on a tiny model, ``tiny.json`` beside it: dense and one recipe, eight cells in all.
JOB = """
name = "tiny"
output = "out"
[model]
random = { config = "tiny.json", seed = 0 }
[audio]
synthetic = { clips = 3, seconds = 0.5 }
calibration = 1
evaluation = 2
[[recipe]]
name = "thin"
[[recipe.technique]]
kind = "prune_heads"
ratio = 0.5
[[export]]
format = "onnx"
[[score]]
task = "fidelity"
[measure]
devices = ["local"]
repetitions = 1
warmup_s = 0
min_samples = 2
min_seconds = 0
"""


@dataclass(frozen=True)
class Answer:
    """What a command line left: exit status and both outputs."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    def is_refused(self) -> bool:
        """One ``error:``, one ``hint:``, status 2, and no traceback."""
        lines = self.err.splitlines()
        marks = [sum(line.startswith(mark) for line in lines) for mark in ("error:", "hint:", "Traceback")]
        return self.status == 2 and marks == [1, 1, 0]


Call = Callable[..., Answer]
