"""One encoder layer, whatever its family calls its parts: attention, the matrix up, the matrix down."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from edgecompress.errors import ModelError
from edgecompress.model.anatomy import Anatomy
from edgecompress.model.attention import PROJECTIONS, SelfAttention
from edgecompress.model.linear import AnyLinear, FactoredLinear, dense_weight, select_inputs, select_outputs

ATTENTION_MATRICES = PROJECTIONS
FFN_MATRICES = ("up", "down")
MATRICES = (*ATTENTION_MATRICES, *FFN_MATRICES)


class Layer:
    """A view of one encoder layer. ``number`` and all indices are the original ones; the module may change under it."""

    def __init__(self, module: nn.Module, number: int, anatomy: Anatomy) -> None:
        self.module = module
        self.number = number
        self.anatomy = anatomy
        self.units: tuple[int, ...] = tuple(range(self.up.out_features))

    @property
    def attention(self) -> SelfAttention:
        return self.module.get_submodule(self.anatomy.attention)  # type: ignore[return-value]

    @property
    def heads(self) -> tuple[int, ...]:
        return self.attention.heads

    @property
    def up(self) -> AnyLinear:
        """The feed-forward network's first matrix, (units, width)."""
        return self.matrix("up")

    @property
    def down(self) -> AnyLinear:
        """The feed-forward network's second matrix, (width, units)."""
        return self.matrix("down")

    def matrix(self, name: str) -> AnyLinear:
        """One of ``q_proj, k_proj, v_proj, out_proj, up, down``."""
        return self.module.get_submodule(self.anatomy.path(name))  # type: ignore[return-value]

    def replace(self, name: str, new: AnyLinear) -> None:
        """Put another map in a matrix's place."""
        parent, _, leaf = self.anatomy.path(name).rpartition(".")
        setattr(self.module.get_submodule(parent), leaf, new)

    def keep_heads(self, heads: Sequence[int]) -> None:
        """Slice the attention to ``heads`` (original numbers). With none, what stays is out_proj's bias."""
        attention = self.attention
        places = [attention.heads.index(head) for head in heads]
        rows = [place * attention.head_dim + i for place in places for i in range(attention.head_dim)]
        for name in ("q_proj", "k_proj", "v_proj"):
            self.replace(name, select_outputs(self.matrix(name), rows))
        self.replace("out_proj", select_inputs(self.matrix("out_proj"), rows))
        attention.heads = tuple(heads)

    def select_units(self, units: Sequence[int]) -> None:
        """Slice the feed-forward network to ``units`` (original numbers). With none, what stays is the bias of down."""
        place = {unit: i for i, unit in enumerate(self.units)}
        gone = [unit for unit in units if unit not in place]
        if gone:
            raise ValueError(f"layer {self.number} has no unit {gone[0]}")
        rows = [place[unit] for unit in units]
        self.replace("up", select_outputs(self.up, rows))
        self.replace("down", select_inputs(self.down, rows))
        self.units = tuple(units)

    def factor(self, name: str, rank: int, matrices: tuple[torch.Tensor, torch.Tensor] | None = None) -> None:
        """Put a rank-``rank`` product in a matrix's place: ``matrices``, (out, rank) and (rank, in), or the best one.

        The best by its weights is their singular value decomposition (Eckart and Young, 1936). The bias stays. A model on
        torch's meta device gets the shapes only; a product that has this rank already stays as it is.
        """
        old = self.matrix(name)
        if not isinstance(old, nn.Linear | FactoredLinear):
            raise ModelError(f"layer {self.number} has no {name} left to factor", hint="leave this layer out")
        if rank > min(old.in_features, old.out_features):
            raise ModelError(
                f"{name} of layer {self.number} is {old.out_features} x {old.in_features}: rank {rank} is more than it has",
                hint=f"ask for {min(old.in_features, old.out_features)} or less",
            )
        if isinstance(old, FactoredLinear) and old.rank == rank and matrices is None:
            return
        weight = dense_weight(old).detach()
        meta = (old.bias is not None and old.bias.is_meta) or weight.is_meta
        with torch.device("meta" if meta else weight.device):
            new = FactoredLinear(old.in_features, old.out_features, rank, bias=old.bias is not None)
        if not meta:
            put(new, *(matrices or _best(weight, rank)), old.bias)
        self.replace(name, new.train(old.training))


def _best(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    left, singular, right = torch.linalg.svd(weight.double(), full_matrices=False)
    root = singular[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def put(linear: FactoredLinear, second: torch.Tensor, first: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Fill a factored map with its two matrices, (out, rank) and (rank, in), and its bias."""
    with torch.no_grad():
        linear.first.weight.copy_(first)
        linear.second.weight.copy_(second)
        if bias is not None and linear.second.bias is not None:
            linear.second.bias.copy_(bias)
