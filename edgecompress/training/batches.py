"""Which clips a step sees: clips of like length together, a new order every epoch, and always the same for one seed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from edgecompress.errors import AudioError
from edgecompress.training import Batch
from edgecompress.training.data import SAMPLE_RATE, Corpus
from edgecompress.training.settings import TaskLoss, Training

LIKE_LENGTH = 0.1  # clips are sorted by their length give or take a tenth: neighbours change, padding stays under 20 %
AHEAD = 2  # steps whose batches are made while one is computed

Batches = Callable[[int], list[Batch]]


def batches_of(corpus: Corpus, settings: Training, seed: int, context_seconds: float | None = None) -> Batches:
    """A function from the number of a step to its ``settings.accumulate`` micro-batches.

    It depends on the seed and the step alone. A micro-batch holds at most ``batch_seconds`` of audio, padding to its
    longest clip included (a longer clip goes alone); clips above ``crop_seconds`` are cut at random, another cut every
    epoch. Where labels are what is learned, a cut would belie them: such clips are left out. ``Batch.rows`` count in
    ``corpus`` as it was given, whatever ``settings.datasets`` takes of it. With ``context_seconds`` every clip counts as
    at least that long: Whisper's encoder works through its whole context for half a second of audio too.

    Raises:
        AudioError: none of the audio is of these datasets, or short enough.
    """
    limit = None if settings.crop_seconds is None else round(settings.crop_seconds * SAMPLE_RATE)
    rows = usable_rows(corpus, settings)
    if not rows:
        raise AudioError("no training audio is left of what was chosen", hint="see datasets and crop_seconds")
    lengths = np.array([corpus.samples[row] if limit is None else min(corpus.samples[row], limit) for row in rows])
    heard = np.maximum(lengths, round((context_seconds or 0) * SAMPLE_RATE))
    plan = _Plan(rows, lengths, heard, round(settings.batch_seconds * SAMPLE_RATE), seed)
    column = settings.objective.label if isinstance(settings.objective, TaskLoss) else "label"

    def batches(step: int) -> list[Batch]:
        numbers = range(step * settings.accumulate, (step + 1) * settings.accumulate)
        found = (_batch(corpus, plan.rows(number), limit, column, (seed, 1, number)) for number in numbers)
        return [batch for batch in found if batch.rows]

    return batches


def usable_rows(corpus: Corpus, settings: Training) -> list[int]:
    """Rows of the chosen datasets; of labelled audio those that need no cut."""
    return [row for row in _chosen(corpus, settings) if not _too_long(corpus, row, settings)]


def left_out(corpus: Corpus, settings: Training) -> int:
    """How many labelled clips of the chosen datasets are too long."""
    return sum(_too_long(corpus, row, settings) for row in _chosen(corpus, settings))


def _chosen(corpus: Corpus, settings: Training) -> list[int]:
    known = settings.datasets
    return [row for row in range(len(corpus)) if not known or corpus.label(row, "dataset") in known]


def _too_long(corpus: Corpus, row: int, settings: Training) -> bool:
    limit = settings.crop_seconds if isinstance(settings.objective, TaskLoss) else None
    return limit is not None and corpus.samples[row] > limit * SAMPLE_RATE


@dataclass
class _Plan:
    """Micro-batches numbered through all epochs. How many an epoch has varies, so epochs are laid out in order."""

    all_rows: Sequence[int]
    lengths: np.ndarray
    heard: np.ndarray  # what each costs, in samples
    batch_samples: int
    seed: int
    ends: list[int] = field(default_factory=list)  # number of micro-batches up to the end of each epoch so far
    epoch: int = -1
    layout: list[list[int]] = field(default_factory=list)

    def rows(self, number: int) -> list[int]:
        """Corpus rows of one micro-batch."""
        while not self.ends or self.ends[-1] <= number:
            self._lay(len(self.ends))
            self.ends.append((self.ends[-1] if self.ends else 0) + len(self.layout))
        epoch = int(np.searchsorted(self.ends, number, side="right"))
        if epoch != self.epoch:
            self._lay(epoch)
        first = self.ends[epoch - 1] if epoch else 0
        return self.layout[number - first]

    def _lay(self, epoch: int) -> None:
        generator = np.random.default_rng((self.seed, 0, epoch))
        keys = self.lengths * generator.uniform(1 - LIKE_LENGTH, 1 + LIKE_LENGTH, len(self.lengths))
        groups = _cut(np.argsort(keys, kind="stable"), self.heard, self.batch_samples)
        self.layout = [[self.all_rows[place] for place in groups[i]] for i in generator.permutation(len(groups))]
        self.epoch = epoch


def _cut(order: np.ndarray, lengths: np.ndarray, batch_samples: int) -> list[list[int]]:
    """Neighbours in ``order`` grouped such that number times longest stays within ``batch_samples``."""
    groups: list[list[int]] = []
    longest = 0
    for place in order.tolist():
        longest = max(longest, int(lengths[place]))
        if not groups or longest * (len(groups[-1]) + 1) > batch_samples:
            groups.append([])
            longest = int(lengths[place])
        groups[-1].append(place)
    return groups


def _batch(corpus: Corpus, rows: list[int], limit: int | None, column: str, seeds: tuple[int, int, int]) -> Batch:
    """Read and cut clips. A file that turns out damaged only now is left out."""
    generator = np.random.default_rng(seeds)
    clips, taken, starts = [], [], []
    for row in rows:
        place = generator.random()
        try:
            clip = corpus.clip(row)
        except AudioError:
            continue
        start = 0 if limit is None else int(place * (max(0, clip.size - limit) + 1))
        clips.append(clip[start:] if limit is None else clip[start : start + limit])
        taken.append(row)
        starts.append(start)
    return Batch(clips, taken, starts, [corpus.label(row, column) for row in taken])


def ahead(batches: Batches, first: int, last: int) -> Generator[list[Batch], None, None]:
    """Batches of the steps ``first`` to ``last - 1``, made in a thread while the steps before them are computed."""
    with ThreadPoolExecutor(1, "batches") as pool:
        steps = iter(range(first, last))
        waiting: deque[Future[list[Batch]]] = deque()
        for step in chain(steps, [None] * AHEAD):
            if step is not None:
                waiting.append(pool.submit(batches, step))
            if waiting and (step is None or len(waiting) > AHEAD):
                yield waiting.popleft().result()
