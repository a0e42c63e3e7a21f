"""What a frozen encoder says of recordings: all its hidden states, frame by frame or pooled over each clip.

Pooling and a weighted sum of layers commute, so a probe of whole clips needs one vector a layer, however long the clip.
Answers are kept for the last models asked, keyed by a hash of their weights: several probes encode a clip once.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from edgecompress.records import canonical_json

if TYPE_CHECKING:
    from edgecompress.audio import Clip
    from edgecompress.model import Model
    from edgecompress.tasks import Progress

Pool = Literal["mean", "mean_std"]
BATCH_SECONDS = 60.0  # padding included: some 3,000 frames of 20 ms, at 768 wide and 13 states 120 MB
MODELS_KEPT = 4  # pooled states of 4,000 clips of a base model are 160 MB
SAMPLE_RATE = 16000

_pooled: OrderedDict[tuple[str, str], dict[str, np.ndarray]] = OrderedDict()


def fingerprint(model: Model) -> str:
    """A hash of everything that decides what a model answers: its weights, its edits, its feature extractor."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((model.architecture, model.edits)).encode())
    digest.update(canonical_json(model.origin.preprocessor or {}).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pooled(model: Model, clips: Sequence[Clip], pool: Pool = "mean", say: Progress | None = None) -> np.ndarray:
    """Hidden states of every layer, pooled over the frames each clip fills: (clips, states, width), float32.

    With ``mean_std`` the width is doubled: mean, then standard deviation over time.
    """
    kept = _kept(fingerprint(model), pool)
    missing = [clip for clip in clips if clip.key not in kept]
    for clip, states in each(model, missing, say):
        kept[clip.key] = _pool(states, pool).numpy()
    return np.stack([kept[clip.key] for clip in clips])


def frame_states(model: Model, clips: Sequence[Clip], say: Progress | None = None) -> list[torch.Tensor]:
    """Hidden states of every layer for each clip: (states, frames it fills, width), float16 to halve the memory."""
    found = {clip.key: states.half() for clip, states in each(model, clips, say)}
    return [found[clip.key] for clip in clips]


@torch.no_grad()
def each(model: Model, clips: Sequence[Clip], say: Progress | None = None) -> Iterator[tuple[Clip, torch.Tensor]]:
    """Each clip with its states (states, frames it fills, width) in eval mode; longest first, on the CPU, float32.

    Frames that are padding in a batch are never among them. The weights are not touched, nor the model's mode.
    """
    done = 0
    with model.evaluating():
        for batch in batches(model, clips):
            inputs = model.collate([clip.samples for clip in batch]).to(model.device)
            states = torch.stack(model.states(inputs), dim=1).float().cpu()
            for clip, answer, frames in zip(batch, states, inputs.frames.tolist(), strict=True):
                yield clip, answer[:, :frames].clone()
            done += len(batch)
            if say:
                say(f"encoded {done} of {len(clips)} clips")


def batches(model: Model, clips: Sequence[Clip]) -> Iterator[list[Clip]]:
    """Clips of similar length together, the longest first.

    Whisper hears the silence that a batch ends in, so there only clips that fill the same number of seconds share one:
    what a clip says does not depend on its company.
    """
    waiting: list[Clip] = []
    for clip in sorted(clips, key=lambda clip: (-clip.samples.size, clip.name)):
        if waiting:
            full = (len(waiting) + 1) * waiting[0].samples.size > BATCH_SECONDS * SAMPLE_RATE
            if full or _seconds_heard(model, clip) != _seconds_heard(model, waiting[0]):
                yield waiting
                waiting = []
        waiting.append(clip)
    if waiting:
        yield waiting


def _seconds_heard(model: Model, clip: Clip) -> int:
    return (model.filled_frames(clip.samples) or 0) // 50


def _pool(states: torch.Tensor, pool: Pool) -> torch.Tensor:
    mean = states.mean(dim=1)
    return mean if pool == "mean" else torch.cat([mean, states.std(dim=1, correction=0)], dim=-1)


def _kept(model: str, pool: str) -> dict[str, np.ndarray]:
    found = _pooled.setdefault((model, pool), {})
    _pooled.move_to_end((model, pool))
    while len(_pooled) > MODELS_KEPT:
        _pooled.popitem(last=False)
    return found


def log_mel(clip: Clip, bins: int = 40) -> np.ndarray:
    """Kaldi's log-mel filter bank of a clip in [-1, 1]: (frames of 10 ms, bins), no dither.

    Samples are not scaled to 16 bits: Kaldi's floor (1.2e-7) then lies above the faintest noise, which makes the baseline
    stronger (ten takes of six wake words: .68, with 16-bit samples .62), and a baseline should be as strong as it can be.
    """
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False  # a clip of one window still has a frame
    options.frame_opts.samp_freq = SAMPLE_RATE
    options.mel_opts.num_bins = bins
    bank = kaldi_native_fbank.OnlineFbank(options)
    bank.accept_waveform(SAMPLE_RATE, clip.samples.tolist())
    bank.input_finished()
    return np.stack([bank.get_frame(row) for row in range(bank.num_frames_ready)])
