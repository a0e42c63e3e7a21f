"""What calibration audio says about the inside of a model: means, variances and first-order effects, by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.layer import Layer
    from edgecompress.techniques import Context


class Moments:
    """Mean and covariance of frames, gathered batch by batch in float64."""

    def __init__(self) -> None:
        self.frames = 0
        self.total = torch.zeros(0)
        self.square = torch.zeros(0)

    def add(self, x: torch.Tensor) -> None:
        """Take in (..., width) frames."""
        flat = x.detach().reshape(-1, x.shape[-1])
        product = flat.T @ flat
        if not self.frames:
            self.total = torch.zeros(flat.shape[1], dtype=torch.float64)
            self.square = torch.zeros(product.shape, dtype=torch.float64)
        self.frames += flat.shape[0]
        self.total += flat.sum(0, dtype=torch.float64)
        self.square += product.double()

    @property
    def mean(self) -> torch.Tensor:
        """(width,), float64."""
        return self.total / self.frames

    @property
    def second_moment(self) -> torch.Tensor:
        """(width, width), float64: the mean of x x^T, not centred."""
        return self.square / self.frames

    @property
    def covariance(self) -> torch.Tensor:
        """(width, width), float64."""
        return self.second_moment - torch.outer(self.mean, self.mean)


@contextmanager
def hooked(hooks: list[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """Remove hooks however the block ends."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def input_moments(model: Model, context: Context, who: str, matrix: str, layers: list[Layer]) -> dict[int, Moments]:
    """Moments of what goes into ``matrix`` of each layer, over all frames of the calibration clips."""
    return _moments(model, context, who, layers, matrix, lambda gathered: lambda module, args: gathered.add(args[0]), before=True)


@torch.no_grad()
def output_moments(model: Model, context: Context, who: str, matrix: str, layers: list[Layer]) -> dict[int, Moments]:
    """Moments of what comes out of ``matrix`` of each layer, over all frames of the calibration clips."""
    return _moments(model, context, who, layers, matrix, lambda gathered: lambda module, args, output: gathered.add(output), before=False)


def _moments(
    model: Model, context: Context, who: str, layers: list[Layer], matrix: str, hook: Callable[[Moments], Callable[..., None]], *, before: bool
) -> dict[int, Moments]:
    clips = context.need_clips(who)
    gathered = {layer.number: Moments() for layer in layers}
    hooks = []
    for layer in layers:
        module: nn.Module = layer.matrix(matrix)
        register = module.register_forward_pre_hook if before else module.register_forward_hook
        hooks.append(register(hook(gathered[layer.number])))
    with hooked(hooks):
        for inputs in model.batches(clips):
            model.encode(inputs)
    return gathered


def first_order(model: Model, context: Context, who: str, matrix: str, layers: list[Layer], width: int) -> dict[int, torch.Tensor]:
    """First-order effect on the loss of each group of ``width`` inputs of ``matrix``: |<activation, gradient>| a frame.

    Michel, Levy, Neubig, "Are Sixteen Heads Really Better than One?", 2019, as Lin et al. score heads: the absolute
    value is taken per frame and then summed, averaged over clips. The loss is :func:`losses.proxy_loss`. In eval mode.

    Returns one tensor (inputs / width,) a layer, float64.
    """
    from edgecompress.techniques.losses import proxy_loss

    clips = context.need_clips(who)
    seen: dict[int, torch.Tensor] = {}
    scores: dict[int, torch.Tensor] = {}

    def watch(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if args[0].requires_grad:
                args[0].retain_grad()
                seen[number] = args[0]

        return hook

    generator = torch.Generator().manual_seed(context.seed)
    batches = 0
    with hooked([layer.matrix(matrix).register_forward_pre_hook(watch(layer.number)) for layer in layers]):
        for inputs in model.batches(clips, size=4):
            model.network.zero_grad(set_to_none=True)
            proxy_loss(model, inputs, generator).backward()
            for number, activation in seen.items():
                effect = (activation.detach() * activation.grad).reshape(-1, activation.shape[-1] // width, width)
                score = effect.sum(-1).abs().sum(0).double()
                scores[number] = scores.get(number, 0) + score
            batches += 1
    model.network.zero_grad(set_to_none=True)
    return {number: score / batches for number, score in scores.items()}
