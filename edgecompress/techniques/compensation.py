"""What is left makes up for what goes: least squares on calibration audio, and the score that goes with it.

A matrix that loses inputs can say almost the same with those it keeps, as far as the lost ones could be told from them.
The best matrix and bias for that follow from the joint moments of its inputs, without a label and without a gradient:
Optimal Brain Surgeon (Hassibi and Stork, 1993), by groups of inputs as in ZipLM (Kurtic et al., 2023) and SlimGPT
(Ling et al., 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgecompress.model.linear import FactoredLinear, bias_of, dense_weight

if TYPE_CHECKING:
    from edgecompress.model.layer import Layer
    from edgecompress.techniques.statistics import Moments

# Half of whisper-tiny.en's FFN units gone by score activation, 12 clips of 8 s: the encoder's output on 12 other clips has
# a cosine of .959 to the dense one with the mean alone; .9776 at a ridge of 1e-3, .9792 at 1e-2. Two of six heads a layer:
# .760 with the mean, .944 at 1e-3, .953 at 1e-2.
RIDGE = 1e-2


def second_moments(moments: Moments, *, centred: bool = True) -> torch.Tensor:
    """(width, width), float64: a matrix's inputs about their mean, or about zero where it has no bias to put means in."""
    covariance = moments.covariance.cpu()
    return covariance if centred else covariance + torch.outer(moments.mean, moments.mean).cpu()


def _diagonal(covariance: torch.Tensor, ridge: float) -> torch.Tensor:
    """``ridge`` times the mean variance: without it inputs that are always alike, or never move, have no inverse."""
    size = float(covariance.diagonal().mean().clamp(min=1e-30))
    return max(ridge, 1e-9) * size * torch.eye(len(covariance), dtype=torch.float64)


@torch.no_grad()
def least_squares(
    layer: Layer, matrix: str, kept_columns: Sequence[int], moments: Moments, ridge: float = RIDGE
) -> None:
    """Fit a matrix's kept columns and its bias to what all its columns say on calibration audio; the others become zero.

    With inputs x, kept S, removed R and D = W_R C_RS (C_SS + r I)^-1 the new matrix is W_S + D, and the bias takes the
    mean of what is missing exactly. The ridge ``r`` (``ridge`` times the mean variance of the kept inputs) holds D small,
    not W: on the calibration audio the error is never above that of folding the mean alone, whatever the ridge.

    ``kept_columns`` are places in the matrix as it is now; ``moments`` are joint ones of its inputs. Slicing comes after.
    """
    linear = layer.matrix(matrix)
    removed = sorted(set(range(linear.in_features)) - set(kept_columns))
    if not removed or not isinstance(linear, nn.Linear | FactoredLinear):
        return
    kept = sorted(kept_columns)
    bias = bias_of(linear)
    transfer = _transfer(moments, kept, removed, ridge, centred=bias is not None)
    inner = linear.first if isinstance(linear, FactoredLinear) else linear
    before = dense_weight(linear).detach().cpu().double()
    weight = inner.weight.detach().cpu().double()
    weight[:, kept] += weight[:, removed] @ transfer
    weight[:, removed] = 0
    inner.weight.copy_(weight)
    if bias is not None:
        lost = (before - dense_weight(linear).detach().cpu().double()) @ moments.mean.cpu()
        bias.add_(lost.to(bias.device, bias.dtype))


def _transfer(moments: Moments, kept: list[int], removed: list[int], ridge: float, *, centred: bool) -> torch.Tensor:
    """(removed, kept): what each removed input is, told from the kept ones."""
    if not kept:
        return torch.zeros(len(removed), 0, dtype=torch.float64)
    whole = second_moments(moments, centred=centred)
    inside = whole[kept][:, kept]
    return torch.linalg.solve(inside + _diagonal(inside, ridge), whole[kept][:, removed]).T


@torch.no_grad()
def reconstruction(layer: Layer, matrix: str, width: int, moments: Moments, ridge: float = RIDGE) -> torch.Tensor:
    """The error that removing one group of ``width`` inputs of a matrix leaves after least squares: (groups,), float64.

    For a group g it is trace(W_g [C^-1]_gg^-1 W_g^T), mean squared over frames and summed over outputs; for single inputs
    |W_j|^2 / [C^-1]_jj, Optimal Brain Surgeon's saliency. ``moments`` are joint ones of the inputs.
    """
    linear = layer.matrix(matrix)
    weight = dense_weight(linear).detach().cpu().double()
    covariance = second_moments(moments, centred=bias_of(linear) is not None)
    inverse = torch.linalg.inv(covariance + _diagonal(covariance, ridge))
    groups = weight.shape[1] // width
    blocks = inverse.view(groups, width, groups, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    shares = weight.view(-1, groups, width).permute(1, 2, 0)  # (groups, width, out)
    return (shares * torch.linalg.solve(blocks, shares)).sum((1, 2))
