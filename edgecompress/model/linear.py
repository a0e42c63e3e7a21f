"""Linear maps that can lose rows and columns: plain, factored, and the two that are left when nothing is left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class FactoredLinear(nn.Module):
    """``y = second(first(x))``: a matrix of shape (out, in) as the product of (out, rank) and (rank, in)."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.first = nn.Linear(in_features, rank, bias=False)
        self.second = nn.Linear(rank, out_features, bias=bias)

    @property
    def in_features(self) -> int:
        return self.first.in_features

    @property
    def out_features(self) -> int:
        return self.second.out_features

    @property
    def rank(self) -> int:
        return self.first.out_features

    @property
    def bias(self) -> nn.Parameter | None:
        return self.second.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shapes: (..., in) -> (..., out)."""
        return self.second(self.first(x))


class NothingIn(nn.Module):
    """What stays of the matrix into a block whose inner width is zero: it hands its input on, for its shape only."""

    out_features = 0

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = in_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shapes: (..., in) -> (..., in)."""
        return x


class Constant(nn.Module):
    """What stays of the matrix out of a block whose inner width is zero: its bias, for every frame.

    This is exactly what the dense block says once all the matrix's columns are zero.
    """

    in_features = 0

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(out_features))

    @property
    def out_features(self) -> int:
        return self.bias.numel()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shapes: (batch, time, anything) -> (batch, time, out)."""
        return self.bias.expand(x.shape[0], x.shape[1], self.bias.numel())


AnyLinear = nn.Linear | FactoredLinear | NothingIn | Constant


def dense_weight(linear: AnyLinear) -> torch.Tensor:
    """The (out, in) matrix that a linear map multiplies by, factored or not."""
    if isinstance(linear, FactoredLinear):
        return linear.second.weight @ linear.first.weight
    if isinstance(linear, nn.Linear):
        return linear.weight
    return torch.zeros(linear.out_features, linear.in_features)


def bias_of(linear: AnyLinear) -> torch.Tensor | None:
    """A map's bias (out,), or None where it has none."""
    bias = getattr(linear, "bias", None)
    return bias if isinstance(bias, torch.Tensor) else None


def _sliced(linear: nn.Linear, dim: int, index: Sequence[int]) -> nn.Linear:
    keep = torch.as_tensor(list(index), dtype=torch.long, device=linear.weight.device)
    out_features, in_features = linear.weight.shape
    sizes = (len(index), in_features) if dim == 0 else (out_features, len(index))
    new = nn.Linear(sizes[1], sizes[0], bias=linear.bias is not None, device="meta")
    new.weight = nn.Parameter(linear.weight.detach().index_select(dim, keep))
    if linear.bias is not None:
        bias = linear.bias.detach()
        new.bias = nn.Parameter(bias.index_select(0, keep) if dim == 0 else bias.clone())
    return new.train(linear.training)


def select_outputs(linear: AnyLinear, index: Sequence[int]) -> AnyLinear:
    """The map with only the output rows ``index``; :class:`NothingIn` when there are none."""
    if not len(index):
        return NothingIn(linear.in_features).train(linear.training)
    if isinstance(linear, FactoredLinear):
        linear.second = _sliced(linear.second, 0, index)
        return linear
    if isinstance(linear, nn.Linear):
        return _sliced(linear, 0, index)
    raise ValueError("a block without heads or units has none to select")


def select_inputs(linear: AnyLinear, index: Sequence[int]) -> AnyLinear:
    """The map with only the input columns ``index``; :class:`Constant` when there are none."""
    if not len(index):
        constant = Constant(linear.out_features)
        bias = bias_of(linear)
        if bias is not None:
            constant.bias = nn.Parameter(bias.detach().clone())
        elif next(linear.parameters()).is_meta:
            constant = constant.to("meta")
        return constant.train(linear.training)
    if isinstance(linear, FactoredLinear):
        linear.first = _sliced(linear.first, 1, index)
        return linear
    if isinstance(linear, nn.Linear):
        return _sliced(linear, 1, index)
    raise ValueError("a block without heads or units has none to select")
