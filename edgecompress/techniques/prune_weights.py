"""Weight pruning: the smallest weights of all encoder layers become zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgecompress.errors import TechniqueError

if TYPE_CHECKING:
    import torch

    from edgecompress.model import Model
    from edgecompress.techniques import Context


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PruneWeights:
    """Set the smallest ``ratio`` of all weights and biases of attention and feed-forward networks to zero, globally.

    Unstructured magnitude pruning: layers compete with each other, biases with weights (Lin et al., 2022). The zeros
    are real zeros in dense tensors: parameters that are not zero shrink, multiply-accumulates of a dense runtime and
    its latency do not.
    """

    kind: ClassVar[str] = "prune_weights"
    needs_clips: ClassVar[bool] = False
    ratio: Annotated[float, Field(gt=0, lt=1, description="share of weights that become zero")]

    def apply(self, model: Model, context: Context) -> None:
        import torch

        tensors = prunable(model)
        if not tensors:
            raise TechniqueError("no weights are left to prune", hint="leave this step out")
        with torch.no_grad():
            sizes = torch.cat([tensor.abs().reshape(-1) for tensor in tensors])
            count = round(self.ratio * sizes.numel())
            mask = smallest(sizes, count)
            start = 0
            for tensor in tensors:
                tensor.masked_fill_(mask[start : start + tensor.numel()].view_as(tensor), 0.0)
                start += tensor.numel()
        context.notes.append(
            f"{count:,} of {sizes.numel():,} prunable weights are zero; dense runtimes do not use zeros"
        )


def prunable(model: Model) -> list[torch.Tensor]:
    """Weights and biases of every attention and feed-forward matrix of the layers that are left."""
    from edgecompress.model.layer import ATTENTION_MATRICES, FFN_MATRICES

    matrices = [layer.matrix(name) for layer in model.layers for name in (*ATTENTION_MATRICES, *FFN_MATRICES)]
    return [parameter for matrix in matrices for parameter in matrix.parameters() if parameter.numel()]


def smallest(sizes: torch.Tensor, count: int) -> torch.Tensor:
    """A mask of exactly ``count`` smallest entries of a vector; among equal ones the first."""
    import torch

    mask = torch.zeros(sizes.numel(), dtype=torch.bool)
    if not count:
        return mask
    threshold = torch.kthvalue(sizes, count).values
    mask |= sizes < threshold
    equal = torch.nonzero(sizes == threshold).reshape(-1)
    mask[equal[: count - int(mask.sum())]] = True
    return mask
