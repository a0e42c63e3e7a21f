"""What heads attend to: entropy, globalness, verticality and diagonality of their attention maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.model import Model

# Hidden states are compared over so many frames at most, evenly out of all clips: 13 states of width 768 then take 160 MB.
COMPARED_FRAMES = 4096


@dataclass(frozen=True)
class Seen:
    """What :func:`look` saw.

    ``heads`` is by layer (original number) and measure one number a head left; ``states`` one (frames, width) a hidden
    state, float32, of frames that audio fills; ``frames`` how many frames audio filled in all.
    """

    heads: dict[int, dict[str, torch.Tensor]]
    states: list[torch.Tensor]
    frames: int


def measures(weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """What attention maps (heads, T, T) are like, T >= 2; each row, the attention of one frame, sums to 1.

    Yang, Liu & Lee, "Understanding Self-Attention of Self-Supervised Audio Transformers", 2020: ``globalness`` is the mean
    entropy of the rows (nats), ``verticality`` minus the entropy of their mean, ``diagonality`` minus the sum of
    |q - k| A[q, k] over T^2. ``entropy`` is globalness over log T: 1 is uniform. ``cumulative_diagonality`` (Shim et al.,
    2022) is the integral over r from 0 to 1 of the mean attention within |q - k| <= r (T - 1): in closed form
    1 - mean distance / (T - 1), so it orders maps of one length just as diagonality does. All are (heads,), float64.
    """
    length = weights.shape[-1]
    weights = weights.double()
    globalness = torch.special.entr(weights).sum(-1).mean(-1)
    frames = torch.arange(length, device=weights.device)
    distance = (weights * (frames[:, None] - frames).abs()).sum(-1).mean(-1)
    return {
        "entropy": globalness / torch.log(torch.tensor(float(length))).item(),
        "globalness": globalness,
        "verticality": -torch.special.entr(weights.mean(-2)).sum(-1),
        "diagonality": -distance / length,
        "cumulative_diagonality": 1 - distance / (length - 1),
    }


@contextmanager
def watching(model: Model, see: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Inside, ``see`` gets the original number and the attention weights (batch, heads left, T, T) of each layer."""

    def watch(number: int) -> Callable[[torch.Tensor], None]:
        return lambda weights: see(number, weights)

    layers = [layer for layer in model.layers if layer.heads]
    try:
        for layer in layers:
            layer.attention.watch = watch(layer.number)
        yield
    finally:
        for layer in layers:
            layer.attention.watch = None


@torch.no_grad()
def look(model: Model, clips: Sequence[np.ndarray], say: Callable[[str], None]) -> Seen:
    """Pass ``clips`` through the encoder one by one, as it is put to use (Whisper: with its whole context).

    Of Whisper's maps only what the frames that audio fills make of each other is judged; the share of their attention
    that goes to padding is told apart, as ``padding``.
    """
    total: dict[int, dict[str, torch.Tensor]] = {}
    chosen: list[list[torch.Tensor]] = []
    filled: int | None = None
    frames = 0

    def see(number: int, weights: torch.Tensor) -> None:
        own = weights[0, :, :filled, :filled]
        audio = own.sum(-1, keepdim=True)
        found = measures(own / audio.clamp_min(1e-20))
        found["padding"] = (1 - audio.double().mean((-2, -1))).clamp_min(0) if filled else torch.zeros(len(own))
        sums = total.setdefault(number, {})
        for name, values in found.items():
            sums[name] = sums.get(name, 0) + values.cpu()

    with watching(model, see):
        for place, clip in enumerate(clips, start=1):
            say(f"looking at clip {place} of {len(clips)}")
            filled = model.filled_frames(clip)
            states = [state[0, :filled].cpu() for state in model.hidden_states(model.features(clip).to(model.device))]
            frames += len(states[0])
            some = evenly(len(states[0]), max(2, COMPARED_FRAMES // len(clips)))
            chosen.append([state[some].float() for state in states])
    heads = {number: {name: values / len(clips) for name, values in found.items()} for number, found in total.items()}
    return Seen(heads, [torch.cat(parts) for parts in zip(*chosen, strict=True)], frames)


def evenly(count: int, most: int) -> torch.Tensor:
    """At most ``most`` of the places 0 to ``count`` - 1, evenly spread."""
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).round().long()
