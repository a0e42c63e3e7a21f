"""What each encoder layer does on calibration audio, without training: how it turns its input, what is lost without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgecompress.techniques.passes import passes
from edgecompress.techniques.statistics import hooked

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.layer import Layer


def _heard(args: tuple[Any, ...], keywords: dict[str, Any]) -> torch.Tensor:
    """A layer's input, (batch, frames, width)."""
    hidden: torch.Tensor = args[0] if args else keywords["hidden_states"]
    return hidden


def _rows(hidden: torch.Tensor, filled: list[int | None]) -> list[torch.Tensor]:
    """(frames that audio fills, width) for each clip, of (batch, frames, width)."""
    return [row[:frames] for row, frames in zip(hidden, filled, strict=True)]


@torch.no_grad()
def influences(model: Model, clips: Sequence[np.ndarray]) -> dict[int, float]:
    """One minus the mean cosine between each layer's input and output, by number, over the frames that audio fills.

    At the layer itself: the library gives Whisper's last hidden state after the final norm, which the layer did not do.
    """
    total = {layer.number: 0.0 for layer in model.layers}
    seen = 0
    filled: list[int | None] = []

    def watch(number: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            said = output if isinstance(output, torch.Tensor) else output[0]
            before, after = (torch.cat(_rows(each, filled)) for each in (_heard(args, keywords), said))
            total[number] += float(nn.functional.cosine_similarity(before, after, dim=-1).double().sum())

        return hook

    hooks = [layer.module.register_forward_hook(watch(layer.number), with_kwargs=True) for layer in model.layers]
    with hooked(hooks):
        for inputs, filled_now in passes(model, clips):
            filled[:] = filled_now
            seen += sum(len(row) for row in _rows(model.encode(inputs), filled))
    return {number: 1 - similar / seen for number, similar in total.items()}


@torch.no_grad()
def final_states(model: Model, clips: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """The encoder's output for each clip, (frames that audio fills, width)."""
    return [row for inputs, filled in passes(model, clips) for row in _rows(model.encode(inputs), filled)]


def effects(model: Model, clips: Sequence[np.ndarray], wanted: list[torch.Tensor]) -> dict[int, float]:
    """The relative error of the encoder's output without each layer, by number: |output - wanted| / |wanted|."""
    found = {}
    size = sum(float(clip.double().square().sum()) for clip in wanted)
    for layer in model.layers:
        with skipped(layer):
            errors = [_squares(ours, theirs) for ours, theirs in zip(final_states(model, clips), wanted, strict=True)]
        found[layer.number] = (sum(errors) / max(size, 1e-30)) ** 0.5
    return found


def _squares(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    ours, theirs = ours[: len(theirs)], theirs[: len(ours)]  # of a long clip, a trimmed context hears less
    return float((ours.double() - theirs.double().to(ours.device)).square().sum())


@contextmanager
def skipped(layer: Layer) -> Iterator[None]:
    """Inside, the layer hands its input on. What it says besides (WavLM's position bias) it still says."""

    def hook(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
        hidden = _heard(args, keywords)
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    with hooked([layer.module.register_forward_hook(hook, with_kwargs=True)]):
        yield
