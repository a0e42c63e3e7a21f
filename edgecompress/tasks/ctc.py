"""A small CTC head on a learned weighted sum of an encoder's layers: trained on kept states, or with the encoder.

Connectionist temporal classification: Graves et al., 2006. Class 0 is the blank. A linear head hears one frame at a time
and cannot keep quiet between its spikes: on log-mel it wrote four digits for each that was said. So it has one
convolution over time, as SUPERB's has its recurrent layers. It hears means over 80 ms: with a frame each 20 ms it wrote
blanks alone for some hundred steps, and had not learned strings in a thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from edgecompress.tasks.weighted_sum import Scale

if TYPE_CHECKING:
    from edgecompress.model import Model

BATCH = 16  # strings a step
CLIP_NORM = 5.0
HIDDEN = 64
REACH_S = 0.3  # about a digit
STEP_S = 0.08  # over which states are averaged: a short digit has three
MIX_RATE = 10.0  # times the rate of the rest: a handful of weights that decide which layers are heard


class Head(nn.Module):
    """States (states, batch, frames, width) -> log-probabilities (batch, frames, classes with the blank).

    A weighted sum of the standardised states, a projection to ``HIDDEN``, a convolution that hears ``reach`` frames, and
    the classes.
    """

    mean: torch.Tensor
    rate: torch.Tensor

    def __init__(self, scale: Scale, classes: int, reach: int) -> None:
        super().__init__()
        layers, width = scale.mean.shape
        self.register_buffer("mean", scale.mean.clone())
        self.register_buffer("rate", 1 / scale.deviation)
        self.mix = nn.Parameter(torch.zeros(layers))
        self.project = nn.Linear(width, HIDDEN)
        self.listen = nn.Conv1d(HIDDEN, HIDDEN, reach, padding=reach // 2)
        self.drop = nn.Dropout(0.35)
        self.linear = nn.Linear(HIDDEN, classes + 1)

    @property
    def shares(self) -> torch.Tensor:
        """How much of each hidden state the head listens to; they sum to one."""
        return torch.softmax(self.mix, dim=0)

    def mixed(self, states: torch.Tensor) -> torch.Tensor:
        """The weighted sum of the standardised states: (batch, frames, width)."""
        scaled = (states - self.mean[:, None, None]) * self.rate[:, None, None]
        return torch.tensordot(self.shares, scaled, dims=1)

    def forward(self, states: torch.Tensor, frames: torch.Tensor | None = None) -> torch.Tensor:
        """``frames`` (batch,) says how many of the frames each clip fills; the others are not heard. None: all."""
        hidden = self.drop(nn.functional.gelu(self.project(self.mixed(states))))
        if frames is not None:
            filled = torch.arange(hidden.shape[1], device=hidden.device) < frames[:, None].to(hidden.device)
            hidden = hidden * filled[:, :, None]
        heard = nn.functional.gelu(self.listen(hidden.transpose(1, 2))).transpose(1, 2)
        return torch.log_softmax(self.linear(self.drop(heard)), dim=-1)


def frame_rate(states: Sequence[torch.Tensor], seconds: float) -> float:
    """Frames a second, of clips (states, frames, width) that last so many ``seconds`` together."""
    return sum(each.shape[1] for each in states) / seconds


def stride_of(states: Sequence[torch.Tensor], seconds: float) -> int:
    """How many frames ``STEP_S`` has, of clips (states, frames, width) that last so many ``seconds`` together."""
    return max(1, round(STEP_S * frame_rate(states, seconds)))


def slowed(states: Sequence[torch.Tensor], seconds: float) -> tuple[list[torch.Tensor], int]:
    """Clips (states, frames, width) that last so many ``seconds``, :func:`averaged` over ``STEP_S``, and that stride."""
    stride = stride_of(states, seconds)
    return [averaged(each, stride) for each in states], stride


def averaged(states: torch.Tensor, stride: int) -> torch.Tensor:
    """(..., frames, width) -> (..., frames // stride, width): means over ``stride`` frames, an unfilled rest left out."""
    whole = states.shape[-2] // stride
    lots = states[..., : whole * stride, :].unflatten(-2, (whole, stride))
    return lots.float().mean(dim=-2)


def scale_of(states: Sequence[torch.Tensor]) -> Scale:
    """Mean and deviation over all frames of clips (states, frames, width) each."""
    count = sum(each.shape[1] for each in states)
    mean = torch.stack([each.double().sum(dim=1) for each in states]).sum(dim=0) / count
    spread = torch.stack([(each.double() - mean[:, None]).square().sum(dim=1) for each in states]).sum(dim=0) / count
    deviation = spread.sqrt().float()
    return Scale(mean.float(), torch.where(deviation > 1e-5, deviation, torch.inf))


def padded(states: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips (states, frames, width) as one float32 batch (states, batch, frames, width), and each one's frames."""
    frames = torch.tensor([each.shape[1] for each in states])
    batch = torch.zeros(states[0].shape[0], len(states), int(frames.max()), states[0].shape[2])
    for row, each in enumerate(states):
        batch[:, row, : each.shape[1]] = each
    return batch, frames


def ctc_loss(said: torch.Tensor, frames: torch.Tensor, wanted: Sequence[Sequence[int]]) -> torch.Tensor:
    """Mean over strings of the CTC loss a digit. ``wanted`` are class numbers from 1."""
    lengths = torch.tensor([len(each) for each in wanted])
    flat = torch.tensor([number for each in wanted for number in each])
    return nn.functional.ctc_loss(said.transpose(0, 1), flat, frames.cpu(), lengths, blank=0, zero_infinity=True)


def train_head(
    states: Sequence[torch.Tensor],
    wanted: Sequence[Sequence[int]],
    classes: int,
    *,
    frames_per_second: float,
    steps: int,
    rate: float,
    seed: int,
) -> Head:
    """A head trained on kept states (states, frames, width) each: Adam, the rate falling as a cosine, seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(scale_of(states), classes, reach=2 * round(REACH_S * frames_per_second / 2) + 1)

        def loss(rows: list[int]) -> torch.Tensor:
            batch, frames = padded([states[row] for row in rows])
            return ctc_loss(head(batch, frames), frames, [wanted[row] for row in rows])

        _descend(loss, _groups(head, rate), len(states), steps, seed)
    return head.eval()


def finetune(
    model: Model,
    head: Head,
    clips: Sequence[np.ndarray],
    wanted: Sequence[Sequence[int]],
    *,
    stride: int,
    steps: int,
    rate: float,
    seed: int,
) -> None:
    """Train an encoder and its head further, together, in place: the encoder's rate is ``rate``, the head's ten times it.

    The head hears means over ``stride`` frames, as it learned to.
    """
    head.train()
    model.train()
    head.to(model.device)

    def loss(rows: list[int]) -> torch.Tensor:
        inputs = model.collate([clips[row] for row in rows]).to(model.device)
        states = averaged(torch.stack(model.states(inputs)), stride)
        frames = inputs.frames // stride
        return ctc_loss(head(states, frames), frames, [wanted[row] for row in rows])

    own = [weight.requires_grad_(True) for weight in model.encoder_module.parameters()]
    groups = [{"params": own, "lr": rate}, *_groups(head, 10 * rate)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _descend(loss, groups, len(clips), steps, seed)
    model.eval()
    head.cpu().eval()


def _groups(head: Head, rate: float) -> list[dict[str, object]]:
    rest = [weight for name, weight in head.named_parameters() if name != "mix"]
    return [{"params": rest, "lr": rate}, {"params": [head.mix], "lr": MIX_RATE * rate}]


def _descend(
    loss: Callable[[list[int]], torch.Tensor], groups: list[dict[str, object]], count: int, steps: int, seed: int
) -> None:
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    generator = np.random.default_rng([seed, 2])
    for _ in range(steps):
        rows = sorted(generator.choice(count, min(BATCH, count), replace=False).tolist())
        value = loss(rows)
        optimizer.zero_grad()
        if torch.isfinite(value):
            value.backward()
            nn.utils.clip_grad_norm_(weights, CLIP_NORM)
            optimizer.step()
        schedule.step()


@torch.no_grad()
def read(head: Head, states: Sequence[torch.Tensor]) -> list[list[int]]:
    """What the head reads in each clip (states, frames, width): the likeliest path, repeats and blanks taken out."""
    found = []
    for each in states:
        path = head(each[:, None].float())[0].argmax(dim=-1).tolist()
        found.append([now for before, now in zip([0, *path], path, strict=False) if now not in (0, before)])
    return found


def edits(said: Sequence[int], wanted: Sequence[int]) -> int:
    """Fewest substitutions, deletions and insertions that make one sequence of the other."""
    row = list(range(len(wanted) + 1))
    for i, ours in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, theirs in enumerate(wanted, 1):
            before, row[j] = row[j], min(before + (ours != theirs), row[j] + 1, row[j - 1] + 1)
    return row[-1]
