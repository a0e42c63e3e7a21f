"""How the loss hangs on what goes into modules, batch by batch of calibration audio."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgecompress.techniques.losses import proxy_loss
from edgecompress.techniques.statistics import hooked

if TYPE_CHECKING:
    import numpy as np

    from edgecompress.model import Model

AT_ONCE = 4  # clips of a family that has a context; of the others one


def effects(
    model: Model, clips: Sequence[np.ndarray], modules: Mapping[int, nn.Module], seed: int
) -> Iterator[tuple[dict[int, torch.Tensor], int]]:
    """activation * gradient of each module's input, in its shape, by number, and how many clips the batch has.

    The loss is :func:`losses.proxy_loss`, a mean over the batch's clips. A module on which it does not hang is left out.
    """
    inputs_of: dict[int, torch.Tensor] = {}

    def watch(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if args[0].requires_grad:
                args[0].retain_grad()
                inputs_of[number] = args[0]

        return hook

    generator = torch.Generator().manual_seed(seed)
    with hooked([module.register_forward_pre_hook(watch(number)) for number, module in modules.items()]):
        for inputs in model.batches(clips, size=AT_ONCE):
            inputs_of.clear()
            model.network.zero_grad(set_to_none=True)
            proxy_loss(model, inputs, generator).backward()
            found = {number: x.detach() * x.grad for number, x in inputs_of.items() if x.grad is not None}
            yield found, inputs.shape[0]
    model.network.zero_grad(set_to_none=True)
