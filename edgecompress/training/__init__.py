"""Training: one loop, three objectives (masked prediction, distillation, a task), audio in batches.

The contract between them: a :class:`Corpus` gives :class:`Batch` after batch, which ones is a pure function of the seed
and the step; an :class:`Objective` turns a batch into a :class:`Loss`; the loop steps, saves and resumes. A step seeds
torch from (seed, step) before anything random happens, so a training that was stopped and resumed ends with the very
weights of one that was left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn


@dataclass(frozen=True)
class Batch:
    """Clips of one micro-batch.

    ``clips`` are 16 kHz mono float32, cropped already; ``rows`` their places in the corpus; ``starts`` where each crop
    begins (samples), so that what is kept per clip (targets, a teacher's answers) can be cut alike; ``labels`` the label
    column of each, "" where there is none.
    """

    clips: Sequence[np.ndarray]
    rows: Sequence[int]
    starts: Sequence[int]
    labels: Sequence[str] = ()

    @property
    def seconds(self) -> float:
        """Audio in the batch, padding not counted."""
        return sum(clip.size for clip in self.clips) / 16000


@dataclass
class Loss:
    """A scalar to go down, how many things (valid frames, clips, tokens) it is the mean of, and its named parts."""

    value: torch.Tensor
    count: int
    parts: Mapping[str, float] = field(default_factory=dict)


class Objective(Protocol):
    """What a training goes towards.

    An attribute ``context_seconds`` (Whisper's objectives have it) says how long every clip counts at least in a batch.
    """

    def modules(self) -> Mapping[str, nn.Module]:
        """What trains, by name: ``{"model": network, "head": projection}``. A teacher is not among them."""

    def loss(self, batch: Batch) -> Loss:
        """The loss of one micro-batch; torch's own generator is seeded already. Called under autocast where asked."""


class Hook:
    """Something that goes along with a training: masks that are held, gates that have a loss of their own.

    ``fingerprint`` tells hooks of other settings apart, so that a training does not go on from the state of another.
    """

    fingerprint: str = ""

    def modules(self) -> Mapping[str, nn.Module]:
        """More that trains, saved and resumed with the rest."""
        return {}

    def groups(self, learning_rate: float) -> list[dict[str, object]]:
        """Optimiser groups of its own for :meth:`modules` (``params``, ``lr``, ``maximize``); default: none."""
        return []

    def penalty(self, step: int) -> torch.Tensor | None:
        """Added to the loss once a step."""
        return None

    def before_clipping(self) -> None:
        """Gradients are there, unscaled, and not clipped yet: those that must not count go here."""

    def after_step(self, step: int) -> None:
        """After the optimiser's step: a held mask is put on again here."""
