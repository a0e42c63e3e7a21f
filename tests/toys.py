"""A small training for the tests of the loop: dropout (so that generators matter), a gate with its own ascent, held zeros.

Run as a module it trains in a process of its own, that can kill itself: ``python -m tests.toys FOLDER CASE WHEN``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgecompress.training import Batch, Hook, Loss, checkpoints, loop
from edgecompress.training.data import Corpus
from edgecompress.training.history import History
from edgecompress.training.settings import Training

FRAME = 400
STEPS = 12


def corpus(count: int = 9, seed: int = 0) -> Corpus:
    """Noise of 0.1 to 0.5 s, by name and as 16-bit numbers would say it."""
    generator = np.random.default_rng(seed)
    clips = [generator.standard_normal(generator.integers(1600, 8000)).astype(np.float32) for _ in range(count)]
    return Corpus.from_arrays(clips)


class Toy:
    """Frames of 25 ms through a small network shall tell their own loudness."""

    def __init__(self, seed: int = 0, *, broken_row: int | None = None) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = nn.Sequential(
                nn.Linear(FRAME, 8), nn.LayerNorm(8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 8)
            )
            self.head = nn.Linear(8, 1)
        self.broken_row = broken_row
        self.calls = 0
        self.before_loss: Any = lambda call: None
        self.seen: list[Batch] = []

    def modules(self) -> Mapping[str, nn.Module]:
        return {"model": self.network, "head": self.head}

    def loss(self, batch: Batch) -> Loss:
        self.before_loss(self.calls)
        self.calls += 1
        self.seen.append(batch)
        frames = torch.tensor(np.concatenate([clip[: clip.size // FRAME * FRAME] for clip in batch.clips]))
        frames = frames.reshape(-1, FRAME).to(self.head.weight.device)
        wrong = (self.head(self.network(frames))[:, 0].float() - frames.abs().mean(1)).abs()
        if self.broken_row in batch.rows:
            wrong = wrong * float("nan")
        return Loss(wrong.mean(), len(frames), {"l1": float(wrong.detach().mean())})


class Held(Hook):
    """Half of the first matrix stays zero, and a multiplier climbs against the size of a gate."""

    def __init__(self, toy: Toy) -> None:
        self.matrix = toy.network[0].weight
        self.mask = (torch.arange(self.matrix.numel()) % 2).reshape(self.matrix.shape).float()
        with torch.no_grad():
            self.matrix.mul_(self.mask)
        self.gate = nn.Module()
        self.gate.size = nn.Parameter(torch.ones(3))
        self.gate.multiplier = nn.Parameter(torch.zeros(()))

    def modules(self) -> Mapping[str, nn.Module]:
        return {"gate": self.gate}

    def groups(self, learning_rate: float) -> list[dict[str, object]]:
        return [
            {"params": [self.gate.size], "lr": 10 * learning_rate},
            {"params": [self.gate.multiplier], "lr": 10 * learning_rate, "maximize": True},
        ]

    def penalty(self, step: int) -> torch.Tensor:
        return self.gate.multiplier * (self.gate.size.sigmoid().mean() - 0.5)

    def after_step(self, step: int) -> None:
        with torch.no_grad():
            self.matrix.mul_(self.mask)


def settings(**more: Any) -> Training:
    """12 steps on micro-batches of a second, a state after every step."""
    known: dict[str, Any] = {
        "steps": STEPS, "learning_rate": 1e-2, "batch_seconds": 1.0, "crop_seconds": 0.3, "device": "cpu",
        "save_every_s": 1e-6, "weight_decay": 0.01, "warmup": 0.2,
    }  # fmt: skip
    return Training(**{**known, **more})


CASES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adam, accumulated, linear": {"optimizer": "adam", "accumulate": 3, "schedule": "linear"},
    "skipped steps": {"broken_row": 4, "accumulate": 2},
    "hooks": {"held": True, "schedule": "constant"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16", "held": True},
}


def course(case: str, folder: Path | None, *, toy: Toy | None = None, **more: Any) -> tuple[dict[str, Any], History]:
    """Train a case; its weights (of hooks too) and its history."""
    asked = dict(CASES[case])
    held, broken_row = asked.pop("held", False), asked.pop("broken_row", None)
    toy = toy or Toy()
    toy.broken_row = broken_row
    hooks = [Held(toy)] if held else []
    history = loop.train(toy, corpus(), settings(**asked), seed=3, folder=folder, hooks=hooks, **more)
    modules = {**toy.modules(), **{name: module for hook in hooks for name, module in hook.modules().items()}}
    return checkpoints.tensors_of(modules), history


def die(*_: Any) -> None:
    """End this process as a lost power cord does."""
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, case: str, when: str) -> None:
    """Train, and be killed in the middle of a step (``step``) or of writing a state (``save``)."""
    loop.SAVING_SHARE = 0  # a state after every step
    toy = Toy()
    if when == "step":
        toy.before_loss = lambda call: die() if call == 7 else None
    write = checkpoints._write

    def half(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
        write(tensors, path)
        if "optimizer" in path.name and toy.calls >= 7:
            path.write_bytes(path.read_bytes()[:100])
            die()

    if when == "save":
        checkpoints._write = half
    course(case, Path(folder), toy=toy)


if __name__ == "__main__":
    main(*sys.argv[1:])
