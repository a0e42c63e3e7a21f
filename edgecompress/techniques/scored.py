"""What head and feed-forward pruning share: how parts are scored, chosen, and made up for.

``l1`` looks at weights, ``first_order`` and ``activation`` at calibration audio. ``scope = "layer"`` takes the same share
from every layer; ``"global"`` ranks all parts of the model, normalised by layer, and keeps the best one of each layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edgecompress.techniques import count_of

if TYPE_CHECKING:
    import torch

    from edgecompress.model.layer import Layer


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ScoredPruning:
    """The fields of a pruning that scores parts of each layer and removes the lowest."""

    ratio: Annotated[float, Field(gt=0, le=1, description="share that is removed")]
    score: Literal["l1", "first_order", "activation"] = "l1"
    scope: Literal["layer", "global"] = "layer"
    compensate: Annotated[
        bool | None, Field(description="fold the mean of what is removed into the bias; default: with score activation")
    ] = None

    @property
    def compensates(self) -> bool:
        """Whether the mean of what is removed is folded into the bias."""
        return self.score == "activation" if self.compensate is None else self.compensate

    @property
    def needs_clips(self) -> bool:
        """Whether calibration audio is looked at."""
        return self.compensates or self.score != "l1"


def choose(layers: list[Layer], scores: dict[int, torch.Tensor], ratio: float, scope: str) -> dict[Layer, list[int]]:
    """Places to remove in each layer: the same share everywhere, or the lowest of all but each layer's best."""
    if scope == "layer":
        return {
            layer: sorted(scores[layer.number].argsort()[: count_of(ratio, len(scores[layer.number]))].tolist())
            for layer in layers
        }
    ranked = []
    for layer in layers:
        values = scores[layer.number] / (scores[layer.number].norm() + 1e-20)
        best = int(values.argmax())
        ranked += [(float(value), layer.number, place) for place, value in enumerate(values) if place != best]
    total = sum(len(values) for values in scores.values())
    gone = sorted(ranked)[: count_of(ratio, total)]
    return {layer: sorted(place for _, number, place in gone if number == layer.number) for layer in layers}


def fold_mean(layer: Layer, matrix: str, columns: list[int], mean: torch.Tensor) -> None:
    """Add to a matrix's bias what its ``columns`` say on average, before they are removed."""
    import torch

    from edgecompress.model.linear import bias_of, dense_weight

    linear = layer.matrix(matrix)
    bias = bias_of(linear)
    if not columns or bias is None:
        return
    with torch.no_grad():
        bias.add_((dense_weight(linear).double()[:, columns] @ mean[columns]).to(bias.dtype))
