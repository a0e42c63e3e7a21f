"""What calibration audio says about the inside of a model: means, variances and first-order effects, by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgecompress.techniques.passes import passes

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.layer import Layer
    from edgecompress.techniques import Context


class Moments:
    """Mean and second moments of frames, gathered batch by batch about the mean of the first one.

    About that mean, and not about zero: the products are float32, and a channel's large mean would drown its variance.

    ``joint`` keeps the second moments of every pair (width, width), else of each alone (width,): for 1,536 units on
    40 clips of 30 s that is a second instead of half a minute.
    """

    def __init__(self, *, joint: bool) -> None:
        self.joint = joint
        self.frames = 0
        self.centre = torch.zeros(0)
        self.total = torch.zeros(0, dtype=torch.float64)
        self.square = torch.zeros(0, dtype=torch.float64)

    def add(self, x: torch.Tensor, filled: Sequence[int | None] = ()) -> None:
        """Take in (batch, time, width) frames; of each row only the first ``filled`` where that is given."""
        rows = [row[:frames] for row, frames in zip(x.detach(), filled, strict=True)] if filled else [x.detach()]
        flat = torch.cat([row.reshape(-1, x.shape[-1]) for row in rows])
        if not self.frames:
            width = flat.shape[1]
            self.centre = flat.mean(0)
            self.total = torch.zeros(width, dtype=torch.float64)
            self.square = torch.zeros((width, width) if self.joint else (width,), dtype=torch.float64)
        flat = flat - self.centre
        square = flat.T @ flat if self.joint else flat.square().sum(0, dtype=torch.float64)
        self.frames += flat.shape[0]
        self.total += flat.sum(0, dtype=torch.float64)
        self.square += square.double()

    @property
    def mean(self) -> torch.Tensor:
        """(width,), float64."""
        return self.total / self.frames + self.centre.double()

    @property
    def mean_square(self) -> torch.Tensor:
        """(width,), float64: about zero."""
        about_centre = (self.square.diagonal() if self.joint else self.square) / self.frames
        centre = self.centre.double()
        return about_centre + 2 * centre * self.total / self.frames + centre.square()

    @property
    def covariance(self) -> torch.Tensor:
        """(width, width), float64; joint moments only."""
        offset = self.total / self.frames
        return self.square / self.frames - torch.outer(offset, offset)


@contextmanager
def hooked(hooks: list[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """Remove hooks however the block ends."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def moments(
    model: Model,
    context: Context,
    who: str,
    targets: list[tuple[Layer, str]],
    *,
    outputs: bool = False,
    joint: bool = True,
) -> dict[tuple[int, str], Moments]:
    """Moments of what goes into (or comes out of) matrices, over the frames that the calibration clips fill, in one pass.

    Not over Whisper's padding: at 30 s of context it is three quarters of an 8 s clip's frames, and heads chosen by what
    they do on silence are the wrong ones (one of six gone in each layer of whisper-tiny.en: slot recall .15, and .68 without
    the padding).

    ``targets`` are (layer, name of the matrix); the answer is by (number of the layer, name of the matrix).
    """
    clips = context.need_clips(who)
    gathered = {(layer.number, name): Moments(joint=joint) for layer, name in targets}

    def before(seen: Moments) -> Callable[..., None]:
        return lambda module, args: seen.add(args[0], filled)

    def after(seen: Moments) -> Callable[..., None]:
        return lambda module, args, output: seen.add(output, filled)

    filled: list[int | None] = []
    hooks = []
    for layer, name in targets:
        module: nn.Module = layer.matrix(name)
        seen = gathered[layer.number, name]
        hooks.append(
            module.register_forward_hook(after(seen)) if outputs else module.register_forward_pre_hook(before(seen))
        )
    with hooked(hooks):
        for inputs, filled[:] in passes(model, clips):
            model.encode(inputs)
    return gathered


def first_order(
    model: Model, context: Context, who: str, matrix: str, layers: list[Layer], width: int
) -> dict[int, torch.Tensor]:
    """First-order effect on the loss of each group of ``width`` inputs of ``matrix``: |<activation, gradient>| a frame.

    Michel, Levy, Neubig, "Are Sixteen Heads Really Better than One?", 2019, as Lin et al. score heads: the absolute
    value is taken per frame and then summed, averaged over clips. The loss is :func:`losses.proxy_loss`. In eval mode.

    Returns one tensor (inputs / width,) a layer, float64.
    """
    from edgecompress.techniques.gradients import effects

    modules = {layer.number: layer.matrix(matrix) for layer in layers}
    scores = {
        number: torch.zeros(module.in_features // width, dtype=torch.float64) for number, module in modules.items()
    }
    clips_seen = 0
    for found, clips in effects(model, context.need_clips(who), modules, context.seed):
        for number, effect in found.items():
            score = effect.reshape(-1, effect.shape[-1] // width, width).sum(-1).abs().sum(0).double()
            # A batch's loss is a mean over its clips: by their number, so that each clip weighs the same.
            scores[number] += score.cpu() * clips
        clips_seen += clips
    return {number: score / clips_seen for number, score in scores.items()}
