"""The teacher: a frozen model, and what it says to clips, kept where the same clip comes again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgecompress.errors import TechniqueError
from edgecompress.paths import expand
from edgecompress.training.parts import collate

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.inputs import Inputs
    from edgecompress.training import Batch
    from edgecompress.training.data import Corpus

SCALED_ON = 256  # clips
LONGEST_SCALED = 15 * 16000
FLAT = 1e-6  # a deviation below this is that of a channel that never moves
LARGEST_HALF = 60_000.0  # float16 ends at 65,504

Ask = Callable[["Model", "Inputs"], Sequence[torch.Tensor]]
Answer = tuple[torch.Tensor, ...]


def frozen_copy(model: Model) -> Model:
    """An independent copy in eval mode whose weights want no gradient: what trains the student cannot touch it."""
    copy = model.clone().eval()
    for parameter in copy.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return copy


def teacher_of(path: str | None, student: Model, source: Model | None) -> Model:
    """The model of a folder, or a frozen copy of the source, with the context that the student has.

    A Whisper teacher of a Whisper student sees the student's context: padding is attended to, so at another context it
    would answer another question than the one that the student is asked in use. (It also costs half at half the context.)

    Raises:
        TechniqueError: neither a folder nor a source.
        RecipeError: the path names a variable that is not set.
        ModelError: the folder does not hold a model.
    """
    if path is not None:
        from edgecompress.model import load

        teacher = frozen_copy(load(expand(path)))
    elif source is None:
        raise TechniqueError(
            "distillation needs a teacher", hint="set teacher to a model folder, or give Context(source=...) in Python"
        )
    else:
        teacher = frozen_copy(source)
    wanted, has = student.context_positions, teacher.context_positions
    if wanted is not None and has is not None and wanted < has:
        teacher.keep_context(wanted)
    return teacher


class Teacher:
    """What a frozen model says to each clip, whichever batch the clip is in.

    A clip that comes whole is asked alone, without padding, and its answer rounded to float16 and kept, up to
    ``limit_bytes``: with a small student the teacher is most of a step's cost. Asked alone, the answer hangs neither on
    the other clips of a batch nor on what was kept, so a training that is resumed hears the very same. Crops are never
    the same twice; those of one length are asked together.
    """

    def __init__(
        self,
        model: Model,
        corpus: Corpus,
        ask: Ask,
        *,
        limit_bytes: int,
        padding: bool = False,
        silence_s: float | None = None,
    ) -> None:
        """``ask(model, inputs)`` gives tensors (batch, frames, width), or (batch, width) for whole clips.

        ``padding`` keeps frames that no audio fills as well; ``silence_s`` is :func:`parts.collate`'s.
        """
        self.model = model
        self.ask = ask
        self.padding = padding
        self.silence_s = silence_s
        self.limit_bytes = limit_bytes
        self.kept_bytes = 0
        self._samples = corpus.samples
        self._kept: dict[int, Answer] = {}

    @torch.no_grad()
    def answers(self, batch: Batch, device: torch.device) -> list[Answer]:
        """For each clip one tensor (frames, width) for each that ``ask`` gives; frames that audio fills, as a rule."""
        self.model.to(device)
        found: dict[int, Answer] = {}
        crops: dict[int, list[int]] = {}
        for place, (clip, row, start) in enumerate(zip(batch.clips, batch.rows, batch.starts, strict=True)):
            if start == 0 and clip.size >= self._samples[row]:
                found[place] = tuple(one.to(device) for one in self._whole(row, clip, device))
            else:
                crops.setdefault(clip.size, []).append(place)
        for places in crops.values():
            said = self._said([batch.clips[place] for place in places], device)
            found.update(zip(places, said, strict=True))
        return [found[place] for place in range(len(batch.clips))]

    @torch.no_grad()
    def scales(self, corpus: Corpus, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Mean and deviation (width,) of each answer's channels, over the frames of up to 256 clips chosen by ``seed``.

        A channel that never moves has deviation infinity: it counts for nothing.
        """
        rows = np.random.default_rng(seed).permutation(len(corpus))[:SCALED_ON].tolist()
        frames, sums, squares = 0, [torch.zeros(0)], [torch.zeros(0)]
        for row in rows:
            clip = corpus.clip(row)[:LONGEST_SCALED]
            answer = [one.double() for one in self._said([clip], self.model.device)[0]]
            if not frames:
                sums = [one.new_zeros(one.shape[-1]) for one in answer]
                squares = [one.new_zeros(one.shape[-1]) for one in answer]
            frames += len(answer[0])
            for one, total, square in zip(answer, sums, squares, strict=True):
                total += one.sum(0)
                square += one.square().sum(0)
        means = [total / frames for total in sums]
        deviations = [
            (square / frames - mean.square()).clamp(min=0).sqrt() for square, mean in zip(squares, means, strict=True)
        ]
        return [
            (mean.float(), torch.where(deviation > FLAT, deviation, torch.inf).float())
            for mean, deviation in zip(means, deviations, strict=True)
        ]

    def _whole(self, row: int, clip: np.ndarray, device: torch.device) -> Answer:
        if row in self._kept:
            return self._kept[row]
        answer = tuple(_half(one) for one in self._said([clip], device)[0])
        size = sum(one.numel() * one.element_size() for one in answer)
        if self.kept_bytes + size <= self.limit_bytes:
            self._kept[row] = tuple(one.cpu().clone() for one in answer)
            self.kept_bytes += size
        return answer

    def _said(self, clips: list[np.ndarray], device: torch.device) -> list[Answer]:
        inputs = collate(self.model, clips, self.silence_s).to(device)
        outputs = self.ask(self.model, inputs)
        frames = inputs.frames.tolist()
        return [
            tuple(
                one[i][None] if one.dim() == 2 else one[i] if self.padding else one[i, : frames[i]] for one in outputs
            )
            for i in range(len(clips))
        ]


def _half(values: torch.Tensor) -> torch.Tensor:
    """As float16, unless a number does not fit in one."""
    return values.half() if not values.numel() or float(values.abs().max()) < LARGEST_HALF else values.float()
