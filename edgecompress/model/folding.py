"""Weight norm, folded into plain weights right after loading, with a parity check.

Salimans and Kingma, "Weight Normalization", 2016. The parametrization is what old and new checkpoints disagree about,
what exporters stumble over, and what a pruning would have to see through; a plain convolution says the same.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from edgecompress.errors import ModelError

TOLERANCE = 1e-5


def fold_weight_norm(network: nn.Module, *, check: bool = True) -> int:
    """Replace every weight-normed weight by its product; returns how many parameters (the gains) that took away.

    Raises:
        ModelError: the folded convolution does not say what the normed one said (``check`` only).
    """
    gains = 0
    for name, module in list(network.named_modules()):
        if not parametrize.is_parametrized(module, "weight"):
            continue
        before = sum(parameter.numel() for parameter in module.parameters())
        probe = _probe(module) if check else None
        said = module(probe).detach() if probe is not None else None
        # Not under no_grad: there torch would leave a buffer in the place of the parameter.
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        gains += before - sum(parameter.numel() for parameter in module.parameters())
        if probe is not None and said is not None:
            difference = float((module(probe).detach() - said).abs().max())
            if not difference <= TOLERANCE * max(1.0, float(said.abs().max())):
                raise ModelError(
                    f"folding the weight norm of {name} changed its output by {difference:.2e}",
                    hint="please report this model",
                )
    return gains


def _probe(module: nn.Module) -> torch.Tensor:
    if not isinstance(module, nn.Conv1d):
        raise ModelError(f"weight norm on a {type(module).__name__}, wanted a Conv1d", hint="please report this model")
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, module.in_channels, 2 * module.kernel_size[0], generator=generator)
