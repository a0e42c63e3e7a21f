"""What a training needs around it, and leaves as it found it: the device, the mode of modules, random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from edgecompress.errors import EdgeCompressError


def device_of(name: str) -> torch.device:
    """The device that a setting means; ``auto``: cuda, mps, else cpu.

    Raises:
        EdgeCompressError: torch does not see it.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if there[kind]))
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as cause:
        seen = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise EdgeCompressError(f"torch cannot train on device {name!r}", hint=f"auto, or one of: {seen}") from cause
    return device


@contextmanager
def in_training(modules: Mapping[str, nn.Module], device: torch.device) -> Iterator[torch.device]:
    """Modules on the device and in train mode, gradients on; afterwards all as it was, and no gradients left."""
    modes = {part: part.training for module in modules.values() for part in module.modules()}
    homes = {name: _device(module) for name, module in modules.items()}
    try:
        for module in modules.values():
            module.to(device).train()
        with torch.enable_grad():
            yield device
    finally:
        for part, mode in modes.items():
            part.training = mode
        for name, module in modules.items():
            module.zero_grad(set_to_none=True)
            module.to(homes[name])


def _device(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in module.parameters()), torch.device("cpu"))


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Let steps seed what they like: the caller's generators are afterwards where they were."""
    python, library = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(library)


def seed_all(seed: int, step: int) -> None:
    """Seed torch, and numpy's and Python's generators, which libraries draw masks from."""
    words = np.random.SeedSequence((seed, 2, step)).generate_state(2)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(int(words[0]))
    random.seed(int(words[1]))
