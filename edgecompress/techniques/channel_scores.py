"""How much each channel of the front end matters, by weights or by what calibration audio says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgecompress.techniques.gradients import effects
from edgecompress.techniques.passes import passes
from edgecompress.techniques.statistics import Moments, hooked

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.model.channels import FrontEndConv
    from edgecompress.techniques import Context

MEL_FRAMES_PER_POSITION = 2  # Whisper's first convolution runs at the rate of mel frames, its encoder at half of it


def l1_scores(convs: Sequence[FrontEndConv]) -> dict[int, torch.Tensor]:
    """The absolute sum of a channel's own weights and bias, and of the weights that read it.

    Where a norm follows, what it makes of the channel stands for the channel's own weights, whose size it takes away.
    """
    scores = {}
    for conv in convs:
        source: Any = conv.norms[-1] if conv.norms and conv.norms[-1].weight is not None else conv.module
        total = source.weight.detach().double().abs().reshape(len(conv.channels), -1).sum(1)
        if source.bias is not None:
            total = total + source.bias.detach().double().abs()
        scores[conv.number] = total + reading(conv).double().abs().sum((0, 2))
    return scores


def activation_scores(convs: Sequence[FrontEndConv], seen: dict[int, Moments]) -> dict[int, torch.Tensor]:
    """The root mean square of a channel where it is read, times the norm of the weights that read it."""
    return {
        conv.number: seen[conv.number].mean_square.clamp(min=0).sqrt()
        * reading(conv).double().cpu().square().sum((0, 2)).sqrt()
        for conv in convs
    }


def first_order_scores(
    model: Model, context: Context, who: str, convs: Sequence[FrontEndConv]
) -> dict[int, torch.Tensor]:
    """|activation . gradient| of a channel, summed over time steps, averaged over clips, normalised by convolution.

    As :func:`statistics.first_order` scores units; the loss is :func:`losses.proxy_loss`.
    """
    by_number = {conv.number: conv.reader for conv in convs}
    scores = {conv.number: torch.zeros(len(conv.channels), dtype=torch.float64) for conv in convs}
    for found, clips in effects(model, context.need_clips(who), by_number, context.seed):
        for number, effect in found.items():
            frames = (0, 2) if isinstance(by_number[number], nn.Conv1d) else (0, 1)
            # A batch's loss is a mean over its clips: by their number, so that each clip weighs the same.
            scores[number] += effect.abs().double().sum(frames).cpu() * clips
    return {number: score / (score.norm() + 1e-20) for number, score in scores.items()}


@torch.no_grad()
def channel_moments(model: Model, context: Context, who: str, convs: Sequence[FrontEndConv]) -> dict[int, Moments]:
    """Moments of each channel where it is read, over the steps that the calibration clips fill."""
    clips = context.need_clips(who)
    gathered = {conv.number: Moments(joint=False) for conv in convs}
    filled: list[int | None] = []

    def watch(seen: Moments) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            seen.add(args[0].transpose(1, 2) if isinstance(module, nn.Conv1d) else args[0], filled)

        return hook

    with hooked([conv.reader.register_forward_pre_hook(watch(gathered[conv.number])) for conv in convs]):
        for inputs, positions in passes(model, clips):
            filled[:] = [None if each is None else MEL_FRAMES_PER_POSITION * each for each in positions]
            model.encode(inputs)
    return gathered


def reading(conv: FrontEndConv) -> torch.Tensor:
    """The weights that read a convolution's channels, (outputs, channels, kernel); of the projection the kernel is 1."""
    weight = conv.reader.weight.detach()
    return weight if weight.dim() == 3 else weight[:, :, None]


@torch.no_grad()
def fold_channel_means(conv: FrontEndConv, places: Sequence[int], mean: torch.Tensor) -> bool:
    """Add what channels say on average to the bias of what reads them; False where it has none."""
    bias = conv.reader.bias
    if bias is None:
        return False
    weight = reading(conv).double()[:, list(places)].sum(2)
    bias.add_((weight @ mean[list(places)].to(weight.device)).to(bias.dtype))
    return True
