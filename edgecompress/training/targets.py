"""What masked frames are asked for: the cluster of each frame, by k-means on log-mel or on hidden states.

HuBERT, Hsu et al., 2021; MelHuBERT, Lin et al., 2023: 40 log-mel bins of Kaldi's kind (Hamming window of 25 ms every
10 ms), one label every 10 ms. At 20 ms a frame every second label is used: the centre of log-mel frame 2i is that of
frame i of HuBERT's convolutions (sample 320 i + 200), and 12.5 ms after that of Whisper's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgecompress.errors import AudioError, TechniqueError
from edgecompress.training.parts import collate

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.training import Batch
    from edgecompress.training.data import Corpus

MEL_BINS = 40
SAMPLE_RATE = 16000
LOG_MEL_HOP = 160  # samples from one log-mel frame to the next
NO_LABEL = -1

Features = Callable[[np.ndarray], np.ndarray]


def log_mel(clip: np.ndarray) -> np.ndarray:
    """Kaldi-compatible log-mel energies (frames, 40), float32, of 16 kHz audio in [-1, 1]; one frame every 10 ms."""
    from edgecompress.model import log_mel as mel

    if clip.size < mel.WINDOW_SAMPLES:
        return np.zeros((0, MEL_BINS), np.float32)
    return mel.log_mel(clip, MEL_BINS)


def hidden_frames(model: Model, state: int) -> Features:
    """One hidden state of the model as it is now, in eval mode: clip -> (frames, width), float32."""

    @torch.no_grad()
    def of(clip: np.ndarray) -> np.ndarray:
        with model.evaluating():
            device = next(model.encoder_module.parameters()).device
            inputs = collate(model, [clip]).to(device)
            said = model.states(inputs)[state][0, : int(inputs.frames[0])]
        return np.asarray(said.float().cpu().numpy())

    return of


def frame_samples(model: Model) -> int:
    """Samples from one of the encoder's frames to the next: 320, or 160 for a MelHuBERT of 10 ms."""
    two_seconds = np.zeros(2 * SAMPLE_RATE, np.float32)
    with torch.no_grad():
        frames = int(model.collate([two_seconds]).frames[0])
    return 160 if frames > 150 else 320


def readable(corpus: Corpus, rows: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(row, clip) of those rows that can be decoded; the corpus notes the others."""
    for row in rows:
        try:
            yield row, corpus.clip(row)
        except AudioError:
            continue


class Targets:
    """A label for every frame of every clip of a corpus; the same for the same seed."""

    def __init__(self, corpus: Corpus, features: Features, hop: int, clusters: int, fit_frames: int, seed: int) -> None:
        """Fit on about ``fit_frames`` frames of clips drawn at random, then label the whole corpus.

        ``hop`` is how many samples lie between two frames of ``features``. Labels are kept as int16.

        Raises:
            TechniqueError: there are fewer frames than clusters.
        """
        self.hop = hop
        self.clusters = clusters
        self._features = features
        drawn = _draw(corpus, features, fit_frames, seed)
        if len(drawn) < clusters:
            raise TechniqueError(
                f"{clusters} clusters need at least as many frames; the audio has {len(drawn)}",
                hint="give more audio, or ask for fewer clusters",
            )
        self._mean, self._deviation = drawn.mean(0), drawn.std(0) + 1e-5
        self._means = _fit((drawn - self._mean) / self._deviation, clusters, seed)
        self.labels = [np.zeros(0, np.int16)] * len(corpus)  # of a damaged file: no batch will hold it
        for row, clip in readable(corpus, range(len(corpus))):
            self.labels[row] = self.label(clip)

    def label(self, clip: np.ndarray) -> np.ndarray:
        """(frames,) int16: the cluster of each frame of a clip, the corpus's or another one."""
        frames = self._features(clip)
        if not len(frames):
            return np.zeros(0, np.int16)
        return np.asarray(self._means.predict((frames - self._mean) / self._deviation)).astype(np.int16)

    def of(self, batch: Batch, frames: int, step: int) -> torch.Tensor:
        """Labels (batch, frames), int64, for encoder frames ``step`` samples apart; -1 where there is none."""
        found = torch.full((len(batch.rows), frames), NO_LABEL, dtype=torch.long)
        for place, (row, start) in enumerate(zip(batch.rows, batch.starts, strict=True)):
            self.put(self.labels[row], start, step, found[place])
        return found

    def put(self, labels: np.ndarray, start: int, step: int, into: torch.Tensor) -> None:
        """Write a clip's labels from sample ``start`` on into one row, ``step`` samples a frame."""
        part = labels[round(start / self.hop) :: step // self.hop][: len(into)]
        into[: len(part)] = torch.from_numpy(part.astype(np.int64))


def _draw(corpus: Corpus, features: Features, wanted: int, seed: int) -> np.ndarray:
    """About ``wanted`` frames (frames, width) of as many clips as that takes, in random order, no clip more than a hundredth."""
    generator = np.random.default_rng(seed)
    found, total = [], 0
    each = max(100, wanted // 100)
    for _, clip in readable(corpus, generator.permutation(len(corpus)).tolist()):
        frames = features(clip)
        if len(frames) > each:
            frames = frames[np.sort(generator.choice(len(frames), each, replace=False))]
        found.append(frames)
        total += len(frames)
        if total >= wanted:
            break
    return np.concatenate(found)[:wanted] if found else np.zeros((0, 1), np.float32)


def _fit(frames: np.ndarray, clusters: int, seed: int) -> Any:
    from sklearn.cluster import MiniBatchKMeans

    means = MiniBatchKMeans(
        clusters, random_state=seed % 2**32, batch_size=max(2048, 4 * clusters), n_init=3, max_iter=50
    )
    return means.fit(np.ascontiguousarray(frames, dtype=np.float32))
